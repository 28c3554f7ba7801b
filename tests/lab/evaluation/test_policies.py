"""Each policy asks the right models and has every call counted, in process and over HTTP."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import httpx
import pytest

from r2_serve.config import ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import ConfigError, EngineRefused
from r2_serve.grading.rows import Task, task_of
from r2_serve.http.api import create_app
from r2_serve.lab.evaluation.asker import HttpAsker
from r2_serve.lab.evaluation.desk import EvalOutcome, outcome_of
from r2_serve.lab.evaluation.judging import parse_is_hard, parse_score
from r2_serve.lab.evaluation.policies import PolicyConfig
from r2_serve.lab.evaluation.policy_names import all_policies, parse_policy, random_policy
from r2_serve.router.router import in_process
from r2_serve.types import Completion, EngineCall, Usage
from tests.support.scripted_evaluation import (
    POLICIES,
    asker_of,
    configs,
    engines_of,
    numbers,
    scripts,
    setting,
    sums,
)

EASY, HARD = sums(3)[1:]
Calls = dict[tuple[str, str], int]
PLAN: Calls = {("decompose", "decomposer"): 1}


async def ask(name: str, task: Task, **changed: Any) -> EvalOutcome:
    asker = asker_of(engines_of(scripts(**changed)))
    return await outcome_of(parse_policy(name, setting(), PolicyConfig()), task, asker, setting())


def calls_of(outcome: EvalOutcome) -> Calls:
    return dict(Counter((call.stage, call.model) for call in outcome.calls))


@pytest.mark.parametrize(
    ("name", "task", "answer", "calls"),
    [
        (
            "r2",
            HARD,
            "9",
            {**PLAN, ("allocate", "allocator"): 1, ("execute", "small"): 2, ("execute", "large"): 1},
        ),
        ("single:small", EASY, "6", {("pass_through", "small"): 1}),
        ("single:small", HARD, "0", {("pass_through", "small"): 1}),
        ("single:large", HARD, "9", {("pass_through", "large"): 1}),
        ("cot:large", HARD, "9", {("decompose", "large"): 1, ("execute", "large"): 3}),
        ("tot:small", HARD, "9", {("decompose", "small"): 1, ("execute", "small"): 12}),
        ("datashunt:small,large", EASY, "6", {("allocate", "small"): 1, ("pass_through", "small"): 1}),
        ("datashunt:small,large", HARD, "9", {("allocate", "small"): 1, ("pass_through", "large"): 1}),
        ("dot:small,large", HARD, "9", {**PLAN, ("execute", "small"): 3}),
        ("final-only:small,large", HARD, "9", {**PLAN, ("execute", "small"): 2, ("execute", "large"): 1}),
        ("cascade:small,large", EASY, "6", {("pass_through", "small"): 1}),
        ("cascade:small,large", HARD, "9", {("pass_through", "small"): 1, ("pass_through", "large"): 1}),
    ],
)
async def test_policy_asks_the_models_it_names_and_counts_every_call(
    name: str, task: Task, answer: str, calls: Calls
) -> None:
    outcome = await ask(name, task)
    assert (outcome.error, outcome.answer) == (None, answer)
    assert calls_of(outcome) == calls


async def test_random_draws_with_the_given_shares() -> None:
    everything = await outcome_of(
        random_policy({"small": 0.0, "large": 1.0}), HARD, asker_of(engines_of(scripts())), setting()
    )
    assert everything.subtask_models == ("large",) * 3


async def test_chain_of_thought_has_no_parallel_steps() -> None:
    outcome = await ask("cot:large", HARD)
    assert (outcome.num_subtasks, outcome.width, outcome.depth) == (3, 1, 3)


async def test_division_of_thoughts_keeps_the_dag_and_sends_unsure_steps_to_the_large_model() -> None:
    def unsure_of_sums(messages: Any, sampling: Any) -> Completion:
        is_sum = "<step>\nadd" in messages[-1].content
        logprobs = (-3.0 if is_sum else -0.001,)
        return Completion(
            text="7" if is_sum else "3", usage=Usage(prompt_tokens=1), finish_reason="stop", logprobs=logprobs
        )

    outcome = await ask("dot:small,large", HARD, small=unsure_of_sums)
    assert (outcome.answer, outcome.subtask_models) == ("6", ("small", "small", "large"))
    assert (outcome.width, outcome.depth) == (2, 2)
    assert Counter(call.model for call in outcome.calls if call.subtask == 3) == {"small": 1, "large": 1}


async def test_tree_of_thoughts_keeps_the_answer_with_the_higher_score() -> None:
    for seed_one_first in (False, True):
        score = {"0": "2", "1": "10"} if seed_one_first else {"0": "10", "1": "2"}

        def judge(messages: Any, sampling: Any, score: dict[str, str] = score) -> str:
            is_scoring = messages[0].content.startswith("You judge a proposed")
            return (
                score[str(numbers(messages[-1].content.rpartition("<proposed_answer>")[2])[0])]
                if is_scoring
                else str(sampling.seed)
            )

        outcome = await ask("tot:small", HARD, small=judge)
        assert outcome.answer == ("1" if seed_one_first else "0")


async def test_invalid_plan_gives_the_whole_question_to_the_model() -> None:
    outcome = await ask("cot:large", EASY, large=lambda messages, sampling: "6")
    assert (outcome.answer, outcome.is_plan_fallback, outcome.num_subtasks) == ("6", True, 1)


async def test_failed_query_keeps_its_cost() -> None:
    outcome = await ask("r2", HARD, large=[EngineRefused("no")], small=["3"])
    assert outcome.answer is None
    assert "subtask 3 failed on large" in (outcome.error or "")
    assert calls_of(outcome)[("execute", "small")] == 2
    assert sum((call.cost_usd for call in outcome.calls), Decimal(0)) > 0


@pytest.mark.parametrize("name", ["dot:small,large", "cascade:small,large"])
async def test_model_without_probabilities_has_no_confidence(name: str) -> None:
    outcome = await ask(name, HARD, small=["3"])
    assert outcome.answer is None
    assert "small returned no log-probabilities" in (outcome.error or "")
    assert outcome.calls


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "random"])
async def test_http_and_in_process_give_the_same_outcome(name: str) -> None:
    router, routing = configs()
    engines = engines_of(scripts())
    app = create_app(in_process(router, routing, lambda card: engines[card.name]), ServerConfig())
    policy = parse_policy(name, setting(), PolicyConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2/v1/") as client:
        over_http = await outcome_of(policy, HARD, HttpAsker(client), setting())
    here = await outcome_of(policy, HARD, asker_of(engines_of(scripts())), setting())
    assert without_times(over_http) == without_times(here)


async def test_model_without_response_formats_is_asked_without_one_over_http_too() -> None:
    """What is a hint in this process would be a demand to an endpoint."""

    class Formless(ScriptedEngine):
        async def generate(self, call: EngineCall) -> Completion:
            if call.sampling.response_format is not None:
                raise EngineRefused("no response_format here")
            return await super().generate(call)

    router, routing = configs()
    engines = {name: Formless(script) for name, script in scripts().items()}
    app = create_app(in_process(router, routing, lambda card: engines[card.name]), ServerConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2/v1/") as client:
        asker = HttpAsker(client)
        for _ in range(2):
            outcome = await outcome_of(
                parse_policy("cot:large", setting(), PolicyConfig()), HARD, asker, setting()
            )
            assert (outcome.error, outcome.answer) == (None, "9")


async def test_http_failure_has_an_unknown_cost() -> None:
    router, routing = configs()
    engines = engines_of(scripts(large=[EngineRefused("no")]))
    app = create_app(in_process(router, routing, lambda card: engines[card.name]), ServerConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2/v1/") as client:
        outcome = await outcome_of(
            parse_policy("r2", setting(), PolicyConfig()), HARD, HttpAsker(client), setting()
        )
    assert not outcome.is_cost_known
    assert "400 upstream_refused" in (outcome.error or "")


def without_times(outcome: EvalOutcome) -> EvalOutcome:
    calls = sorted(
        (c.model_copy(update={"start_s": 0.0, "end_s": 0.0}) for c in outcome.calls),
        key=lambda c: (c.stage, c.subtask or 0),
    )
    return outcome.model_copy(update={"calls": tuple(calls), "latency_s": 0.0})


# -- the compact dialect ---------------------------------------------------------------------------------

PROBLEM = task_of("words", {"id": "p", "query": "Ann has 3 bags of 9 coins and 12 coins.", "gold": "39"})


def compact(small_probability: float) -> dict[str, Any]:
    def arithmetic(messages: Any, sampling: Any) -> Completion:
        answer = {"3 * 9": "7 2", "7 2 + 2 1": "9 3"}.get(messages[-1].content, "0")
        logprobs = (small_probability - 1,) if sampling.logprobs else None
        return Completion(
            text=answer,
            usage=Usage(prompt_tokens=3, completion_tokens=2),
            finish_reason="stop",
            logprobs=logprobs,
        )

    return {
        "small": arithmetic,
        "large": arithmetic,
        "decomposer": ["n1 * n2 ; #1 + n3"],
        "allocator": ["@1 @1"],
    }


@pytest.mark.parametrize(
    "name", ["r2", "cot:small", "tot:small", "dot:small,large", "final-only:small,large"]
)
async def test_compact_workers_see_the_routers_own_prompts(name: str) -> None:
    asker, placed = asker_of(engines_of(compact(1.0)), codec="compact"), setting(codec="compact")
    outcome = await outcome_of(parse_policy(name, placed, PolicyConfig()), PROBLEM, asker, placed)
    assert (outcome.error, outcome.answer) == (None, "39")
    assert calls_of(outcome)[("decompose", "decomposer")] == 1


async def test_compact_datashunt_judges_by_the_small_models_confidence() -> None:
    placed = setting(codec="compact")
    policy = parse_policy("datashunt:small,large", placed, PolicyConfig())
    for probability, models in ((1.0, ["small"]), (0.2, ["small", "large"])):
        outcome = await outcome_of(
            policy, PROBLEM, asker_of(engines_of(compact(probability)), codec="compact"), placed
        )
        assert [call.model for call in outcome.calls] == models


# -- names, shapes, replies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "r3",
        "r2:small",
        "single",
        "single:",
        "single:tiny",
        "cot:small,large",
        "dot:small",
        "cascade:small",
    ],
)
def test_unknown_policy_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=repr(name)):
        parse_policy(name, setting(), PolicyConfig())


def test_router_models_may_be_asked_but_not_allocated() -> None:
    assert parse_policy("single:decomposer", setting(), PolicyConfig()).name == "single:decomposer"
    with pytest.raises(ConfigError, match="choose among small, large"):
        parse_policy("cot:decomposer", setting(), PolicyConfig())


def test_all_holds_every_kind_once() -> None:
    names = all_policies(setting())
    kinds = {name.partition(":")[0] for name in names}
    tuned = {"datashunt", "dot", "cascade"}
    assert kinds == {"r2", "single", "all", "cot", "tot", "random", "final-only", *tuned}
    assert len(set(names)) == len(names)
    known = [name for name in names if name.partition(":")[0] not in tuned]
    assert [parse_policy(name, setting(), PolicyConfig()).name for name in known] == known


@pytest.mark.parametrize(
    ("reply", "is_hard"),
    [("easy", False), ("Easy.", False), ("hard", True), ("not easy, hard", True), ("", True), ("?", True)],
)
def test_unclear_judgement_counts_as_hard(reply: str, is_hard: bool) -> None:
    assert parse_is_hard(reply) is is_hard


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("7", 7.0),
        ("Score: 10/10", 10.0),
        ("0", 0.0),
        ("2026: 8", 8.0),
        ("7.5", 0.0),
        ("", 0.0),
        ("great", 0.0),
    ],
)
def test_score_is_the_first_number_in_range(reply: str, score: float) -> None:
    assert parse_score(reply) == score
