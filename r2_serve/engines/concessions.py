"""What is left out where a model refuses it, and asked again: the system role, our own temperature, labels.

A temperature that the client chose is not given up: the refusal is passed on. The router's own steps ask for
greedy decoding, which reasoning models and the newer models of Anthropic do not take. Labels such as `user`
cannot change the reply, and agents send them without knowing which provider will answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from http import HTTPStatus
from typing import Literal

from r2_serve.engines.roles import has_instructions, is_role_refusal, without_instruction_roles
from r2_serve.errors import EngineError
from r2_serve.types import EngineCall, Json
from r2_serve.types.abilities import LABELS

Concession = Literal["system role", "temperature", "labels"]
_TEMPERATURE = re.compile(r"\b(temperature|top_p)\b")


def concession_for(status: int, failure: EngineError, call: EngineCall) -> Concession | None:
    """What the provider refuses in `call` that can be left out; None if there is no such thing."""
    if status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
        return None
    if has_instructions(call.messages) and is_role_refusal(failure.message):
        return "system role"
    if (labels := LABELS & call.sampling.forwarded.keys()) and _names(failure, labels):
        return "labels"
    is_ours = call.sampling.temperature is not None and not call.is_verbatim
    is_refused = failure.param == "temperature" or _TEMPERATURE.search(failure.message)
    return "temperature" if is_ours and is_refused else None


def _names(failure: EngineError, labels: Iterable[str]) -> bool:
    """Whether a refusal is about one of `labels`; a word such as "user" has to stand in quotes."""
    words = {name: name if "_" in name else rf"""['"`]{name}['"`]""" for name in labels}
    return any(failure.param == name or re.search(words[name], failure.message) for name in labels)


def conceded(call: EngineCall, given_up: Set[Concession]) -> EngineCall:
    """`call` without what is given up; a client's own temperature stays."""
    changes: Json = {}
    if "system role" in given_up:
        changes["messages"] = tuple(without_instruction_roles(call.messages))
    sampling: Json = {}
    if "temperature" in given_up and not call.is_verbatim:
        sampling["temperature"] = None
    if "labels" in given_up:
        kept = {k: value for k, value in call.sampling.forwarded.items() if k not in LABELS}
        sampling["forwarded"] = kept
    if sampling:
        changes["sampling"] = call.sampling.model_copy(update=sampling)
    return call.model_copy(update=changes) if changes else call
