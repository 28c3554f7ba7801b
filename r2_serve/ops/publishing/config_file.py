"""A Serve config file changed in two places only: adapters of a model's `user_config`, and who routes to which.

Comments, order and quotes stay (ruamel.yaml). A change is made twice, on the commented document and on its plain data,
and both must come to the same: an anchor that stands in two places would otherwise change both.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from r2_serve.errors import ConfigError

Change = Callable[[dict[str, Any]], None]


def changed(text: str, change: Change) -> str:
    """`text` after `change`. Raises: ConfigError where it cannot be made without changing something else."""
    plain = _unshared(yaml.safe_load(text))
    change(plain)
    editor = _editor()
    document = editor.load(text)
    change(document)
    out = io.StringIO()
    editor.dump(document, out)
    if yaml.safe_load(out.getvalue()) != plain:
        raise ConfigError(
            "the file shares a part between sections (a YAML anchor): write the adapter there by hand, then `serve deploy`"
        )
    return out.getvalue()


def with_adapter(
    app: str, name: str, directory: str, *, last: Sequence[str] = (), drop: Sequence[str] = ()
) -> Change:
    """Names the adapter in the `user_config` of `app`, after those of `last`, and no longer those of `drop`."""

    def change(config: dict[str, Any]) -> None:
        adapters = _child(_child(_deployment(config, app, "Model"), "user_config"), "adapters")
        for gone in drop:
            adapters.pop(gone)
        for moved in last:
            if moved in adapters:
                adapters[moved] = adapters.pop(moved)
        adapters[name] = directory

    return change


def with_route(router_app: str, virtual_model: str, module: str, adapter: str | None) -> Change:
    """Has `virtual_model` call `adapter` for `module`; None is the model itself."""

    def change(config: dict[str, Any]) -> None:
        routing = _deployment(config, router_app, "Router")["user_config"]["virtual_models"]
        section = routing[virtual_model][module]
        if adapter is None:
            section.pop("adapter", None)
        elif "adapter" in section:
            section["adapter"] = adapter
        else:
            _insert_second(section, "adapter", adapter)

    return change


def all_of(changes: Sequence[Change]) -> Change:
    """One after the other."""

    def change(config: dict[str, Any]) -> None:
        for one in changes:
            one(config)

    return change


def _editor() -> YAML:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.Representer = _KeepsNull
    return editor


class _KeepsNull(RoundTripRepresenter):
    """ruamel.yaml writes nothing for null by default, which reads as a key that was forgotten."""

    def represent_null(self, data: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_KeepsNull.add_representer(type(None), _KeepsNull.represent_null)


def _unshared(value: Any) -> Any:
    """A copy in which no two places are the same object."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _deployment(config: dict[str, Any], app: str, name: str) -> dict[str, Any]:
    """The entry of that deployment, made where the file has none."""
    (section,) = (entry for entry in config["applications"] if entry["name"] == app)
    entries: list[dict[str, Any]] = section.setdefault("deployments", [])
    found = next((entry for entry in entries if entry["name"] == name), None)
    if found is None:
        entries.append({"name": name})
        found = entries[-1]
    return found


def _child(section: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping at `key`, made where there is none."""
    if section.get(key) is None:
        section.pop(key, None)
        _insert_second(section, key, {})
    child: dict[str, Any] = section[key]
    return child


def _insert_second(section: dict[str, Any], key: str, value: Any) -> None:
    """After the first key: comments below the last one belong to what comes next in the file."""
    insert = getattr(section, "insert", None)  # a commented mapping has it, a plain one no order that matters
    if insert is not None:
        insert(min(1, len(section)), key, value)
    else:
        section[key] = value
