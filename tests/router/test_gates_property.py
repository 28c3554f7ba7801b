"""What holds of every plan with gates: calls are settled, the accepted answer is kept, siblings stay."""

from __future__ import annotations

import random
from collections import Counter
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from r2_serve.config import GateConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineUnavailable, QuotaExceeded, SubtaskFailed
from r2_serve.types import Delta, Plan, Subtask
from tests.support.in_process import Router, query, routing
from tests.support.virtual_time import run

POOL = ("a", "b", "c", "d")
RULES: tuple[dict[str, Any], ...] = (
    {"kind": "agreement", "by": "number"},
    {"kind": "agreement", "by": "text", "votes": 3},
    {"kind": "confidence", "at_least": 0.5},
    {"kind": "checker", "model": "checker"},
    {"kind": "check", "function": "tests.router.test_gates_property:is_even"},
)
STEP = "step number "


async def is_even(question: str, answer: str) -> bool:
    """An own check."""
    return int(answer) % 2 == 0


class CountedPurse:
    """Money without a limit, which must be given back or spent."""

    def __init__(self) -> None:
        self.held_usd, self.spent_usd = Decimal(0), Decimal(0)

    def left_usd(self) -> None:
        return None

    def hold(self, usd: Decimal) -> None:
        self.held_usd += usd

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        self.held_usd -= held_usd
        self.spent_usd += spent_usd

    def refusal(self) -> QuotaExceeded:
        return QuotaExceeded("no limit")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size = draw(st.integers(1, 5))
    steps = []
    for i in range(1, size + 1):
        needed = tuple(sorted(draw(st.sets(st.integers(1, i - 1), max_size=2)))) if i > 1 else ()
        reads = " ".join(f"#{k}" for k in needed)
        steps.append(Subtask(id=i, text=f"{STEP}{i}. {reads}", depends_on=needed))
    template = draw(st.sampled_from([None, f"#{size}"]))
    return Plan(subtasks=tuple(steps), answer=template)


gates = st.dictionaries(
    st.sampled_from(["one", "two", "three"]),
    st.tuples(
        st.permutations(POOL).flatmap(lambda order: st.integers(3, 4).map(lambda k: tuple(order[:k]))),
        st.lists(st.sampled_from(RULES), min_size=1, max_size=2).map(tuple),
    ),
    min_size=1,
)


def step_of(prompt: str) -> int:
    """The step that a prompt asks for: the last one that it names in its frame."""
    return int(prompt.rpartition(STEP)[2].partition(".")[0])


def answer_of(seed: int, model: str, step: int) -> str | None:
    """What a model says to a step; None if it fails. The last model of the pool never does."""
    draw = random.Random(f"{seed}:{model}:{step}")
    return None if model != "d" and draw.random() < 0.15 else str(draw.randint(0, 3))


@settings(max_examples=40, deadline=None)
@given(plan=plans(), made=gates, seed=st.integers(0, 10_000), data=st.data())
def test_random_plan_with_random_gates(
    plan: Plan, made: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    def engine(model: str) -> ScriptedEngine:
        def reply(messages: Any, sampling: Any) -> str | Exception:
            said = answer_of(seed, model, step_of(messages[-1].content))
            return EngineUnavailable("down") if said is None else said

        return ScriptedEngine(reply, delay_s=1)

    config = {
        name: GateConfig.model_validate({"ask": ask, "accept": how}) for name, (ask, how) in made.items()
    }
    checker = ScriptedEngine(["yes", "no", "no"])
    others = {"decomposer": ["?"], "allocator": ["?"], "checker": checker}
    router = Router(
        routed=routing(pool=POOL, gates=config), **{**{name: engine(name) for name in POOL}, **others}
    )
    actions = {i: data.draw(st.sampled_from([*made, "d"])) for i in range(1, len(plan.subtasks) + 1)}
    purse, pieces = CountedPurse(), []

    async def keep(piece: Delta) -> None:
        pieces.append(piece.text)

    asked = query("Go.", plan=plan, pinned=actions)
    try:
        answer = run(router.pipeline.answer(asked, keep, purse))
    except SubtaskFailed:
        answer = None  # every model of a gate without d may fail
    trace = router.trace
    assert purse.held_usd == 0
    assert purse.spent_usd == trace.cost_usd == sum((call.cost_usd for call in trace.calls), Decimal(0))
    assert sum(len(router.engines[name].calls) for name in (*POOL, "checker")) == len(trace.calls)
    steps_asked = Counter((call.subtask, call.model) for call in trace.calls if call.stage == "execute")
    for result in trace.results:
        models = [model for step, model in steps_asked if step == result.id]
        note = result.gate
        assert result.answer == answer_of(seed, result.model, result.id)
        if note is None:
            assert steps_asked[result.id, "d"] == 1 and models == ["d"]
            continue
        order = made[note.name][0]
        assert [ask.model for ask in note.asked] == list(order[: len(note.asked)]), "asked in turn, each once"
        uncalled = {ask.model: ask.outcome for ask in note.asked if ask.model not in models}
        assert set(models) | set(uncalled) == {ask.model for ask in note.asked}
        assert set(uncalled.values()) <= {"failed"}, "only a model that rests after failures is not called"
        assert all(count == 1 or answer_of(seed, m, s or 0) is None for (s, m), count in steps_asked.items())
        assert note.kept == result.model
        accepted = [ask for ask in note.asked if ask.outcome == "accepted"]
        if accepted:
            assert [accepted[0].model] == [note.asked[-1].model] == [note.kept]
        else:
            assert note.asked[-1].outcome == "failed", (
                "the strongest model failed, so the best answer is kept"
            )
        assert sum((ask.cost_usd for ask in note.asked), Decimal(0)) == result.cost_usd
    if answer is not None:
        assert len(trace.results) == len(plan.subtasks)
        assert answer.text.startswith("".join(pieces).strip())
