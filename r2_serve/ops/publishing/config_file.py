"""Changes of a Serve config file: adapters in a model's `user_config`, and adapters that virtual models use.

Comments, order and quotes stay (ruamel.yaml). A change is made twice, on the commented document and on its
plain data, and both results must be equal: otherwise an anchor would change every place that shares it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from r2_serve.errors import ConfigError
from r2_serve.serve_config.applications import MODEL, ROUTER
from r2_serve.serve_config.document import YamlMapping

Change = Callable[[YamlMapping], None]


def changed(text: str, *changes: Change) -> str:
    """`text` after `changes`, in their order. Raises: ConfigError if they would change something else too."""
    plain = _unshared(yaml.safe_load(text))
    editor = _editor()
    document = editor.load(text)
    for change in changes:
        change(plain)
        change(document)
    out = io.StringIO()
    editor.dump(document, out)
    if yaml.safe_load(out.getvalue()) != plain:
        raise ConfigError(
            "the file shares a part between sections (a YAML anchor): write the adapter there by hand, "
            "then `serve deploy`"
        )
    return out.getvalue()


def with_adapter(
    app: str, name: str, directory: str, *, last: Sequence[str] = (), drop: Sequence[str] = ()
) -> Change:
    """Adds the adapter to the `user_config` of `app`, after those of `last`, and removes those of `drop`."""

    def change(config: YamlMapping) -> None:
        adapters = _child(_child(_deployment(config, app, MODEL), "user_config"), "adapters")
        for gone in drop:
            adapters.pop(gone)
        for moved in last:
            if moved in adapters:
                adapters[moved] = adapters.pop(moved)
        adapters[name] = directory

    return change


def with_route(router_app: str, virtual_model: str, module: str, adapter: str | None) -> Change:
    """Lets `virtual_model` use `adapter` for `module`; None is the model itself."""

    def change(config: YamlMapping) -> None:
        routing = _deployment(config, router_app, ROUTER)["user_config"]["virtual_models"]
        section = routing[virtual_model][module]
        if adapter is None:
            section.pop("adapter", None)
        elif "adapter" in section:
            section["adapter"] = adapter
        else:
            _insert_second(section, "adapter", adapter)

    return change


def with_rollout(router_app: str, virtual_model: str, rollout: YamlMapping | None) -> Change:
    """Puts a candidate on trial for `virtual_model`; None ends its trial."""

    def change(config: YamlMapping) -> None:
        routing = _deployment(config, router_app, ROUTER)["user_config"]
        if rollout is not None:
            _child(routing, "rollouts")[virtual_model] = dict(rollout)
            return
        routing["rollouts"].pop(virtual_model)
        if not routing["rollouts"]:
            routing.pop("rollouts")

    return change


def with_fields(router_app: str, virtual_model: str, fields: YamlMapping) -> Change:
    """Sets fields of `virtual_model`; of a section, those alone that are named. None takes a field out."""

    def change(config: YamlMapping) -> None:
        routing = _deployment(config, router_app, ROUTER)["user_config"]["virtual_models"]
        _set(routing[virtual_model], fields)

    return change


def _set(section: YamlMapping, fields: YamlMapping) -> None:
    for name, value in fields.items():
        if value is None:
            section.pop(name, None)
        elif isinstance(value, dict) and isinstance(section.get(name), dict):
            _set(section[name], value)
        elif name in section:
            section[name] = value
        else:
            _insert_second(section, name, value)


def _editor() -> YAML:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.Representer = _KeepsNull
    return editor


class _KeepsNull(RoundTripRepresenter):
    """Writes null, where ruamel.yaml writes nothing, which looks like a forgotten value."""

    def represent_null(self, data: None) -> ScalarNode:
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:null", "null")
        return node


_KeepsNull.add_representer(type(None), _KeepsNull.represent_null)


def _unshared(value: YamlMapping) -> YamlMapping:
    """A copy in which no two places are the same object."""

    def copied(part: object) -> object:
        if isinstance(part, dict):
            return {key: copied(item) for key, item in part.items()}
        return [copied(item) for item in part] if isinstance(part, list) else part

    return {key: copied(item) for key, item in value.items()}


def _deployment(config: YamlMapping, app: str, name: str) -> YamlMapping:
    """The entry of that deployment, added if the file has none."""
    (section,) = (entry for entry in config["applications"] if entry["name"] == app)
    entries: list[YamlMapping] = section.setdefault("deployments", [])
    if not any(entry["name"] == name for entry in entries):
        entries.append({"name": name})
    return next(entry for entry in entries if entry["name"] == name)


def _child(section: YamlMapping, key: str) -> YamlMapping:
    """The mapping at `key`, added if there is none."""
    if section.get(key) is None:
        section.pop(key, None)
        _insert_second(section, key, {})
    child: YamlMapping = section[key]
    return child


def _insert_second(section: YamlMapping, key: str, value: object) -> None:
    """Adds `key` after the first key: comments below the last one belong to the next part of the file."""
    if isinstance(section, CommentedMap):
        section.insert(min(1, len(section)), key, value)
    else:
        section[key] = value
