"""A YAML file with the line of every key, which a validator needs to say where a fault is.

Only plain data comes out (the safe loader, as in `serve deploy`), with one difference: `2e-5` is a number,
which YAML 1.1 reads as text. A key that stands twice in one mapping is a problem here, where YAML readers
silently keep the last one, and so is a key that is not text, such as `on` or `1`.
`r2_serve.serve_config.sections` knows what keys mean.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import yaml

from r2_serve.errors import ConfigError, counted
from r2_serve.files import encoding_fault

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a file, such as `("applications", 3, "args")`."""
YamlMapping = dict[str, Any]
"""A YAML mapping as plain data."""
TAG = "tag:yaml.org,2002:"
TEXT_TAG, MERGE_TAG, BOOL_TAG, FLOAT_TAG = f"{TAG}str", f"{TAG}merge", f"{TAG}bool", f"{TAG}float"
EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
"""Numbers that YAML 1.1 reads as text, as they have no dot."""
MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1_000_000, 64, 100_000
"""Bounds of a config file. Its largest part is a list of models; a file beyond these bounds is a mistake or
an attack (aliases can make a few lines stand for billions of values), and would take minutes to read."""
Severity = Literal["error", "warning"]


class _Loader(yaml.SafeLoader):
    """Plain data, with every number that has an exponent."""


_Loader.add_implicit_resolver(FLOAT_TAG, EXPONENT, list("-+0123456789"))


@dataclass(frozen=True)
class Problem:
    """One fault of a file. `error`: the file must not be deployed; `warning`: it may well be a mistake."""

    severity: Severity
    where: str
    """The key at fault, such as `applications[3].deployments[0].max_ongoing_request`; empty for the file
    itself."""
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
    raw: YamlMapping
    lines: tuple[str, ...]
    problems: tuple[Problem, ...]
    """Keys that stand twice, and keys that are not text."""

    def node(self, path: KeyPath) -> yaml.Node | None:
        """The node at `path`, None if there is none."""
        node: yaml.Node | None = self.root
        for key in path:
            node = _step(node, key)[1]
        return node

    def value(self, path: KeyPath) -> Any:
        """The plain data at `path`. Raises: LookupError."""
        value: object = self.raw
        for key in path:
            value = value[key]  # type: ignore[index]
        return value

    def line(self, path: KeyPath) -> int:
        """The line of the key at `path`, or of the deepest part of `path` that exists."""
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
    """The file at `path`, or why it is no YAML mapping. Raises: ConfigError if it cannot be read at all."""
    return parse_yaml(read_text(path))


def parse_yaml(text: str) -> Document | Problem:
    """`text` as a document, or why it is no YAML mapping."""
    try:
        return _parsed(text)
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        return _unreadable(f"the character {chr(e.character)!r} is not allowed in YAML", line)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        return _unreadable(str(e.problem or e.context), mark.line + 1 if mark else 1)
    except yaml.YAMLError as e:
        return _unreadable(str(e), 1)
    except RecursionError:
        return _unreadable(f"values are nested deeper than {MAX_DEPTH} levels", 1)


def read_text(path: Path) -> str:
    """The text of a regular file in UTF-8, at most MAX_BYTES long. Raises: ConfigError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe without a writer would block for ever
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise ConfigError(f"cannot read {path}: it is {kind}; name a YAML file")
        if status.st_size > MAX_BYTES:
            raise ConfigError(
                f"cannot read {path}: {status.st_size} bytes, and a config has at most {MAX_BYTES}"
            )
        data = path.read_bytes()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise ConfigError(f"cannot read {path}: {reason}") from e
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"cannot read {path}: {encoding_fault(e)}") from e


def _parsed(text: str) -> Document | Problem:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            got = (
                "nothing"
                if root is None
                else "a list"
                if isinstance(root, yaml.SequenceNode)
                else "one value"
            )
            return Problem("error", "", 1, f"the file must be a mapping of keys to values; it holds {got}")
        problems = tuple(_prepare(root, (), loader, (), count(1)))
        try:
            raw = loader.construct_document(root)
        except (ValueError, LookupError, TypeError, AttributeError) as e:  # such as 2026-02-31, or `!!bool x`
            return _unreadable(f"a value is not what it looks like or is tagged as: {e}", 1)
        return Document(root, raw, tuple(text.split("\n")), problems)
    finally:
        loader.dispose()


def _unreadable(reason: str, line: int) -> Problem:
    hint = "; indent with spaces, not with tabs" if "'\\t'" in reason else ""
    return Problem("error", "", line, f"not valid YAML: {' '.join(reason.split())}{hint}")


def refusal(path: Path, problems: Collection[Problem]) -> ConfigError:
    """The error for a file with `problems`: it lists all of them, in the order of the lines."""
    ordered = sorted(set(problems), key=lambda problem: (problem.line, problem.where, problem.message))
    return ConfigError(
        "\n".join([f"{path}: {counted(len(ordered), 'error')}", *(f"  {problem}" for problem in ordered)])
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
    node: yaml.Node, path: KeyPath, loader: yaml.SafeLoader, parents: tuple[int, ...], numbers: Iterator[int]
) -> Iterator[Problem]:
    """Reports faults of keys and merges `<<`, depth first.

    Raises: ComposerError if a node contains itself, or aliases or levels make too much of it.
    """
    fault = None
    if id(node) in parents:
        fault = "a value contains itself"
    elif len(parents) > MAX_DEPTH:
        fault = f"values are nested deeper than {MAX_DEPTH} levels"
    elif next(numbers) > MAX_VALUES:
        fault = f"aliases (*name) make more than {MAX_VALUES} values of it"
    if fault is not None:
        raise yaml.composer.ComposerError(None, None, fault, node.start_mark)
    parents = (*parents, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _prepare(item, (*path, index), loader, parents, numbers)
    elif isinstance(node, yaml.MappingNode):
        yield from _repeated_keys(node, path)
        yield from _keys_as_text(node, path)
        for key, value in node.value:
            yield from _prepare(value, (*path, str(key.value)), loader, parents, numbers)
        loader.flatten_mapping(node)


def _keys_as_text(node: yaml.MappingNode, path: KeyPath) -> Iterator[Problem]:
    """Reports keys that YAML takes for a number, a date or yes and no, and makes them text for what reads
    them next."""
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
            first = f"first on line {first_lines[key.value]}"
            message = f"the key stands twice ({first}); readers would keep this one only"
            yield Problem("error", path_text((*path, key.value)), line, message)
        first_lines.setdefault(key.value, line)
