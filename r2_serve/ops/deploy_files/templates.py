"""Files of `templates/`: YAML with gaps, filled in and written as YAML that people read.

`@{name}` is a gap. A text that is one gap becomes the value itself, of any type; a longer text gets the value
as text. A key whose value is None is left out. A mapping with the key `with` stands once for each item of
that list (whose keys are names in it) or of that mapping (`@{key}`, `@{value}`); for another value once, or
never if empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files

import yaml

from r2_serve.serve_config.document import YamlMapping

Object = YamlMapping
Values = Mapping[str, object]
GAP = re.compile(r"@\{(\w+)\}")


def template(name: str) -> str:
    """The text of the template `name`."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


def render(template_name: str, /, **values: object) -> Object:
    """The one document of the template, its gaps filled with `values`."""
    (document,) = render_all(template_name, **values)
    return document


def render_all(template_name: str, /, **values: object) -> list[Object]:
    """Every document of the template, its gaps filled with `values`."""
    return [_mapping(document, values) for document in yaml.safe_load_all(template(template_name))]


def documents(objects: Iterable[Mapping[str, object]]) -> str:
    """`objects` as YAML, one document each, without anchors; a text of several lines is a literal block."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=140)


def _filled(part: object, values: Values) -> list[object]:
    """What stands for `part`: one value, or several, or none."""
    if isinstance(part, dict):
        return [_mapping(part, scope) for scope in _scopes(part, values)]
    if isinstance(part, list):
        return [[value for item in part for value in _filled(item, values)]]
    if isinstance(part, str) and (whole := GAP.fullmatch(part)):
        return [] if values[whole[1]] is None else [values[whole[1]]]
    return [GAP.sub(lambda gap: str(values[gap[1]]), part) if isinstance(part, str) else part]


def _mapping(part: Object, values: Values) -> Object:
    return {k: filled for k, v in part.items() if k != "with" for filled in _filled(v, values)}


def _scopes(part: Object, values: Values) -> list[Values]:
    if "with" not in part:
        return [values]
    (given,) = _filled(part["with"], values) or [None]
    if isinstance(given, Mapping):
        return [{**values, "key": key, "value": value} for key, value in given.items()]
    if isinstance(given, list):
        return [{**values, **item} for item in given]
    return [values] if given else []


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
