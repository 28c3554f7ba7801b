"""Functions and classes that a Serve config names by import path, such as an autoscaling policy.

Ray imports them as soon as it reads them, in the process that deploys, and calls them in Serve's controller,
whose log alone says what failed. So `r2-serve validate` imports them first.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

from r2_serve.config.imported import imported
from r2_serve.errors import ConfigError
from r2_serve.serve_config.document import Document, KeyPath, Problem, YamlMapping

IMPORTED_KEYS = ("policy_function", "request_router_class")
"""Keys whose value Ray imports."""
OUR_OWN = ("args", "user_config")
"""Sections in which these keys would mean something else."""


def import_problems(document: Document) -> Iterator[Problem]:
    """Import paths in `document` that cannot be imported here, or that Ray could not call."""
    for path, fault in import_faults(document.raw):
        yield document.problem("error", path, fault)


def import_faults(raw: YamlMapping) -> Iterator[tuple[KeyPath, str]]:
    """Place of each such import path in the data of a Serve config, and what is wrong with it."""
    for path, import_path, options in _imports(raw, ()):
        fault = _fault(import_path, options if path[-1] == "policy_function" else None)
        if fault is not None:
            yield path, fault


def without_imports(value: object) -> object:
    """A copy without import paths, so that checking it against Ray's schema runs no code."""
    if isinstance(value, dict):
        return {key: without_imports(item) for key, item in value.items() if key not in IMPORTED_KEYS}
    return [without_imports(item) for item in value] if isinstance(value, list) else value


def _imports(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, str, Mapping[str, object]]]:
    """Place, import path, and `policy_kwargs` of each."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in IMPORTED_KEYS and isinstance(item, str):
                kwargs = value.get("policy_kwargs")
                yield (*path, key), item, kwargs if isinstance(kwargs, dict) else {}
            elif key not in OUR_OWN:
                yield from _imports(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _imports(item, (*path, index))


def _fault(import_path: str, policy_kwargs: Mapping[str, object] | None) -> str | None:
    """Why Ray cannot use `import_path`; `policy_kwargs` are those of a policy, None for another class."""
    try:
        found = imported(import_path)
    except ConfigError as e:
        return e.message
    return _call_fault(found, policy_kwargs) if policy_kwargs is not None else None


def _call_fault(policy: object, kwargs: Mapping[str, object]) -> str | None:
    """Why Ray could not call `policy`: a class is made with `policy_kwargs`, a function gets one
    AutoscalingContext."""
    assert callable(policy)
    try:
        signature = inspect.signature(policy)
    except (TypeError, ValueError):  # of a builtin, which has none to look at
        return None
    try:
        if inspect.isclass(policy):
            signature.bind(**kwargs)
        else:
            signature.bind(object())
    except TypeError as e:
        wanted = (
            "policy_kwargs do not fit" if inspect.isclass(policy) else "it must take one AutoscalingContext"
        )
        return f"Ray cannot call it: {wanted} ({e})"
    return None
