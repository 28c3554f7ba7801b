"""The client gets a right answer or one typed error in time, for every fault of a provider.

A reply that was cut is never reported as finished, and a provider is not asked more often than configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import pytest

from r2_serve.types import Trace
from tests.support import virtual_time
from tests.support.faults import (
    HARMLESS_PLAIN,
    HARMLESS_STREAMED,
    MISCONFIGURED,
    PLAIN,
    REFUSED,
    REPORTED,
    STATUS_OF,
    STREAMED,
    WITHHELD,
    Fault,
    json_reply,
)
from tests.support.hosted_stand import DEADLINE_S, RIGHT, Reply, asked, standing
from tests.support.upstream import Script

MAX_ATTEMPTS = 2
AT_ONCE = 24
LATEST_S = 1.0
"""The longest time from the deadline to the reply."""
NEVER_REST: dict[str, Any] = {"cooldown": {"first_s": 0}}


@dataclass(frozen=True)
class Case:
    """One fault and the kind of request that meets it."""

    name: str
    is_streamed: bool
    has_fallback: bool
    is_routed: bool = False
    """The fault is in one of two steps of a plan: the first for a plain reply, the last for a stream."""

    @property
    def fault(self) -> Fault:
        return (STREAMED if self.is_streamed else PLAIN)[self.name]

    @property
    def status(self) -> int:
        """The HTTP status if no other model is left. A refused inner step is no fault of the client."""
        is_inner_refusal = self.is_routed and not self.is_streamed and self.fault.code == REFUSED
        return 502 if is_inner_refusal else STATUS_OF.get(self.fault.code, 503)

    @property
    def code(self) -> str:
        """The `error.code` with it."""
        is_own = self.status < 500 or self.fault.code == MISCONFIGURED
        return "subtask_failed" if self.is_routed and not is_own else self.fault.code

    @property
    def model(self) -> str:
        return ("first" if self.has_fallback else "alone") + "-slow" * self.fault.is_slow

    @property
    def prompt(self) -> str:
        """Names the fault to the provider, alone or inside the prompt of a step."""
        return f"<<{self}, {self.model}>>"

    @property
    def request(self) -> dict[str, Any]:
        if not self.is_routed:
            return {"model": self.model}
        steps = [{"id": 1, "text": self.prompt}, {"id": 2, "text": self.prompt, "depends_on": [1]}]
        models = ("second", self.model) if self.is_streamed else (self.model, "second")
        return {"model": "r2", "plan": {"subtasks": steps}, "models": {"1": models[0], "2": models[1]}}

    def __str__(self) -> str:
        return f"{self.name}-{'streamed' if self.is_streamed else 'plain'}{'-routed' * self.is_routed}"


@dataclass(frozen=True)
class Outcome:
    reply: Reply
    num_hits: int
    num_other_hits: int
    trace: Trace


PAIRS = [(name, False) for name in PLAIN] + [(name, True) for name in STREAMED]
WITH_FALLBACK, ALONE = (
    [
        Case(*pair, has_fallback, is_routed)
        for is_routed in (False, True)
        for pair in PAIRS
        if (is_routed and not pair[1]) or pair[0] not in WITHHELD
    ]
    for has_fallback in (True, False)
)
Outcomes = dict[Case, Outcome]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """The outcomes of all cases. They run at once, as most of their time is waiting, the slow ones first."""
    return asyncio.run(
        ask_about_all(sorted([*WITH_FALLBACK, *ALONE], key=lambda case: not case.fault.is_slow))
    )


async def ask_about_all(cases: list[Case]) -> Outcomes:
    replies: dict[Case, Reply] = {}

    def script_for(request: dict[str, Any]) -> Script:
        (case,) = (case for case in cases if case.prompt in request["messages"][-1]["content"])
        return case.fault.script

    async with standing(script_for, max_attempts=MAX_ATTEMPTS, **NEVER_REST) as stand:

        async def work(waiting: Iterator[Case]) -> None:
            for case in waiting:
                replies[case] = await stand.ask(stream=case.is_streamed, text=case.prompt, **case.request)

        waiting = iter(cases)
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work(waiting))
        traces = {trace.query: trace for trace in stand.traces}
        hits = {case: [asked(at, case.prompt) for at in (stand.upstream, stand.other)] for case in cases}
    return {case: Outcome(replies[case], *hits[case], traces[case.prompt]) for case in cases}


@pytest.mark.parametrize("case", WITH_FALLBACK, ids=str)
def test_fallback_answers_when_a_provider_is_faulty(case: Case, outcomes: Outcomes) -> None:
    fault, came = case.fault, outcomes[case]
    assert came.reply.took_s < DEADLINE_S + LATEST_S
    assert came.num_hits == fault.num_hits <= MAX_ATTEMPTS
    assert came.num_hits + came.num_other_hits == len(came.trace.calls), (
        "every request to a provider is in the ledger, and nothing else is"
    )
    if fault.streamed:
        assert_cut(came.reply, case)
        assert came.num_other_hits == (1 if case.is_routed else 0), "the other step's"
    else:
        assert (came.reply.status, came.reply.text, came.reply.finish_reasons, came.reply.error) == (
            200,
            RIGHT,
            ["stop"],
            None,
        )
        assert came.num_other_hits == (2 if case.is_routed else 1)
        assert came.reply.has_done == case.is_streamed
        assert [result.answer for result in came.trace.results] == [RIGHT, RIGHT] * case.is_routed, (
            "no step reads a broken reply of another"
        )


@pytest.mark.parametrize("case", ALONE, ids=str)
def test_faulty_provider_without_fallback_gives_one_typed_error(case: Case, outcomes: Outcomes) -> None:
    fault, came = case.fault, outcomes[case]
    assert came.reply.took_s < DEADLINE_S + LATEST_S
    assert came.num_hits == fault.num_hits
    assert came.num_hits + came.num_other_hits == len(came.trace.calls)
    assert came.num_other_hits == (1 if case.is_routed and case.is_streamed else 0), (
        "no step starts after one that failed"
    )
    assert came.trace.answer is None and came.trace.error is not None
    if fault.streamed:
        assert_cut(came.reply, case)
    else:
        assert came.reply.status == case.status
        assert_typed(came.reply, case.code)


def assert_cut(reply: Reply, case: Case) -> None:
    """The reply has the text so far and then the error; nothing says that it is whole."""
    assert fnmatchcase(reply.text, case.fault.streamed)
    assert (reply.status, reply.finish_reasons, reply.has_done) == (200, [], False)
    assert_typed(reply, case.code)


def assert_typed(reply: Reply, code: str) -> None:
    assert reply.error is not None
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert fnmatchcase(reply.error["code"] or "", code)


@pytest.mark.parametrize("case", [*WITH_FALLBACK, *ALONE], ids=str)
def test_failed_call_costs_the_reported_usage_or_an_estimate_and_a_refused_call_nothing(
    case: Case, outcomes: Outcomes
) -> None:
    calls = [call for call in outcomes[case].trace.calls if call.model == case.model]
    assert len(calls) == case.fault.num_hits
    for call in calls:
        assert call.is_estimated == (case.fault.cost == "estimated")
        tokens = call.usage.prompt_tokens, call.usage.completion_tokens
        if case.fault.cost == "estimated":
            assert (
                tokens[0] >= len(case.prompt.encode()) // 4
                and tokens[1] >= (len(case.fault.streamed) + 3) // 4
            )
        else:
            assert tokens == (REPORTED if case.fault.cost == "reported" else (0, 0))
        assert (call.cost_usd == 0) == (case.fault.cost == "free")


@pytest.mark.parametrize("stream", [False, True])
async def test_routed_query_survives_a_faulty_provider(stream: bool) -> None:
    async with standing(json_reply({}, 500)) as stand:
        reply = await stand.ask(stream=stream, model="r2")
        (trace,) = stand.traces
        num_hits = len(stand.upstream.requests) + len(stand.other.requests)
    assert (reply.status, reply.text, reply.finish_reasons) == (200, RIGHT, ["stop"])
    assert {call.stage for call in trace.calls} == {"decompose", "execute"}
    assert num_hits == len(trace.calls)


HARMLESS = [(name, False) for name in HARMLESS_PLAIN] + [(name, True) for name in HARMLESS_STREAMED]


@pytest.mark.parametrize(("name", "stream"), HARMLESS)
async def test_harmless_oddity_is_answered_at_the_first_attempt(name: str, stream: bool) -> None:
    script: Script = (HARMLESS_STREAMED if stream else HARMLESS_PLAIN)[name]
    async with standing(script) as stand:
        reply = await stand.ask(stream=stream)
        assert (len(stand.upstream.requests), len(stand.other.requests)) == (1, 0)
        ((call,),) = (trace.calls for trace in stand.traces)
    assert (reply.text, reply.finish_reasons) == ("" if name == "empty text" else "four", ["stop"])
    assert reply.has_done == stream
    is_reported = name == "usage before the end" or not (stream or name == "no usage")
    assert call.is_estimated == (not is_reported), "a trace tells an estimate from what was counted"


SILENT = [
    (name, stream)
    for stream, faults in ((False, PLAIN), (True, STREAMED))
    for name in faults
    if faults[name].is_slow
]


@pytest.mark.parametrize(("name", "stream"), SILENT)
def test_deadline_ends_a_call_with_a_longer_timeout(name: str, stream: bool) -> None:
    """The clock is virtual, so that a slow machine causes no late answer."""

    async def scenario() -> Reply:
        async with standing(replace(fault.script, gap_s=0.2)) as stand:
            reply = await stand.ask(stream=stream, deadline_s=2)
            await asyncio.wait_for(stand.upstream.hung_up.wait(), LATEST_S)
        return reply

    fault = (STREAMED if stream else PLAIN)[name]
    reply = virtual_time.run_with_sockets(scenario())
    assert (reply.status, reply.error and reply.error["code"]) == (
        200 if fault.streamed else 504,
        "deadline_exceeded",
    )
    assert fnmatchcase(reply.text, fault.streamed) and not reply.finish_reasons and not reply.has_done
    assert reply.took_s < 2 + LATEST_S
