"""The parsers that the installed vLLM knows, read from its source, as importing vLLM takes seconds."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

REGISTRIES = {
    "tool_parser": ("tool_parsers", "_TOOL_PARSERS_TO_REGISTER"),
    "reasoning_parser": ("reasoning", "_REASONING_PARSERS_TO_REGISTER"),
}
"""Package of vLLM and name of its dictionary of parsers, by our setting."""


@cache
def known_parsers(setting: str) -> frozenset[str]:
    """Names that `setting` may have. Empty if vLLM is not installed or keeps its parsers in another way."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    package, registry = REGISTRIES[setting]
    source = Path(spec.origin).parent / package / "__init__.py"
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    return frozenset(name for node in tree.body for name in _names(node, registry))


def _names(node: ast.stmt, registry: str) -> list[str]:
    """The keys of the dictionary called `registry` if `node` makes it."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    if not any(isinstance(target, ast.Name) and target.id == registry for target in targets):
        return []
    keys = node.value.keys if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) else []
    return [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
