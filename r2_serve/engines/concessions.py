"""What the router gives up where a model refuses it, and asks again: the system role, its own temperature.

A temperature that the client chose is not given up: the refusal is passed on. The router's own steps ask for
greedy decoding, which reasoning models and the newer models of Anthropic do not take.
"""

from __future__ import annotations

import re
from collections.abc import Set
from http import HTTPStatus
from typing import Literal

from r2_serve.engines.roles import has_instructions, is_role_refusal, without_instruction_roles
from r2_serve.errors import EngineError
from r2_serve.types import EngineCall, Json

Concession = Literal["system role", "temperature"]
_TEMPERATURE = re.compile(r"\b(temperature|top_p)\b")


def concession_for(status: int, failure: EngineError, call: EngineCall) -> Concession | None:
    """What the provider refuses in `call` that can be left out; None if there is no such thing."""
    if status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
        return None
    if has_instructions(call.messages) and is_role_refusal(failure.message):
        return "system role"
    is_ours = call.sampling.temperature is not None and not call.is_verbatim
    is_refused = failure.param == "temperature" or _TEMPERATURE.search(failure.message)
    return "temperature" if is_ours and is_refused else None


def conceded(call: EngineCall, given_up: Set[Concession]) -> EngineCall:
    """`call` without what is given up; a client's own temperature stays."""
    changes: Json = {}
    if "system role" in given_up:
        changes["messages"] = tuple(without_instruction_roles(call.messages))
    if "temperature" in given_up and not call.is_verbatim:
        changes["sampling"] = call.sampling.model_copy(update={"temperature": None})
    return call.model_copy(update=changes) if changes else call
