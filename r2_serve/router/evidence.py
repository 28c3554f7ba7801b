"""Judges: whether the answers that a gate has are good enough, and which of them to keep. No Ray.

A judge looks at the latest answer and at those before it. `RulesJudge` tries the kinds of evidence of a
config or a request; `FittedJudge` does the arithmetic of a fitted gate, as `r2-serve replay` does.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

from r2_serve.calls.caller import Caller, CallResult, CallSpec
from r2_serve.errors import BudgetExceeded, EngineError
from r2_serve.gates.fitted import Gate as FittedGate
from r2_serve.gates.fitted import Said, standing
from r2_serve.grading.answers import choices_offered, reader
from r2_serve.grading.equality import Comparer, equal_groups
from r2_serve.grading.executed import executed_value
from r2_serve.grading.reading import read_answer
from r2_serve.grading.sandbox import Sandbox, SandboxUnavailable
from r2_serve.prompts import Codec
from r2_serve.prompts.conversation import followed_by, tagged, without_media, without_tool_calls
from r2_serve.router.synthesis import confidence
from r2_serve.types import GraderName, Message, Sampling
from r2_serve.types.gates import (
    Agreement,
    Check,
    Checker,
    Confidence,
    Evidence,
    EvidenceKind,
    GateSpec,
    Sameness,
)

log = logging.getLogger(__name__)

CheckFunction = Callable[[str, str], object]
"""A user's own check: it takes the question and the answer and returns true or false, or awaits it."""
_CHECK = """Above is a question and an answer to it. Is the answer correct and complete?
Reply with one word first: yes or no."""
_YES = re.compile(r"(?i)\W*(yes|no)\b")


@dataclass(frozen=True)
class Heard:
    """One answer that a gate has."""

    call: CallResult

    @property
    def model(self) -> str:
        """The model that gave the answer."""
        return self.call.model

    @cached_property
    def tools(self) -> str | None:
        """The calls of tools in the answer, with equal arguments spelled alike; None if it has none."""
        choices = (self.call.completion.body or {}).get("choices")
        first = choices[0] if isinstance(choices, list) and choices else {}
        calls = first.get("message", {}).get("tool_calls") if isinstance(first, dict) else None
        if not isinstance(calls, list) or not calls:
            return None
        return json.dumps([_tool_call(call) for call in calls], sort_keys=True)

    @property
    def text(self) -> str:
        """The answer, or its calls of tools."""
        return self.tools or self.call.answer


def _tool_call(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, TypeError, RecursionError):
        arguments = function.get("arguments")
    return {"name": function.get("name"), "arguments": arguments}


@dataclass(frozen=True)
class Question:
    """What the models of a gate were asked."""

    text: str
    """The question as one text: the step's own, or the client's last message."""
    render: Callable[[Codec], list[Message]]
    """The prompt as it was sent."""
    subtask: int
    caller: Caller


class Verdict(NamedTuple):
    """What a judge says of the latest answer."""

    is_accepted: bool
    evidence: EvidenceKind
    reason: str
    kept: int
    """Place of the answer to keep, if no further model answers."""
    chance: float | None = None


@dataclass(frozen=True)
class Means:
    """What judges work with, shared by all queries of a process. All of it starts when it is first used."""

    comparer: Comparer = field(default_factory=Comparer)
    sandbox: Sandbox = field(default_factory=Sandbox)

    async def groups(
        self, by: Sameness, question: str, answers: Sequence[Heard]
    ) -> tuple[list[str | None], list[int | None]]:
        """The answers as they are compared, and the group of each; answers with calls of tools have none."""
        if by == "executed":
            values = [None if h.tools else await executed_value(self.sandbox, h.text) for h in answers]
            return values, await equal_groups("text", None, values, self.comparer)
        read = reader(by, choices_offered(question))
        found = [None if h.tools else read(h.call.completion.text) for h in answers]
        return found, await equal_groups(by, None, found, self.comparer)


class Judge(Protocol):
    """Decides about the answers of one gate."""

    @property
    def wants_confidence(self) -> bool:
        """Whether it reads the probabilities of the answers' tokens."""
        ...

    @property
    def keeps_last(self) -> bool:
        """Whether the answer of the last model is always kept, so that it may be streamed as it comes."""
        ...

    @property
    def num_needed(self) -> int:
        """Answers that it needs at least before it can accept one."""
        ...

    async def verdict(
        self, question: Question, heard: Sequence[Heard], asked: str, *, is_last: bool
    ) -> Verdict:
        """What it says of `heard`, of which the last is the answer of `asked`. At least one is heard."""
        ...


