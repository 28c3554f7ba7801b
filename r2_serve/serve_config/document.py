"""A YAML file with the line of every key: what a validator needs to say where it hurts.

Only plain data comes out (the safe loader, as in `serve deploy`). A key that stands twice in one mapping is a problem
here, where YAML readers silently keep the last, and so is one that is not text, such as `on` or `1`. What keys mean is
not known here: `r2_serve.serve_config.sections`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from r2_serve.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a file, such as `("applications", 3, "args")`."""
TEXT_TAG, MERGE_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a file. `error`: it must not be deployed; `warning`: it may well be a mistake."""

    severity: Severity
    where: str
    """The key at fault, such as `applications[3].deployments[0].max_ongoing_request`; empty for the file itself."""
    line: int
    """Counted from 1."""
    message: str

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"line {self.line}: {self.severity}: {place}{self.message}"


@dataclass(frozen=True)
class Document:
    """A file that is a YAML mapping."""

    root: yaml.MappingNode
    raw: dict[str, Any]
    lines: tuple[str, ...]
    problems: tuple[Problem, ...]
    """Keys that stand twice, and keys that are not text."""

    def node(self, path: KeyPath) -> yaml.Node | None:
        """The node at `path`, None where there is none."""
        node: yaml.Node | None = self.root
        for key in path:
            node = _step(node, key)[1]
        return node

    def value(self, path: KeyPath) -> Any:
        """The plain data at `path`. Raises: LookupError."""
        value: Any = self.raw
        for key in path:
            value = value[key]
        return value

    def line(self, path: KeyPath) -> int:
        """Where the key at `path` stands, or else the deepest part of `path` that exists."""
        node: yaml.Node | None = self.root
        line = 0
        for key in path:
            marked, node = _step(node, key)
            if marked is None:
                break
            line = marked.start_mark.line
        return line + 1

    def problem(self, severity: Severity, path: KeyPath, message: str) -> Problem:
        return Problem(severity, path_text(path), self.line(path), message)


def read_yaml(path: Path) -> Document | Problem:
    """The file at `path`, or why it is no YAML mapping. Raises: ConfigError where it cannot be read at all."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read {path}: {e}") from e


def parse_yaml(text: str) -> Document | Problem:
    """`text` as a document, or why it is no YAML mapping."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            return Problem("error", "", 1, "the file must be a mapping of keys to values")
        problems = tuple(_prepare(root, (), loader, ()))
        return Document(root, loader.construct_document(root), tuple(text.splitlines()), problems)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        return Problem("error", "", mark.line + 1 if mark else 1, f"not valid YAML: {e.problem or e.context}")
    except yaml.YAMLError as e:
        return Problem("error", "", 1, f"not valid YAML: {e}")
    finally:
        loader.dispose()


def refusal(path: Path, problems: Collection[Problem]) -> ConfigError:
    """What is raised for a file with `problems`: all of them, in the order of its lines."""
    ordered = sorted(set(problems), key=lambda problem: (problem.line, problem.where, problem.message))
    return ConfigError(
        "\n".join([f"{path}: {len(ordered)} error(s)", *(f"  {problem}" for problem in ordered)])
    )


def children(node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Key node and value node by key, in order."""
    return {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}


def path_text(path: KeyPath) -> str:
    """`applications[3].args` for `("applications", 3, "args")`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or which names there are where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def _step(node: yaml.Node | None, key: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    """The node that marks the place of `key` in `node`, and the node of its value."""
    if isinstance(node, yaml.MappingNode):
        return children(node).get(str(key), (None, None))
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    return None, None


def _prepare(
    node: yaml.Node, path: KeyPath, loader: yaml.SafeLoader, parents: tuple[int, ...]
) -> Iterator[Problem]:
    """Reports what is wrong with keys and merges `<<`, depth first. Raises: ComposerError where a node contains itself."""
    if id(node) in parents:
        raise yaml.composer.ComposerError(None, None, "a value contains itself", node.start_mark)
    parents = (*parents, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _prepare(item, (*path, index), loader, parents)
    elif isinstance(node, yaml.MappingNode):
        yield from _repeated_keys(node, path)
        yield from _keys_as_text(node, path)
        for key, value in node.value:
            yield from _prepare(value, (*path, str(key.value)), loader, parents)
        loader.flatten_mapping(node)


def _keys_as_text(node: yaml.MappingNode, path: KeyPath) -> Iterator[Problem]:
    """Reports keys that YAML takes for a number, a date or yes and no, and makes them text for what reads them next."""
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag not in (TEXT_TAG, MERGE_TAG):
            key.tag = TEXT_TAG
            yield Problem(
                "error",
                path_text((*path, key.value)),
                key.start_mark.line + 1,
                f"the key is not text to YAML: write {key.value!r}",
            )


def _repeated_keys(node: yaml.MappingNode, path: KeyPath) -> Iterator[Problem]:
    first_lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in first_lines:
            message = f"the key stands twice (first on line {first_lines[key.value]}); readers would keep this one only"
            yield Problem("error", path_text((*path, key.value)), line, message)
        first_lines.setdefault(key.value, line)
