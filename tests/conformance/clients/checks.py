"""Shared by the clients: the address of the endpoint, and one JSON line per check on standard output."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable

BASE_URL, KEY, SPENT_KEY = os.environ["R2_BASE_URL"], os.environ["R2_KEY"], os.environ["R2_SPENT_KEY"]
ANSWER = "The whole answer of six words."
HI = [{"role": "user", "content": "Which is it?"}]


def check(name: str, claim: Callable[[], object]) -> None:
    """Runs `claim`, which raises where it does not hold, and may say how much it saw."""
    try:
        seen = claim()
        outcome = {"check": name, "outcome": "ok", "detail": seen if isinstance(seen, str) else ""}
    except BaseException as e:
        traceback.print_exc()
        outcome = {"check": name, "outcome": "failed", "detail": f"{type(e).__name__}: {e}"[:300]}
    print("R2-CHECK " + json.dumps(outcome), flush=True)


def not_offered(*names: str) -> None:
    """The client has no such function."""
    for name in names:
        print("R2-CHECK " + json.dumps({"check": name, "outcome": "not offered by the client"}), flush=True)


def raised(
    kind: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], object]
) -> BaseException:
    try:
        call()
    except kind as e:
        return e
    raise AssertionError(f"no {kind} was raised")