@dataclass(frozen=True)
class RulesJudge:
    """Accepts the latest answer on the first kind of evidence that holds."""

    spec: GateSpec
    means: Means
    checks: Mapping[str, CheckFunction]
    """The functions of the spec's checks, by import path."""
    keeps_last: bool = True

    @property
    def wants_confidence(self) -> bool:
        return any(isinstance(evidence, Confidence) for evidence in self.spec.accept)

    @property
    def num_needed(self) -> int:
        return min(e.votes if isinstance(e, Agreement) else 1 for e in self.spec.accept)

    async def verdict(
        self, question: Question, heard: Sequence[Heard], asked: str, *, is_last: bool
    ) -> Verdict:
        latest = len(heard) - 1
        if is_last:
            return Verdict(True, "last", "the last model needs no evidence", latest)
        reasons = []
        for evidence in self.spec.accept:
            is_good, reason = await self._try(evidence, question, heard)
            if is_good:
                return Verdict(True, evidence.kind, reason, latest)
            reasons.append(reason)
        return Verdict(False, self.spec.accept[0].kind, "; ".join(reasons), latest)

    async def _try(self, evidence: Evidence, question: Question, heard: Sequence[Heard]) -> tuple[bool, str]:
        match evidence:
            case Agreement():
                return await self._agree(evidence, question, heard)
            case Confidence():
                return _sure(evidence, heard[-1])
            case Checker():
                return await _checked(evidence, question, heard[-1])
            case Check():
                return await _passes(evidence, self.checks[evidence.function], question, heard[-1])

    async def _agree(self, rule: Agreement, question: Question, heard: Sequence[Heard]) -> tuple[bool, str]:
        latest = heard[-1]
        if len(heard) < rule.votes:
            return False, f"{rule.votes} answers are needed"
        if latest.tools is not None:
            same = [other.model for other in heard[:-1] if other.tools == latest.tools]
        else:
            try:
                _, groups = await self.means.groups(rule.by, question.text, heard)
            except SandboxUnavailable as e:
                return False, f"the code is not run: {e.message}"
            if groups[-1] is None:
                return False, f"no answer was found ({rule.by})"
            same = [h.model for h, group in zip(heard[:-1], groups[:-1], strict=True) if group == groups[-1]]
        if len(same) + 1 >= rule.votes:
            return True, f"agrees with {', '.join(same)} ({'tools' if latest.tools else rule.by})"
        return False, f"agrees with {', '.join(same) or 'no other'}"


def _sure(rule: Confidence, latest: Heard) -> tuple[bool, str]:
    found = confidence(latest.call.completion.logprobs)
    if found is None:
        return False, "no probabilities of the tokens"
    is_sure = found >= rule.at_least
    return is_sure, f"confidence {found:.3f} is {'at least' if is_sure else 'below'} {rule.at_least:g}"


async def _checked(rule: Checker, question: Question, latest: Heard) -> tuple[bool, str]:
    """The word of the checker model, in a call of its own that is reserved and settled like any other."""

    def render(codec: Codec) -> list[Message]:
        asked = without_media(without_tool_calls(question.render(codec)))
        return followed_by(asked, f"{tagged('answer_to_check', latest.text)}\n{tagged('task', _CHECK)}")

    sampling = Sampling(temperature=0.0, max_tokens=rule.max_tokens)
    spec = CallSpec(render, "check", sampling, question.subtask, is_alone=True)
    try:
        reply = await question.caller.call(rule.model, spec)
    except (EngineError, BudgetExceeded) as e:
        return False, f"{rule.model} did not check it: {type(e).__name__}"
    said = _YES.match(reply.answer) or _YES.match(read_answer(reply.answer).text)
    if said is None:
        return False, f"{rule.model} said neither yes nor no"
    return said[1].lower() == "yes", f"{rule.model} says {said[1].lower()}"


async def _passes(
    rule: Check, function: CheckFunction, question: Question, latest: Heard
) -> tuple[bool, str]:
    """The word of a user's function. One that fails or takes too long accepts nothing."""
    try:
        async with asyncio.timeout(rule.timeout_s):
            if inspect.iscoroutinefunction(function):
                passes = await function(question.text, latest.text)
            else:
                passes = await asyncio.to_thread(function, question.text, latest.text)
    except TimeoutError:
        return False, f"{rule.function} took more than {rule.timeout_s:g} s"
    except Exception as e:  # noqa: BLE001  # the function is the user's
        log.warning("check %s failed: %s", rule.function, e)
        return False, f"{rule.function} failed: {type(e).__name__}"
    return bool(passes), f"{rule.function} says {'yes' if passes else 'no'}"


@dataclass(frozen=True)
class FittedJudge:
    """Decides as the fit does: it stops where going on is worth less than the answer that leads."""

    gate: FittedGate
    grader: GraderName
    means: Means
    keeps_last: bool = False
    num_needed: int = 1

    @property
    def wants_confidence(self) -> bool:
        return self.gate.reads_confidence

    async def verdict(
        self, question: Question, heard: Sequence[Heard], asked: str, *, is_last: bool
    ) -> Verdict:
        found, groups = await self.means.groups(self.grader, question.text, heard)
        said = {
            h.model: Said(h.call.completion.text, answer, group, confidence(h.call.completion.logprobs))
            for h, answer, group in zip(heard, found, groups, strict=True)
        }
        now = standing(self.gate, question.text, said, asked)
        names = [h.model for h in heard]
        kept = names.index(now.leader) if now.leader in names else len(heard) - 1
        worth = "" if is_last else f", and going on is worth {now.worth:.3f}"
        reason = f"right with probability {now.chance:.3f}{worth}"
        is_accepted = is_last or now.stops
        return Verdict(is_accepted, "last" if is_last else "fitted", reason, kept, now.chance)


def checkers_of(accept: Iterable[Evidence]) -> list[Checker]:
    """The models that check answers."""
    return [evidence for evidence in accept if isinstance(evidence, Checker)]
