"""A candidate on trial: who answers, what shadows may do, and when a trial ends by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from r2_serve.config import RolloutConfig, RouterConfig, RoutingConfig, VirtualModelConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineRefused, EngineUnavailable, R2Error
from r2_serve.http.metrics import Metrics
from r2_serve.router.rollout import note_of
from r2_serve.router.router import Router, in_process
from r2_serve.types import Completion, Delta, EngineCall, Trace, Usage
from tests.support.in_process import allocation_json, model, query, routing

REPLIES: dict[str, Any] = {
    "small": ["small says"],
    "large": ["large says"],
    "decomposer": ["no plan"],
    "allocator": [allocation_json("small")],
}


def trial(**fields: Any) -> RolloutConfig:
    return RolloutConfig(**{"candidate": "new", "change": {"policy": "one:small"}, **fields})


def routed(rollout: RolloutConfig | None) -> RoutingConfig:
    """The incumbent asks `large`, the candidate `small`, unless the trial says otherwise."""
    plain = routing(plan="never", policy="one:large")
    return plain.model_copy(update={"rollouts": {"r2": rollout} if rollout else {}})


class Stand:
    """A router over scripted models with its traces."""

    def __init__(self, rollout: RolloutConfig | None, **engines: Any) -> None:
        self.engines = {
            name: each if hasattr(each, "generate") else ScriptedEngine(each)
            for name, each in {**REPLIES, **engines}.items()
        }
        self.traces: list[Trace] = []
        self.metrics = Metrics()
        config = RouterConfig(models=tuple(model(name, max_tokens=10) for name in self.engines))
        self.router: Router = in_process(
            config,
            routed(rollout),
            lambda card: self.engines[card.name],
            [self.traces.append, self.metrics.observe],
        )
        self.metrics.watch_trials(self.router)

    async def ask(self, number: int = 0, **fields: Any) -> str:
        named = {"request_id": f"req-{number}", "reply_id": f"id-{number}", "session": f"talk-{number}"}
        return (await self.router.answer(query(**{**named, **fields}))).text

    async def idle(self) -> None:
        assert self.router.trials is not None
        await self.router.trials.idle()

    def arms(self) -> Counter[str]:
        return Counter(trace.rollout.arm if trace.rollout else "none" for trace in self.traces)


class Gated:
    """An engine that waits for `gate` before it answers."""

    def __init__(self, text: str = "late") -> None:
        self.gate, self.has_begun, self.text = asyncio.Event(), asyncio.Event(), text

    async def generate(self, call: EngineCall) -> Completion:
        self.has_begun.set()
        await self.gate.wait()
        return Completion(text=self.text, usage=Usage(), finish_reason="stop")

    async def stream(self, call: EngineCall) -> AsyncIterator[Delta]:
        completion = await self.generate(call)
        yield Delta(text=completion.text, finish_reason="stop", usage=Usage())


class Failing:
    """An engine whose calls fail."""

    async def generate(self, call: EngineCall) -> Completion:
        raise EngineUnavailable("down")

    async def stream(self, call: EngineCall) -> AsyncIterator[Delta]:
        raise EngineUnavailable("down")
        yield


# -- canary --


async def test_canary_answers_its_share_of_conversations_and_keeps_each() -> None:
    stand = Stand(trial(canary=0.3))
    for number in range(300):
        first, again = [await stand.ask(number, reply_id=f"{number}-{turn}") for turn in (1, 2)]
        assert first == again
    assert stand.arms()["canary"] == pytest.approx(180, abs=50)
    for trace in stand.traces:
        assert trace.rollout is not None and trace.answer is not None
        is_canary = trace.rollout.arm == "canary"
        assert trace.answer.startswith("small" if is_canary else "large")
        assert trace.rollout.share == pytest.approx(0.3 if is_canary else 0.7)


def test_same_conversation_gets_the_same_router_in_every_process() -> None:
    one, other = (note_of(query(session="talk"), trial(canary=0.5)) for _ in range(2))
    assert one == other is not None
    notes = [
        note_of(query(session=f"t{i}"), trial(canary=0.5, candidate=name))
        for name in "ab"
        for i in range(200)
    ]
    arms = [note.arm for note in notes if note]
    assert 60 < sum(a == b for a, b in zip(arms[:200], arms[200:], strict=True)) < 140


def test_all_queries_of_a_key_get_one_router_where_the_key_is_the_unit() -> None:
    rollout = trial(canary=0.5, unit="key")
    for client in ("ann", "bob", "cy"):
        notes = [note_of(query(session=f"t{i}", client=client), rollout) for i in range(20)]
        assert len({note.arm for note in notes if note}) == 1


@pytest.mark.parametrize("own", [{"policy": "all:small"}, {"is_plan_only": True}])
async def test_query_whose_way_the_client_chose_takes_no_part(own: dict[str, Any]) -> None:
    stand = Stand(trial(canary=1.0, shadow=1.0))
    await stand.ask(**own)
    await stand.idle()
    assert stand.arms() == {"none": 1}


# -- shadow --


async def test_shadow_begins_after_the_answer_and_changes_nothing_of_it() -> None:
    slow = Gated()
    stand = Stand(trial(shadow=1.0), small=slow)
    assert await stand.ask() == "large says"
    await slow.has_begun.wait()
    assert await stand.ask(1) == "large says"
    slow.gate.set()
    await stand.idle()
    seen, hidden = stand.traces[0], stand.traces[-1]
    assert seen.rollout is not None and hidden.rollout is not None
    assert (seen.rollout.arm, hidden.rollout.arm) == ("incumbent", "shadow")
    assert hidden.rollout.of in ("id-0", "id-1")
    assert hidden.answer == "late"


async def test_shadow_is_not_paid_by_the_client_and_is_counted_apart() -> None:
    class Purse:
        spent_usd = Decimal(0)

        def left_usd(self) -> None: ...

        def hold(self, usd: Decimal) -> None: ...

        def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
            self.spent_usd += spent_usd

        def refusal(self) -> Any: ...

    stand, purse = Stand(trial(shadow=1.0)), Purse()
    await stand.router.answer(query(), purse=purse)
    await stand.idle()
    seen, hidden = stand.traces
    assert purse.spent_usd == seen.cost_usd
    page = stand.metrics.render().decode()
    assert 'r2_cost_usd_total{model="large",stage="execute"}' in page
    assert 'r2_cost_usd_total{model="small"' not in page
    assert f'arm="shadow",candidate="new",model="r2"}} {float(hidden.cost_usd)}' in page


async def test_failing_shadow_rests_no_model_for_clients() -> None:
    stand = Stand(trial(shadow=1.0, stops_itself=False), small=Failing())
    for number in range(10):
        assert await stand.ask(number) == "large says"
        await stand.idle()
    assert stand.arms() == {"incumbent": 10, "shadow": 10}
    pipeline = stand.router._pipeline
    assert pipeline is not None
    assert not pipeline.pool["small"].cooldown.is_resting


async def test_shadows_end_with_their_budget() -> None:
    stand = Stand(trial(shadow=1.0, budget_usd=Decimal("0.0002")))
    for number in range(40):
        await stand.ask(number)
        await stand.idle()
    shadows = [trace for trace in stand.traces if trace.rollout and trace.rollout.arm == "shadow"]
    spent_usd = sum(trace.cost_usd for trace in shadows)
    assert 0 < spent_usd <= Decimal("0.0002")
    assert sum(trace.error is None for trace in shadows) < 40
    assert stand.arms()["incumbent"] == 40


async def test_no_more_shadows_run_at_once_than_allowed() -> None:
    slow = Gated()
    stand = Stand(trial(shadow=1.0, max_shadows=2), small=slow)
    for number in range(5):
        await stand.ask(number)
    slow.gate.set()
    await stand.idle()
    assert stand.arms() == {"incumbent": 5, "shadow": 2}
    page = stand.metrics.render().decode()
    assert 'r2_shadows_skipped_total{candidate="new",model="r2",reason="busy"} 3.0' in page


async def test_failed_query_is_shadowed_and_a_refused_one_is_not() -> None:
    stand = Stand(trial(shadow=1.0), large=Failing(), small=Failing())
    with pytest.raises(R2Error):
        await stand.ask()
    await stand.idle()
    assert stand.arms() == {"incumbent": 1, "shadow": 1}
    with pytest.raises(R2Error):
        await stand.router.answer(query(max_cost_usd=Decimal("1e-9")))
    await stand.idle()
    assert stand.arms() == {"incumbent": 2, "shadow": 1}


async def test_withdrawn_candidate_answers_no_more() -> None:
    stand = Stand(trial(canary=1.0))
    assert await stand.ask() == "small says"
    stand.router.route_by(routed(None))
    assert await stand.ask() == "large says"


# -- the guard --


async def asked(stand: Stand, numbers: Sequence[int]) -> list[str]:
    answers = []
    for number in numbers:
        try:
            answers.append(await stand.ask(number))
        except R2Error as e:
            answers.append(type(e).__name__)
    return answers


@asynccontextmanager
async def failing_canary(**fields: Any) -> AsyncIterator[Stand]:
    def refuse(messages: object, sampling: object) -> str:
        raise EngineRefused("no such adapter")

    change = {"policy": "one:small", "fallbacks": "typed"}
    yield Stand(trial(canary=0.5, change=change, **fields), small=refuse)


async def test_candidate_that_fails_is_ended_by_the_process_itself() -> None:
    async with failing_canary() as stand:
        answers = await asked(stand, range(400))
        assert stand.router.trials is not None
        reason = stand.router.trials.guard.stopped["r2", "new"]
        page = stand.metrics.render().decode()
    assert "large says" in answers and set(answers[200:]) == {"large says"}
    assert "failures of its canary queries differs by" in reason
    assert 'r2_trial_stopped{candidate="new",model="r2"} 1.0' in page


async def test_guard_can_be_turned_off() -> None:
    async with failing_canary(stops_itself=False) as stand:
        answers = await asked(stand, range(400))
    assert sum(answer != "large says" for answer in answers) > 100


async def test_candidate_with_bad_scores_is_ended_and_an_equal_one_is_not() -> None:
    for score, is_ended in ((0.0, True), (1.0, False)):
        stand = Stand(trial(canary=0.5))
        trials = stand.router.trials
        assert trials is not None
        for number in range(200):
            await stand.ask(number)
            note = stand.traces[-1].rollout
            assert note is not None or is_ended
            if note is not None:
                trials.rate("r2", "new", note.arm, score if note.arm == "canary" else 1.0)
        assert bool(trials.guard.stopped) == is_ended


# -- the config --


def test_change_sets_the_named_fields_of_a_section_alone() -> None:
    rollout = RolloutConfig(candidate="dec-2", change={"decomposer": {"adapter": "dec-2"}})
    plain = routing(decomposer={"num_samples": 2, "adapter": "dec-1"})
    config = RoutingConfig(virtual_models=plain.virtual_models, rollouts={"r2": rollout})
    before, after = config.virtual_models["r2"], config.candidate("r2")
    assert after.decomposer == before.decomposer.model_copy(update={"adapter": "dec-2"})
    assert isinstance(after, VirtualModelConfig) and after.pool == before.pool


@pytest.mark.parametrize(
    ("rollouts", "says"),
    [
        ({"r3": trial()}, "are no virtual models"),
        ({"r2": trial(change={"polcy": "one:small"})}, "polcy"),
        ({"r2": trial(change={"plan": "perhaps"})}, "plan"),
    ],
)
def test_wrong_trial_is_refused_when_the_config_is_read(rollouts: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RoutingConfig(virtual_models=routing().virtual_models, rollouts=rollouts)


def test_model_that_only_the_candidate_names_must_exist() -> None:
    config = RoutingConfig(
        virtual_models=routing().virtual_models, rollouts={"r2": trial(change={"pool": ["gpt-9"]})}
    )
    with pytest.raises(ValueError, match="gpt-9"):
        config.check_against(tuple(model(name) for name in REPLIES))
