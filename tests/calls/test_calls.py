"""The one retry loop: who is asked, how often, how long it waits, and what it costs."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest

from r2_serve.calls.budget import Budget
from r2_serve.calls.caller import Caller, CallResult, CallSpec
from r2_serve.calls.ledger import Ledger
from r2_serve.config import LimitsConfig, SpeedConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import (
    BudgetExceeded,
    EngineError,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    InvalidReply,
)
from r2_serve.types import Completion, Delta, EngineCall, Sampling, Usage
from tests.support.in_process import model, pool_of, user
from tests.support.virtual_time import now_s, run

ROOMY = Budget(max_calls=100, max_tokens=100_000)
DOWN, REFUSED = EngineUnavailable("down"), EngineRefused("prompt too long")


class Streaming:
    """An engine that streams the script: deltas, an error, or `None` to hang. It notes when it is closed."""

    def __init__(self, *script: Delta | BaseException | None) -> None:
        self.script = script
        self.is_closed = False

    async def generate(self, call: EngineCall) -> Completion:
        raise NotImplementedError

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        try:
            for item in self.script:
                if item is None:
                    await asyncio.sleep(1_000_000)
                elif isinstance(item, Delta):
                    yield item
                else:
                    raise item
        finally:
            self.is_closed = True


class Calls:
    """A caller over engines by name, the first with `fallbacks`; backoff without jitter."""

    def __init__(
        self,
        *,
        budget: Budget = ROOMY,
        max_attempts: int = 2,
        fields: dict[str, Any] | None = None,
        **engines: Any,
    ) -> None:
        first, *others = engines
        cards = {
            first: model(first, fallbacks=tuple(others), **(fields or {})),
            **{name: model(name) for name in others},
        }
        self.first, self.engines = first, engines
        self.ledger = Ledger(budget)
        self.caller = Caller(
            pool_of(*((cards[n], e) for n, e in engines.items())),
            self.ledger,
            LimitsConfig(max_attempts=max_attempts),
            uniform=lambda: 1.0,
        )
        self.pieces: list[str] = []

    async def ask(self, *, is_streamed: bool = False, **fields: Any) -> CallResult:
        async def forward(piece: Delta) -> None:
            self.pieces.append(piece.text)

        spec = CallSpec(
            render=lambda codec: list(user("a b c")),
            stage="execute",
            on_delta=forward if is_streamed else None,
            **fields,
        )
        return await self.caller.call(self.first, spec)

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(call.model, call.outcome) for call in self.ledger.calls]

    def assert_nothing_is_reserved(self) -> None:
        """What is left of the budget is what the calls that ended have left of it."""
        fresh = Ledger(self.ledger.allowance.budget)
        fresh.absorb(self.ledger.calls)
        assert self.ledger.allowance.remaining() == fresh.allowance.remaining()


def test_call_that_may_succeed_later_is_tried_again() -> None:
    calls = Calls(small=ScriptedEngine([DOWN, "yes"]))
    result = run(calls.ask())
    assert (result.answer, result.model, result.num_attempts) == ("yes", "small", 2)
    assert calls.outcomes == [("small", "failed"), ("small", "ok")]
    calls.assert_nothing_is_reserved()


def test_refused_call_goes_straight_to_the_fallback() -> None:
    calls = Calls(small=ScriptedEngine([REFUSED]), large=ScriptedEngine(["yes"]))
    result = run(calls.ask())
    assert (result.answer, result.model) == ("yes", "large")
    assert calls.outcomes == [("small", "failed"), ("large", "ok")]
    assert calls.ledger.calls[0].cost_usd == 0
    calls.assert_nothing_is_reserved()


def test_most_telling_error_is_raised_when_every_attempt_fails() -> None:
    nonsense = InvalidReply("an HTML page")
    calls = Calls(small=ScriptedEngine([DOWN]), large=ScriptedEngine([DOWN, nonsense]))
    with pytest.raises(EngineUnavailable):
        run(calls.ask())
    assert calls.outcomes == [("small", "failed")] * 2 + [("large", "failed")] * 2
    calls.assert_nothing_is_reserved()


async def seconds_of(calls: Calls) -> float:
    await calls.ask()
    return now_s()


@pytest.mark.parametrize(
    ("retry_after_s", "waited_s", "answered_by"),
    [(None, 0.25, "small"), (0.0, 0.0, "small"), (3.0, 3.0, "small"), (3600.0, 0.0, "large")],
)
def test_requested_wait_is_kept_unless_the_fallback_is_quicker(
    retry_after_s: float | None, waited_s: float, answered_by: str
) -> None:
    calls = Calls(
        small=ScriptedEngine([EngineUnavailable("busy", retry_after_s), "yes"]), large=ScriptedEngine(["yes"])
    )
    assert run(seconds_of(calls)) == pytest.approx(waited_s)
    assert calls.outcomes[-1] == (answered_by, "ok")


def test_backoff_doubles_up_to_its_limit() -> None:
    calls = Calls(max_attempts=8, small=ScriptedEngine([*[DOWN] * 7, "yes"]))
    assert run(seconds_of(calls)) == pytest.approx(0.25 + 0.5 + 1 + 2 + 4 + 4 + 4)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_hanging_model_is_abandoned_after_its_own_timeout(is_streamed: bool) -> None:
    class Hanging(Streaming):
        async def generate(self, call: EngineCall) -> Completion:
            return await asyncio.Future()

    # asked once of three times: the same model would take as long again
    calls = Calls(max_attempts=3, fields={"timeout_s": 5}, small=Hanging(None), large=ScriptedEngine(["yes"]))
    result = run(calls.ask(is_streamed=is_streamed))
    assert result.model == "large"
    assert [(c.error, c.is_estimated) for c in calls.ledger.calls] == [
        ("EngineTimeout", True),
        (None, False),
    ], "asked once: it would take as long again"
    calls.assert_nothing_is_reserved()


def test_engine_that_cancels_its_own_work_is_unavailable() -> None:
    class Dying(Streaming):
        async def generate(self, call: EngineCall) -> Completion:
            reply: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
            reply.cancel()
            return await reply

    calls = Calls(small=Dying(), large=ScriptedEngine(["yes"]))
    assert run(calls.ask()).model == "large"


def test_pieces_are_forwarded_as_they_arrive() -> None:
    calls = Calls(small=ScriptedEngine(["one two three"]))
    result = run(calls.ask(is_streamed=True))
    assert calls.pieces == ["one", " two", " three"]
    assert result.completion == Completion(
        text="one two three", usage=Usage(prompt_tokens=3, completion_tokens=3), finish_reason="stop"
    )


def test_stream_that_fails_before_its_first_word_is_tried_again() -> None:
    calls = Calls(small=ScriptedEngine([DOWN, "yes"]))
    assert run(calls.ask(is_streamed=True)).answer == "yes"
    assert calls.pieces == ["yes"]


@pytest.mark.parametrize("failure", [DOWN, REFUSED, None])
def test_stream_is_not_retried_after_its_first_word(failure: EngineError | None) -> None:
    """`None`: the stream just ends, without a finish reason."""
    script = [Delta(text="Once upon"), *([failure] if failure else [])]
    calls = Calls(small=Streaming(*script), large=ScriptedEngine(["yes"]))
    with pytest.raises(type(failure) if failure else InvalidReply):
        run(calls.ask(is_streamed=True))
    assert calls.pieces == ["Once upon"]
    assert calls.outcomes == [("small", "failed")]
    calls.assert_nothing_is_reserved()


def test_interrupted_stream_costs_what_had_arrived() -> None:
    calls = Calls(max_attempts=1, small=Streaming(Delta(text="x" * 40), DOWN))
    with pytest.raises(EngineUnavailable):
        run(calls.ask(is_streamed=True))
    (record,) = calls.ledger.calls
    assert (record.usage.completion_tokens, record.is_estimated) == (10, True)


@pytest.mark.parametrize("usage", [None, Usage(prompt_tokens=9, completion_tokens=9)])
def test_usage_of_a_complete_stream_without_a_token_count_is_estimated(usage: Usage | None) -> None:
    end = Delta(finish_reason="stop", usage=usage, is_usage_estimated=usage is not None)
    calls = Calls(small=Streaming(Delta(text="x" * 40), end))
    assert run(calls.ask(is_streamed=True)).answer == "x" * 40
    (record,) = calls.ledger.calls
    assert (record.outcome, record.usage, record.is_estimated) == (
        "ok",
        usage or Usage(prompt_tokens=2, completion_tokens=10),
        True,
    )


def test_stream_cancelled_after_it_reported_usage_costs_that_usage() -> None:
    reported = Usage(prompt_tokens=70, completion_tokens=20)
    calls = Calls(small=Streaming(Delta(text="four"), Delta(usage=reported), None))

    async def check() -> None:
        task = asyncio.ensure_future(calls.ask(is_streamed=True))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])

    run(check())
    assert [(c.outcome, c.usage, c.is_estimated) for c in calls.ledger.calls] == [
        ("cancelled", reported, False)
    ]


@pytest.mark.parametrize("end", ["finished", "cancelled", "client gone", "timeout"])
def test_stream_is_always_closed(end: str) -> None:
    """An open generator would hold its connection, or its place in a batch, until garbage collection."""
    script = {"finished": [Delta(finish_reason="stop", usage=Usage()), None]}.get(
        end, [Delta(text="a"), None]
    )
    engine = Streaming(*script)
    calls = Calls(max_attempts=1, fields={"timeout_s": 9}, small=engine)

    async def check() -> None:
        async def client_gone(piece: Delta) -> None:
            raise ConnectionError

        spec_change = {"on_delta": client_gone} if end == "client gone" else {}
        spec = CallSpec(
            render=lambda codec: list(user("x")), stage="execute", **{"on_delta": _ignore, **spec_change}
        )
        task = asyncio.ensure_future(calls.caller.call("small", spec))
        await asyncio.sleep(1)
        if end == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        assert engine.is_closed
        assert (task.cancelled(), task.cancelled() or type(task.exception()).__name__) == {
            "finished": (False, "NoneType"),
            "cancelled": (True, True),
            "client gone": (False, "ConnectionError"),
            "timeout": (False, "EngineTimeout"),
        }[end]

    run(check())
    calls.assert_nothing_is_reserved()


@dataclass
class SlowReader:
    """A client that takes `stall_s` over every piece."""

    stall_s: float
    pieces: list[str] = field(default_factory=list)

    async def __call__(self, piece: Delta) -> None:
        self.pieces.append(piece.text)
        await asyncio.sleep(self.stall_s)


def asked_by(reader: SlowReader) -> CallSpec:
    return CallSpec(render=lambda codec: list(user("x")), stage="execute", on_delta=reader)


@pytest.mark.parametrize("speed", [None, SpeedConfig(prefill_tokens_per_s=1, decode_tokens_per_s=1)])
def test_time_of_a_slow_client_does_not_count_for_the_model(speed: SpeedConfig | None) -> None:
    """The model needs 4 s of its 5; the client takes 300 s in between, while a paced engine writes on."""
    engine, reader = (
        ScriptedEngine(["one two three"], delay_s=0.0 if speed else 4.0, speed=speed),
        SlowReader(100),
    )
    calls = Calls(max_attempts=1, fields={"timeout_s": 5}, small=engine)
    assert run(calls.caller.call("small", asked_by(reader))).answer == "one two three"
    assert reader.pieces == ["one", " two", " three"]


def test_model_that_hangs_after_a_slow_client_is_abandoned_after_its_own_timeout() -> None:
    calls = Calls(max_attempts=1, fields={"timeout_s": 5}, small=Streaming(Delta(text="a"), None))

    async def took_s() -> float:
        with pytest.raises(EngineTimeout):
            await calls.caller.call("small", asked_by(SlowReader(100)))
        return now_s()

    assert run(took_s()) == pytest.approx(105)


async def _ignore(piece: Delta) -> None:
    pass


def test_cancelled_call_is_booked_as_cancelled() -> None:
    calls = Calls(small=ScriptedEngine(["late"], delay_s=30))

    async def check() -> None:
        task = asyncio.ensure_future(calls.ask())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(check())
    assert calls.outcomes == [("small", "cancelled")]
    calls.assert_nothing_is_reserved()


def test_call_beyond_the_budget_is_not_sent() -> None:
    engine = ScriptedEngine([DOWN, "yes"])
    calls = Calls(budget=Budget(max_calls=1), small=engine)
    with pytest.raises(BudgetExceeded):
        run(calls.ask())
    assert len(engine.calls) == 1
    calls.assert_nothing_is_reserved()


def test_fallback_is_asked_without_the_adapter() -> None:
    small, large = ScriptedEngine([REFUSED]), ScriptedEngine(["yes"])
    run(Calls(small=small, large=large).ask(adapter="decomposer-v3"))
    assert (small.calls[0].adapter, large.calls[0].adapter) == ("decomposer-v3", None)


def test_reply_is_never_asked_longer_than_was_reserved() -> None:
    small = ScriptedEngine(["yes"])
    calls = Calls(fields={"max_tokens": 77}, small=small)
    run(calls.ask())
    run(calls.ask(sampling=Sampling(max_tokens=5)))
    assert [call.sampling.max_tokens for call in small.calls] == [77, 5]
