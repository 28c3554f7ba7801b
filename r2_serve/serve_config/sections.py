"""Sections of a YAML document against pydantic models: unknown keys and wrong values, each with its key and
line.

The keys come from the models themselves, ours and Ray Serve's, so that no list can fall behind. Unknown keys
are errors even if a model ignores them, as most of Ray Serve's do. This is the one reader of our YAML files:
of Serve configs, workloads, experiments, hardware and training.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from r2_serve.serve_config.document import (
    BOOL_TAG,
    FLOAT_TAG,
    Document,
    KeyPath,
    Problem,
    children,
    read_yaml,
    refusal,
    suggestion,
)
from r2_serve.wording import in_plain_words

Model = TypeVar("Model", bound=BaseModel)
Annotation = object
"""The type of a field, as pydantic has it: a class, a union, `Annotated`, a generic."""
NOT_A_MAPPING = "must be a mapping of keys to values"


@dataclass(frozen=True)
class Section:
    """A place of a document for the keys of `model`."""

    model: type[BaseModel]
    path: KeyPath
    node: yaml.Node
    is_loose: bool = False
    """True if the enclosing model takes any mapping here, so that it does not check the values."""


def read_file(path: Path, model: type[Model]) -> Model:
    """The YAML file at `path` as a `model`.

    Raises: ConfigError, which lists every error with its line, or says why the file cannot be read.
    """
    document = read_yaml(path)
    if isinstance(document, Problem):
        raise refusal(path, [document])
    section, problems = read_section(document, model, ())
    problems = [*document.problems, *problems]
    if section is None or problems:
        raise refusal(path, problems)
    return section


def read_section(document: Document, model: type[Model], path: KeyPath) -> tuple[Model | None, list[Problem]]:
    """The section at `path` as a `model` (None if a value is wrong), and its problems. Unknown keys are left
    out."""
    if document.node(path) is None:
        return None, [document.problem("error", path, "missing")]
    problems = key_problems(document, model, path) + number_problems(document, model, path)
    try:
        return model.model_validate(_without_unknown_keys(document, model, path)), problems
    except ValidationError as e:
        known = {problem.where for problem in problems}
        wrong = value_problems(document, path, e)
        return None, problems + [problem for problem in wrong if problem.where not in known]


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
    """The errors of the values under `path`, without unknown keys, which `key_problems` reports."""
    return [
        document.problem("error", _path_of(document, path, details), _message(details))
        for details in error.errors(include_url=False)
        if details["type"] != "extra_forbidden" and not _is_echo(details)
    ]


def sections(document: Document, model: type[BaseModel], path: KeyPath) -> Iterator[Section]:
    """Every section under `path`, which is a `model`, outer ones first."""
    for place in _places_under(document, model, path):
        section_model = _model_for([option for option in place.options if _is_model(option)], place.node)
        if section_model is not None and (
            isinstance(place.node, yaml.MappingNode) or len(place.options) == 1
        ):
            is_loose = any((get_origin(option) or option) is dict for option in place.options)
            yield Section(section_model, place.path, place.node, is_loose)


def number_problems(document: Document, model: type[BaseModel], path: KeyPath) -> list[Problem]:
    """Yes, no, true, false, infinity and "not a number" under `path` where `model` wants a number.

    Pydantic would take `yes`, which YAML reads as true, for 1.
    """
    found = []
    for place in _places_under(document, model, path):
        if not isinstance(place.node, yaml.ScalarNode) or not _is_number(place.options):
            continue
        if place.node.tag == BOOL_TAG:
            message = f"got {place.node.value}, which YAML reads as true or false: expected a number"
            found.append(document.problem("error", place.path, message))
        elif place.node.tag == FLOAT_TAG and place.node.value.lower().lstrip("+-") in (".inf", ".nan"):
            message = f"got {place.node.value}, expected a finite number"
            found.append(document.problem("error", place.path, message))
    return found


@dataclass(frozen=True)
class _Place:
    """A node, and the types that its value may have."""

    options: list[Annotation]
    node: yaml.Node
    path: KeyPath


def _places_under(document: Document, model: type[BaseModel], path: KeyPath) -> Iterator[_Place]:
    node = document.node(path)
    if node is not None:
        yield from _places(model, node, path)


def _places(annotation: Annotation, node: yaml.Node, path: KeyPath) -> Iterator[_Place]:
    options = _options(annotation)
    yield _Place(options, node, path)
    model = _model_for([option for option in options if _is_model(option)], node)
    if model is not None and isinstance(node, yaml.MappingNode):
        for key, (_, value) in children(node).items():
            if key in model.model_fields:
                yield from _places(model.model_fields[key].annotation, value, (*path, key))
    for option in options:
        yield from _places_of_items(option, node, path)


def _places_of_items(option: Annotation, node: yaml.Node, path: KeyPath) -> Iterator[_Place]:
    origin, arguments = get_origin(option), get_args(option)
    if not arguments:
        return
    if origin in (list, tuple) and isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _places(arguments[0], item, (*path, index))
    if origin is dict and isinstance(node, yaml.MappingNode):
        for key, (_, value) in children(node).items():
            yield from _places(arguments[1], value, (*path, key))


def _is_number(options: list[Annotation]) -> bool:
    """Whether a value must be a number, or may be one and may be no truth value."""
    types_of = [option for option in options if isinstance(option, type)]
    return bool not in types_of and any(issubclass(option, int | float | Decimal) for option in types_of)


def _options(annotation: Annotation) -> list[Annotation]:
    """The members of a union, flat; the annotation itself if it is none."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return [annotation]


