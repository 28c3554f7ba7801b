"""Sections of a YAML document against pydantic models: unknown keys and wrong values, each with its key and line.

The keys come from the models themselves, ours and Ray Serve's, so that no list can fall behind. Unknown keys are
errors also where a model ignores them, as most of Ray Serve's do.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from r2_serve.serve_config.document import (
    Document,
    KeyPath,
    Problem,
    children,
    read_yaml,
    refusal,
    suggestion,
)

Model = TypeVar("Model", bound=BaseModel)
NOT_A_MAPPING = "must be a mapping of keys to values"


@dataclass(frozen=True)
class Section:
    """A place of a document where the keys of `model` belong."""

    model: type[BaseModel]
    path: KeyPath
    node: yaml.Node
    is_loose: bool = False
    """True where the enclosing model takes any mapping here, so that it does not check the values."""


def read_file(path: Path, model: type[Model]) -> Model:
    """A YAML file that is one `model`. Raises: ConfigError listing every error with its line, or where it cannot be read."""
    document = read_yaml(path)
    if isinstance(document, Problem):
        raise refusal(path, [document])
    section, problems = read_section(document, model, ())
    problems = [*document.problems, *problems]
    if section is None or problems:
        raise refusal(path, problems)
    return section


def read_section(document: Document, model: type[Model], path: KeyPath) -> tuple[Model | None, list[Problem]]:
    """The section at `path` as a `model` without its unknown keys, None where a value is wrong; and all that is wrong with it."""
    if document.node(path) is None:
        return None, [document.problem("error", path, "missing")]
    problems = key_problems(document, model, path)
    try:
        return model.model_validate(_without_unknown_keys(document, model, path)), problems
    except ValidationError as e:
        told = {problem.where for problem in problems}
        return None, problems + [
            problem for problem in value_problems(document, path, e) if problem.where not in told
        ]


def key_problems(document: Document, model: type[BaseModel], path: KeyPath) -> list[Problem]:
    """Unknown keys under `path`, and mappings that are something else."""
    return [
        problem for section in sections(document, model, path) for problem in _key_problems(document, section)
    ]


def unknown_keys(document: Document, path: KeyPath, known: Collection[str]) -> Iterator[Problem]:
    """Keys of the mapping at `path` that are not `known`."""
    node = document.node(path)
    for key in children(node) if isinstance(node, yaml.MappingNode) else ():
        if key not in known:
            yield document.problem("error", (*path, key), f"unknown key{suggestion(key, known)}")


def value_problems(document: Document, path: KeyPath, error: ValidationError) -> list[Problem]:
    """What `error` says of the values under `path`. Unknown keys are left to `key_problems`."""
    found = [
        details
        for details in error.errors(include_url=False)
        if details["type"] != "extra_forbidden" and not _is_echo(details)
    ]
    return [
        document.problem("error", _place(document, path, details), _message(details)) for details in found
    ]


def sections(document: Document, model: type[BaseModel], path: KeyPath) -> Iterator[Section]:
    """Every section under `path`, which is a `model`, outer ones first."""
    node = document.node(path)
    if node is not None:
        yield from _sections(model, node, path)


def _sections(annotation: Any, node: yaml.Node, path: KeyPath) -> Iterator[Section]:
    options = _options(annotation)
    is_loose = any((get_origin(option) or option) is dict for option in options)
    models = [option for option in options if _is_model(option)]
    model = _model_for(models, node)
    if model is not None and (isinstance(node, yaml.MappingNode) or len(options) == 1):
        yield Section(model, path, node, is_loose)
        yield from _sections_of_fields(model, node, path)
    for option in options:
        yield from _sections_of_items(option, node, path)


def _sections_of_fields(model: type[BaseModel], node: yaml.Node, path: KeyPath) -> Iterator[Section]:
    if isinstance(node, yaml.MappingNode):
        for key, (_, value) in children(node).items():
            if key in model.model_fields:
                yield from _sections(model.model_fields[key].annotation, value, (*path, key))


def _sections_of_items(option: Any, node: yaml.Node, path: KeyPath) -> Iterator[Section]:
    origin, arguments = get_origin(option), get_args(option)
    if not arguments:
        return
    if origin in (list, tuple) and isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _sections(arguments[0], item, (*path, index))
    if origin is dict and isinstance(node, yaml.MappingNode):
        for key, (_, value) in children(node).items():
            yield from _sections(arguments[1], value, (*path, key))


def _options(annotation: Any) -> list[Any]:
    """What a union allows, flat; the annotation itself where it is none."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return [annotation]


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _model_for(models: list[type[BaseModel]], node: yaml.Node) -> type[BaseModel] | None:
    """The one model that `node` can be, told by `kind` where there are several."""
    if len(models) > 1 and isinstance(node, yaml.MappingNode):
        kind = children(node).get("kind", (None, None))[1]
        models = [model for model in models if kind is not None and kind.value in _kinds(model)]
    return models[0] if len(models) == 1 else None


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def _key_problems(document: Document, section: Section) -> Iterator[Problem]:
    if isinstance(section.node, yaml.MappingNode):
        yield from unknown_keys(document, section.path, section.model.model_fields)
    else:
        yield document.problem("error", section.path, NOT_A_MAPPING)


def _without_unknown_keys(document: Document, model: type[BaseModel], path: KeyPath) -> Any:
    """So that one unknown key does not hide what else is wrong."""
    value = copy.deepcopy(document.value(path))
    for section in sections(document, model, path):
        place = value
        for key in section.path[len(path) :]:
            place = place[key]
        for key in set(place) - set(section.model.model_fields) if isinstance(place, dict) else ():
            del place[key]
    return value


def _is_echo(details: Any) -> bool:
    """Whether pydantic calls a collection too short only because its items are wrong."""
    return bool(details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"])


def _place(document: Document, path: KeyPath, details: Any) -> KeyPath:
    """`path` and the keys of the error's location, of which pydantic puts some that are names of union members."""
    location = details["loc"]
    for key in location:
        if document.node((*path, key)) is not None:
            path = (*path, key)
    return (*path, location[-1]) if details["type"] == "missing" else path


def _message(details: Any) -> str:
    """Pydantic's message, with a suggestion where it lists what is allowed. Never the input itself, which may be a secret."""
    message = str(details["msg"]).removeprefix("Value error, ")
    context = details.get("ctx", {})
    allowed = re.findall(r"'([^']*)'", str(context.get("expected_tags") or context.get("expected") or ""))
    if details["type"] == "union_tag_invalid":
        return f"unknown {context['discriminator'].strip(chr(39))}{suggestion(str(context['tag']), allowed)}"
    if details["type"] == "missing":
        return "missing"
    close = suggestion(str(details.get("input")), allowed)
    return message + (close if close.startswith("; did") else "")
