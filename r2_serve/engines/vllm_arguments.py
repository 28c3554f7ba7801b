"""The environment of vLLM, and the names of its engine arguments.

The names are a list from the pinned version, as the base install has no vLLM.

`python -m r2_serve.engines.vllm_arguments` writes the list anew from the source of the installed vLLM.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LIST = Path(__file__).with_name("vllm_arguments.txt")
"""Fields of `AsyncEngineArgs` of the pinned vLLM, one a line."""
ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # vLLM's default sampler compiles itself with nvcc and g++
    "VLLM_NO_USAGE_STATS": "1",  # vLLM would report its use to its makers
}
"""Variables of every process that runs vLLM, unless the operator has set them."""
_CLASSES = ("EngineArgs", "AsyncEngineArgs")


@cache
def known_arguments() -> frozenset[str]:
    """The names that `engine_kwargs` may hold."""
    return frozenset(LIST.read_text(encoding="utf-8").split())


def installed_arguments() -> list[str]:
    """The names in the source of the installed vLLM, sorted, as importing vLLM takes seconds.

    Raises: ModuleNotFoundError without vLLM.
    """
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("vllm is not installed")
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in _CLASSES)
    return sorted(
        field.target.id
        for found in classes
        for field in found.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


if __name__ == "__main__":
    LIST.write_text("\n".join(installed_arguments()) + "\n", encoding="utf-8")
