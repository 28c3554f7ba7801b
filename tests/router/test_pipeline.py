"""A query in, an answer or a typed error out, and a trace that adds up: end to end over scripted models."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from r2_serve.config import AllocatorConfig, LimitsConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    EngineRefused,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    R2Error,
    SubtaskFailed,
)
from r2_serve.router.whole import answer_whole
from r2_serve.types import Answer, Delta, Message, Plan, Priority, Query, Sampling, Trace, Usage
from tests.support.in_process import Router, allocation_json, plan_json, plan_of, query, routing, user
from tests.support.virtual_time import now_s, run

PLAN = plan_json("find the height of Mont Blanc", "find the height of the Zugspitze", "compare #1 and #2")
WORDS = {
    "decomposer": ["n1 * n2 ; n3 - n4 ; #1 + #2"],
    "allocator": ["@1 @2 @1"],
    "small": lambda messages, sampling: {"3 * 9": "7 2", "7 2 + 3 3 6": "0 6 6"}[messages[-1].content],
    "large": lambda messages, sampling: {"5 4 6 - 2 1": "3 3 6"}[messages[-1].content],
}
COMPACT = {name: {"codec": "compact"} for name in WORDS}


def geographer(**engines: Any) -> Router:
    defaults = {
        "decomposer": [PLAN],
        "allocator": [allocation_json("small", "small", "large")],
        "small": ["4806 m"],
        "large": ["Mont Blanc is higher"],
    }
    return Router(**{**defaults, **engines})


def assert_adds_up(trace: Trace, answer: Answer | None = None) -> None:
    """What holds of every trace, answered or not."""
    assert trace.cost_usd == sum((call.cost_usd for call in trace.calls), Decimal(0))
    assert trace.worker_cost_usd == sum(
        (c.cost_usd for c in trace.calls if c.stage in ("execute", "pass_through")), Decimal(0)
    )
    assert trace.worker_cost_usd >= sum((result.cost_usd for result in trace.results), Decimal(0))
    assert all(0 <= call.start_s <= call.end_s <= trace.duration_s for call in trace.calls)
    assert all(0 <= r.ready_s <= r.start_s <= r.end_s <= trace.duration_s for r in trace.results)
    assert 0 <= trace.overhead_s <= trace.duration_s
    assert (trace.answer is None) == (trace.error is not None)
    assert Trace.model_validate_json(trace.model_dump_json()) == trace
    if answer is not None:
        assert answer.trace == trace
        assert answer.cost_usd == trace.cost_usd
        assert answer.usage == sum((call.usage for call in trace.calls), Usage())
        assert answer.num_subtasks == len(trace.results)


async def ask(router: Router, asked: Query | None = None) -> tuple[Answer, list[str]]:
    pieces: list[str] = []

    async def keep(piece: Delta) -> None:
        pieces.append(piece.text)

    answer = await router.pipeline.answer(asked or query(), keep)
    assert_adds_up(router.trace, answer)
    return answer, pieces


def test_query_is_decomposed_allocated_executed_and_answered() -> None:
    router = geographer()
    answer, pieces = run(ask(router))
    assert (answer.text, answer.finish_reason) == ("Mont Blanc is higher", "stop")
    assert answer.models == ("small", "large")
    assert "".join(pieces) == answer.text
    assert len(pieces) == 4, "only the words of the final subtask, as they arrive"
    assert [(r.id, r.model, r.answer) for r in router.trace.results] == [
        (1, "small", "4806 m"),
        (2, "small", "4806 m"),
        (3, "large", answer.text),
    ]
    assert [call.stage for call in router.trace.calls] == [
        "decompose",
        "allocate",
        "execute",
        "execute",
        "execute",
    ]
    assert router.trace.plan_fallback is router.trace.allocation_fallback is router.trace.error is None
    assert router.prompts("large")[0].count("4806 m") == 2


def test_compact_dialect_computes_the_least_significant_digit_first() -> None:
    router = Router(cards=COMPACT, **WORDS)
    answer, pieces = run(
        ask(router, query("Ann has 3 bags of 9 coins. Bob has 645 coins and loses 12. How many in all?"))
    )
    assert answer.text == "660"
    assert [r.answer for r in router.trace.results] == ["27", "633", "660"]
    assert pieces == [], "a reply that has to be read first is not streamed"


def test_answer_template_needs_no_call() -> None:
    replies = {"run": "RUN", "turn around right": "TURN TURN"}
    workers = {name: lambda messages, sampling: replies[messages[-1].content] for name in ("small", "large")}
    router = Router(
        cards=COMPACT, decomposer=["run ; turn around right | #1 #2 #2"], allocator=["@1 @1"], **workers
    )
    answer, _ = run(ask(router))
    assert (answer.text, len(router.trace.results)) == ("RUN TURN TURN TURN TURN", 2)
    cut, _ = run(ask(router, query(sampling=Sampling(max_tokens=2))))
    assert (cut.text, cut.finish_reason) == ("RUN TURN", "length")
    stopped, _ = run(ask(router, query(sampling=Sampling(stop=(" TURN",)))))
    assert (stopped.text, stopped.finish_reason) == ("RUN", "stop")


def test_sampling_of_the_client_applies_to_the_final_step_only() -> None:
    router = geographer()
    run(ask(router, query(sampling=Sampling(temperature=1.5, seed=7, max_tokens=9))))
    (final,) = router.engines["large"].calls
    assert (final.sampling.temperature, final.sampling.seed, final.sampling.max_tokens) == (1.5, 7, 9)
    assert {(c.sampling.temperature, c.sampling.seed) for c in router.engines["small"].calls} == {(0.0, None)}


def test_independent_subtasks_overlap() -> None:
    router = geographer(
        small=ScriptedEngine(["4806 m"], delay_s=2), large=ScriptedEngine(["higher"], delay_s=3)
    )

    async def seconds() -> float:
        await ask(router)
        return now_s()

    assert run(seconds()) == pytest.approx(5.0)


def test_first_subtask_that_waits_for_a_free_place_was_ready_from_the_start() -> None:
    router = geographer(small=ScriptedEngine(["a"], delay_s=1))
    router.pipeline.routing = routing(limits=LimitsConfig(max_parallel=1))
    run(ask(router))
    first, second, _ = router.trace.results
    assert first.ready_s == second.ready_s < first.end_s <= second.start_s


# -- fallbacks ----


@pytest.mark.parametrize(
    "reply",
    [
        "no idea",
        "",
        plan_json("a #1"),
        plan_json(*["step"] * 10_000).replace(" ", ""),
        plan_json("x" * 1_000_000),
    ],
)
def test_conversation_without_a_plan_goes_to_the_default_model(reply: str) -> None:
    router = geographer(decomposer=[reply], allocator=[EngineRefused("must not be asked")])
    messages = (Message(role="system", content="Be brief."), *user("How high? #1"))
    answer, pieces = run(ask(router, query(messages=messages)))
    assert (answer.text, answer.models, "".join(pieces)) == ("Mont Blanc is higher", ("large",), answer.text)
    assert router.trace.plan_fallback is not None
    assert router.engines["large"].calls[0].messages == messages
    assert router.engines["allocator"].calls == []


def test_plan_of_one_step_sends_the_conversation_as_it_is() -> None:
    router = geographer(decomposer=[plan_json("give the height")], allocator=[allocation_json("small")])
    messages = (Message(role="system", content="Be brief."), *user("How high? #1"))
    answer, pieces = run(ask(router, query(messages=messages)))
    assert (answer.text, answer.models, "".join(pieces)) == ("4806 m", ("small",), answer.text)
    (call,) = router.engines["small"].calls
    assert call.messages == messages
    assert router.trace.plan_fallback is None


def test_step_that_the_client_wrote_is_worked_on_and_not_the_bare_conversation() -> None:
    router = geographer(allocator=[allocation_json("small")])
    run(ask(router, query(plan=plan_of("give the depth"))))
    assert "give the depth" in router.prompts("small")[0]


def test_query_can_go_whole_to_one_model_in_one_call() -> None:
    router = geographer()
    virtual = router.pipeline.routing.virtual_models["r2"]
    pieces: list[str] = []

    async def keep(piece: Delta) -> None:
        pieces.append(piece.text)

    context = router.pipeline._context(query(), router.pipeline.routing, keep, None)
    with context.demand.query("r2") as expected:
        final = run(answer_whole(context, virtual, "small", expected))
    trace = context.trace(answer=final.text)
    assert (final.text, "".join(pieces)) == ("4806 m", "4806 m")
    assert [(call.stage, call.model) for call in trace.calls] == [("execute", "small")]
    assert trace.allocation is not None and trace.allocation.models == ("small",)
    assert [result.answer for result in trace.results] == ["4806 m"]
    assert router.engines["small"].calls[0].messages == query().messages


@pytest.mark.parametrize(
    "reply",
    [
        "small",
        "",
        allocation_json("small"),
        allocation_json("gpt-9", "small", "small"),
        EngineRefused("quota"),
    ],
)
def test_subtasks_without_an_allocation_go_to_the_default_model(reply: str | Exception) -> None:
    router = geographer(allocator=[reply])
    answer, _ = run(ask(router))
    assert answer.models == ("large",)
    assert router.trace.allocation_fallback is not None
    assert router.trace.plan_fallback is None


def test_hanging_stage_is_abandoned_after_its_timeout() -> None:
    router = geographer(decomposer=ScriptedEngine(["late"], delay_s=1_000))

    async def seconds() -> float:
        await ask(router)
        return now_s()

    assert run(seconds()) == pytest.approx(30.0)
    assert router.trace.plan_fallback == "no valid plan: timeout"
    assert router.trace.calls[0].outcome == "cancelled"


def test_trace_names_the_fallback_that_answered_a_subtask() -> None:
    router = Router(
        decomposer=[PLAN],
        allocator=[allocation_json("small", "small", "small")],
        small=[EngineRefused("context")],
        large=["from large"],
        cards={"small": {"fallbacks": ("large",)}},
    )
    answer, _ = run(ask(router))
    assert answer.models == ("large",)
    assert {(r.model, r.num_attempts) for r in router.trace.results} == {("large", 2)}
    assert router.trace.allocation is not None
    assert set(router.trace.allocation.models) == {"small"}


# -- steps that are cut at their limit ----


def words(num: int) -> Any:
    """A worker that writes `num` words, as far as it is let."""
    return ScriptedEngine([" ".join(["word"] * num)])


def test_step_that_is_cut_is_asked_for_once_more_with_more_room() -> None:
    router = geographer(small=words(1500))
    run(ask(router))
    first, second, final = router.trace.results
    assert len(first.answer.split()) == len(second.answer.split()) == 1500
    assert (first.finish_reason, first.num_attempts) == ("stop", 2)
    assert final.finish_reason == "stop"
    assert {call.sampling.max_tokens for call in router.engines["small"].calls} == {1024, 4096}
    assert "word " * 1499 in router.prompts("large")[0]


def test_step_that_is_cut_twice_fails_and_is_not_handed_on() -> None:
    router = geographer(small=words(5000))
    error = failed(router)
    assert isinstance(error, SubtaskFailed)
    assert "cut at 4096 tokens" in error.message
    assert router.engines["large"].calls == []


def test_last_step_that_is_cut_says_so_to_the_client_and_in_the_trace() -> None:
    router = geographer(large=words(5))
    answer, _ = run(ask(router, query(sampling=Sampling(max_tokens=2))))
    assert (answer.text, answer.finish_reason) == ("word word", "length")
    assert router.trace.results[-1].finish_reason == "length"


def test_plan_and_allocation_that_are_cut_are_asked_for_once_more() -> None:
    router = geographer()
    router.pipeline.routing = routing(
        decomposer={"max_tokens": 20}, allocator=AllocatorConfig(model="allocator", max_tokens=2)
    )
    answer, _ = run(ask(router))
    assert answer.text == "Mont Blanc is higher"
    assert router.trace.plan_fallback is router.trace.allocation_fallback is None
    assert [len(router.engines[name].calls) for name in ("decomposer", "allocator")] == [2, 2]


# -- the client's own plan, pins and policies ----

OWN = plan_of("find it", "use #1")


def test_plan_of_the_client_is_not_decomposed() -> None:
    router = geographer(
        decomposer=[EngineRefused("must not be asked")], allocator=[allocation_json("small", "large")]
    )
    run(ask(router, query(plan=OWN)))
    assert router.trace.plan == OWN
    assert router.engines["decomposer"].calls == []


def test_pins_override_the_allocator_and_pins_for_all_subtasks_save_its_call() -> None:
    router = geographer(allocator=[allocation_json("small", "small")])
    run(ask(router, query(plan=OWN, pinned={1: "large"})))
    assert router.trace.allocation is not None
    assert router.trace.allocation.models == ("large", "small")
    answer, _ = run(ask(router, query(plan=OWN, pinned={1: "large", 2: "large"})))
    assert answer.models == ("large",)
    assert len(router.engines["allocator"].calls) == 1


@pytest.mark.parametrize(
    ("policy", "models"), [("all:small", {"small"}), ("all:large", {"large"}), ("random", {"small", "large"})]
)
def test_fixed_policy_needs_no_allocator_call(policy: str, models: set[str]) -> None:
    router = geographer(allocator=[EngineRefused("must not be asked")])
    answer, _ = run(ask(router, query(policy=policy)))
    assert set(answer.models) <= models
    assert router.trace.policy == policy
    assert router.engines["allocator"].calls == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"policy": "dearest"}, "r2.policy"),
        ({"policy": "all:decomposer"}, "r2.policy"),
        ({"pinned": {1: "small"}}, "r2.models"),
        ({"plan": OWN, "pinned": {3: "small"}}, "r2.models.3"),
        ({"plan": OWN, "pinned": {1: "decomposer"}}, "r2.models.1"),
        ({"plan": OWN, "max_subtasks": 1}, "r2.plan"),
        ({"plan": plan_of(*["step"] * 17)}, "r2.plan"),
        ({"messages": user("x" * 300_000)}, "messages"),
        ({"model": "gpt-9"}, "model"),
        ({"model": "large", "is_plan_only": True}, "r2.plan_only"),
        ({"model": "large", "plan": OWN}, "r2.plan"),
        ({"model": "large", "pinned": {1: "small"}}, "r2.models"),
        ({"model": "large", "policy": "random"}, "r2.policy"),
        ({"model": "large", "max_subtasks": 2}, "r2.max_subtasks"),
        ({"plan": OWN, "is_plan_only": True}, "r2.plan_only"),
    ],
)
def test_wrong_field_of_a_request_is_named_before_any_call(fields: dict[str, Any], param: str) -> None:
    router = geographer()
    with pytest.raises(InvalidRequest) as caught:
        run(router.pipeline.answer(query(**fields)))
    assert caught.value.param == param
    assert isinstance(caught.value, ModelNotFound) == (param == "model")
    assert all(engine.calls == [] for engine in router.engines.values())


def test_plan_of_a_pool_model_is_refused_with_what_to_do_and_leaves_a_trace() -> None:
    error = failed(geographer(), query(model="large", is_plan_only=True))
    assert isinstance(error, InvalidRequest)
    assert error.message == (
        "r2.plan_only is about routing, but 'large' is a pool model, which is asked directly; "
        "leave it out, or ask for a virtual model (GET /v1/models lists them)"
    )


def test_query_for_a_pool_model_is_passed_through() -> None:
    router = geographer(large=["one two"])
    messages = (Message(role="developer", content="Be brief."), *user("hi"))
    answer, pieces = run(ask(router, query(model="large", messages=messages, sampling=Sampling(top_p=0.5))))
    assert (answer.text, answer.num_subtasks, pieces, answer.models) == (
        "one two",
        0,
        ["one", " two"],
        ("large",),
    )
    assert router.engines["large"].calls[0].messages == messages
    assert router.engines["large"].calls[0].sampling.top_p == 0.5
    assert (router.trace.plan, router.trace.policy) == (None, "pass_through")


# -- limits and failures ----


def failed(router: Router, asked: Query | None = None) -> R2Error:
    with pytest.raises(R2Error) as caught:
        run(router.pipeline.answer(asked or query()))
    assert_adds_up(router.trace)
    assert router.trace.error == f"{type(caught.value).__name__}: {caught.value.message}"
    return caught.value


@pytest.mark.parametrize(
    ("limits", "fields"),
    [
        ({"max_calls": 3}, {}),
        ({"max_total_tokens": 2_000}, {}),
        ({"max_cost_usd": "0.0035"}, {}),
        ({}, {"max_cost_usd": Decimal("0.0035")}),
    ],
)
def test_query_goes_whole_to_one_model_if_the_budget_does_not_pay_for_all_steps(
    limits: dict[str, Any], fields: dict[str, Any]
) -> None:
    router = geographer(small=ScriptedEngine(["4806 m"], delay_s=1))
    router.pipeline.routing = routing(limits=LimitsConfig(**limits))
    answer = run(router.pipeline.answer(query(**fields)))
    assert (answer.text, answer.models) == ("Mont Blanc is higher", ("large",))
    assert [call.stage for call in router.trace.calls].count("execute") == 1
    assert router.trace.decision is not None
    assert (router.trace.decision.action, router.trace.decision.reason) == ("whole", "no_budget")
    assert len(router.trace.calls) <= limits.get("max_calls", 64)
    assert router.trace.cost_usd <= Decimal("0.0035")


def test_lower_cost_limit_of_operator_and_client_holds() -> None:
    router = geographer()
    router.pipeline.routing = routing(limits=LimitsConfig(max_cost_usd=Decimal("0.000001")))
    assert isinstance(failed(router, query(max_cost_usd=Decimal(5))), BudgetExceeded)


@pytest.mark.parametrize("stage", ["decomposer", "allocator", "small", "large"])
@pytest.mark.parametrize(("limit_s", "asked_s"), [(5, None), (60, 5), (5, 60)])
def test_deadline_holds_when_any_stage_hangs(stage: str, limit_s: float, asked_s: float | None) -> None:
    defaults = {
        "decomposer": PLAN,
        "allocator": allocation_json("small", "small", "large"),
        "small": "a",
        "large": "b",
    }
    router = geographer(**{stage: ScriptedEngine([defaults[stage]], delay_s=59)})
    router.pipeline.routing = routing(limits=LimitsConfig(deadline_s=limit_s))

    async def check() -> None:
        with pytest.raises(DeadlineExceeded, match="within the deadline of 5 s"):
            await router.pipeline.answer(query(deadline_s=asked_s))
        assert now_s() == pytest.approx(5.0)
        assert len(asyncio.all_tasks()) == 1, "nothing goes on behind the client's back"

    run(check())
    assert_adds_up(router.trace)
    assert router.trace.error is not None
    assert router.trace.error.startswith("DeadlineExceeded")


def test_retry_after_beyond_the_deadline_ends_at_the_deadline() -> None:
    router = geographer(small=[EngineUnavailable("busy", 3.5)])
    router.pipeline.routing = routing(limits=LimitsConfig(deadline_s=2))
    assert isinstance(failed(router), DeadlineExceeded)


def test_failed_subtask_is_named_with_its_cause_and_its_sibling_is_cancelled() -> None:
    cause = EngineRefused("quota")
    router = geographer(
        small=[cause],
        large=ScriptedEngine(["slow"], delay_s=50),
        allocator=[allocation_json("small", "large", "large")],
        routed=routing(fallbacks="typed"),
    )
    error = failed(router)
    assert isinstance(error, SubtaskFailed)
    assert (error.subtask, error.model, error.__cause__) == (1, "small", cause)
    assert [(c.model, c.outcome) for c in router.trace.calls if c.stage == "execute"] == [
        ("small", "failed"),
        ("large", "cancelled"),
    ]


def test_failed_query_keeps_the_subtasks_that_were_answered() -> None:
    router = geographer(large=[EngineRefused("quota")])
    assert isinstance(failed(router), SubtaskFailed)
    assert [r.id for r in router.trace.results] == [1, 2]
    assert router.trace.plan is not None


def test_cancelling_a_query_stops_its_calls_and_leaves_a_trace() -> None:
    router = geographer(small=ScriptedEngine(["late"], delay_s=50))

    async def check() -> None:
        task = asyncio.ensure_future(router.pipeline.answer(query()))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert len(asyncio.all_tasks()) == 1

    run(check())
    assert_adds_up(router.trace)
    assert router.trace.error == "cancelled by the client"
    assert [c.outcome for c in router.trace.calls if c.stage == "execute"] == ["cancelled", "cancelled"]


@pytest.mark.parametrize("fault", [ValueError("a bug"), TimeoutError("a socket's")])
def test_internal_error_is_raised_unchanged_and_leaves_a_trace(fault: Exception) -> None:
    class Faulty:
        async def decompose(self, *_: object) -> Any:
            raise fault

    router = geographer()
    router.pipeline.decomposer = Faulty()
    with pytest.raises(type(fault)) as caught:
        run(router.pipeline.answer(query()))
    assert caught.value is fault
    assert router.trace.error == f"{type(fault).__name__}: {fault}"


def test_changed_routing_does_not_affect_a_running_query() -> None:
    router = geographer(decomposer=ScriptedEngine([PLAN], delay_s=5))
    changed = routing(pool=("large",), limits=LimitsConfig(max_calls=1, max_subtasks=1))

    async def check() -> None:
        task = asyncio.ensure_future(router.pipeline.answer(query()))
        await asyncio.sleep(1)
        router.pipeline.routing = changed
        answer = await task
        assert (answer.num_subtasks, answer.models) == (3, ("small", "large"))
        whole = await router.pipeline.answer(query())
        assert (whole.num_subtasks, whole.models) == (1, ("large",))

    run(check())


async def test_plan_only_decomposes_and_stops() -> None:
    router = geographer()
    answer = await router.pipeline.answer(query(is_plan_only=True))
    assert Plan.model_validate_json(answer.text) == answer.trace.plan
    assert [call.stage for call in answer.trace.calls] == ["decompose"]
    assert router.prompts("small") == router.prompts("allocator") == []
    assert_adds_up(answer.trace, answer)


async def test_plan_only_query_announces_no_calls() -> None:
    router = geographer()
    await router.pipeline.answer(query())
    before = router.pipeline.demand.forecast()["small"]
    await router.pipeline.answer(query(is_plan_only=True))
    after = router.pipeline.demand.forecast()["small"]
    assert sum(before.coming) > 0 and sum(after.coming) == pytest.approx(sum(before.coming), rel=0.2)


@pytest.mark.parametrize("priority", ["user", "batch"])
def test_every_call_of_a_query_has_its_rank(priority: Priority) -> None:
    workers = {"small": ScriptedEngine(["half"]), "large": ScriptedEngine(["whole"])}
    plan, allocation = plan_json("a", "b #1"), allocation_json("small", "large")
    router = Router(decomposer=[plan], allocator=[allocation], **workers)
    run(router.pipeline.answer(query(priority=priority)))
    calls = [call for engine in router.engines.values() for call in engine.calls]
    assert len(calls) >= 4 and {call.priority for call in calls} == {priority}