def _is_model(option: Annotation) -> TypeGuard[type[BaseModel]]:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _model_for(models: list[type[BaseModel]], node: yaml.Node) -> type[BaseModel] | None:
    """The one model that `node` can be, chosen by `kind` if there are several, or by a key `provider`."""
    if len(models) > 1 and isinstance(node, yaml.MappingNode):
        kind = children(node).get("kind", (None, None))[1]
        if kind is None and "provider" in children(node):
            models = [model for model in models if "provider" in model.model_fields]
        else:
            models = [model for model in models if kind is not None and kind.value in _kinds(model)]
    return models[0] if len(models) == 1 else None


def _kinds(model: type[BaseModel]) -> tuple[object, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def _key_problems(document: Document, section: Section) -> Iterator[Problem]:
    if isinstance(section.node, yaml.MappingNode):
        yield from unknown_keys(document, section.path, section.model.model_fields)
    else:
        yield document.problem("error", section.path, NOT_A_MAPPING)


def _without_unknown_keys(document: Document, model: type[BaseModel], path: KeyPath) -> object:
    """So that one unknown key does not hide what else is wrong."""
    value = copy.deepcopy(document.value(path))
    for section in sections(document, model, path):
        place = value
        for key in section.path[len(path) :]:
            place = place[key]
        for key in set(place) - set(section.model.model_fields) if isinstance(place, dict) else ():
            del place[key]
    return value


def _is_echo(details: ErrorDetails) -> bool:
    """Whether pydantic calls a collection too short only because its items are wrong."""
    return bool(details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"])


def _path_of(document: Document, path: KeyPath, details: ErrorDetails) -> KeyPath:
    """`path` and the keys of the error's location, of which pydantic puts some that are names of union
    members."""
    location = details["loc"]
    for key in location:
        if document.node((*path, key)) is not None:
            path = (*path, key)
    return (*path, location[-1]) if details["type"] == "missing" else path


def _message(details: ErrorDetails) -> str:
    """Pydantic's message, with a suggestion where it lists what is allowed. Never the input itself, which may
    be a secret."""
    message = str(details["msg"]).removeprefix("Value error, ")
    context = details.get("ctx", {})
    allowed = re.findall(r"'([^']*)'", str(context.get("expected_tags") or context.get("expected") or ""))
    if details["type"] == "union_tag_invalid":
        return f"unknown {context['discriminator'].strip(chr(39))}{suggestion(str(context['tag']), allowed)}"
    if details["type"] == "missing":
        return "missing"
    close = suggestion(str(details.get("input")), allowed)
    return in_plain_words(details["type"], message) + (close if close.startswith("; did") else "")
