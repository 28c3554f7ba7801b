"""`make ladder` asks each worker once, tunes baselines on development problems, and counts every call."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from r2_serve import EMBEDDED, EMBEDDED_CONFIG
from r2_serve.errors import ConfigError, EngineRefused
from r2_serve.lab.domains import everyday, everyday_steps
from r2_serve.lab.ladder import policies, tuning
from r2_serve.lab.ladder.policies import agreement, cascade, constant, final_only, run_plan
from r2_serve.lab.ladder.replies import Missing, Replies
from r2_serve.lab.ladder.run import study, write_summary
from r2_serve.lab.ladder.study import Row, cheapest_rival, means
from r2_serve.serve_config import load
from r2_serve.types import Completion, Delta, EngineCall, Usage
from tests.support.in_process import model, plan_of

PRICES = {"small": 1.0, "large": 10.0}


class Worker:
    """A scripted worker: it solves steps of some kinds, is sure of these alone, and counts its calls."""

    def __init__(self, *kinds: str) -> None:
        self.kinds, self.num_calls = kinds, 0

    async def generate(self, call: EngineCall) -> Completion:
        self.num_calls += 1
        prompt = call.messages[-1].text
        if prompt == "unreadable":
            raise EngineRefused("a word that the model does not know")
        kind = everyday_steps.kind_of(prompt)
        is_known = kind in self.kinds
        text = _worker_answer(prompt) if is_known else "0"
        logprob = -0.01 if is_known else -3.0
        return Completion(
            finish_reason="stop",
            text=text,
            usage=Usage(prompt_tokens=6, completion_tokens=4),
            logprobs=(logprob,) * 3,
        )

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        raise NotImplementedError


def _worker_answer(prompt: str) -> str:
    """The exact answer to `5 4 6 + 2 1` or `max 5 4 , 6` in the workers' notation."""
    operands = policies.CODEC.parse_answer(prompt)
    kind = everyday_steps.kind_of(prompt)
    answer = everyday_steps.solve(operands.replace(",", " ,") if kind == "max" else operands)
    return " ".join(reversed(answer))


def replies() -> Replies:
    return Replies({"small": Worker("+"), "large": Worker("+", "max")})


PLAN = plan_of("645 + 12", "max 34 , 12 , 78", "#1 + #2")


async def test_a_reply_is_asked_once_for_all_policies_and_later_steps_read_earlier_answers() -> None:
    known = replies()
    with pytest.raises(Missing):
        run_plan(0, PLAN, constant("large"), known)
    for _ in range(2):
        (run,) = await known.settled([lambda: run_plan(0, PLAN, constant("large"), known)])
    assert run.answer == str(645 + 12 + 78)
    assert run.cost_usd(PRICES) == pytest.approx(3 * 10 * 10.0 / 1e6)
    assert known.engines["large"].num_calls == 3  # type: ignore[attr-defined]


async def test_a_prompt_that_a_worker_cannot_read_has_an_empty_reply_that_costs_nothing() -> None:
    known = replies()
    await known.ask([("small", "unreadable", ())])
    assert known.of("small", "unreadable").tokens == 0


@pytest.mark.parametrize(
    ("policy", "models"),
    [
        (cascade(("small", "large"), (0.5,), "least"), ["small", "small", "large", "small"]),
        (cascade(("small", "large"), (0.999,), "quantile"), ["small", "large"] * 3),
        (final_only("small", "large"), ["small", "small", "large"]),
        (agreement("small", "small", "large"), ["small", "small"] * 3),
        (
            agreement("small", "large", "large"),
            ["small", "large", "small", "large", "large", "small", "large"],
        ),
    ],
)
async def test_each_policy_asks_the_workers_that_its_rule_names(
    policy: policies.Policy, models: list[str]
) -> None:
    known = replies()
    (run,) = await known.settled([lambda: run_plan(0, PLAN, policy, known)])
    assert [model for model, _ in run.calls] == models


async def test_tuned_figures_of_development_are_those_of_running_the_plans() -> None:
    tasks = [
        task
        for task in everyday.tasks("train", 800)
        if {everyday_steps.kind_of(s.text) for s in task.reference_plan.subtasks} <= {"+", "max"}
    ]
    assert len(tasks) >= 3
    known = replies()
    table = await tuning.step_table(tasks, PRICES, known)
    assert table.figures(table.right[:, 1], table.cost_usd[:, 1])[0] == 1.0
    best = tuning.cheapest_within(list(tuning.pairs(table)), 0.0, 1.0)
    work = [lambda i=i, t=t: run_plan(i, t.reference_plan, best.policy, known) for i, t in enumerate(tasks)]
    runs = await known.settled(work)
    assert [run.answer for run in runs] == [task.gold for task in tasks]
    assert best.cost_usd == pytest.approx(np.mean([run.cost_usd(PRICES) for run in runs]))
    told = tuning.cheapest_within(list(tuning.lookups(table)), 0.0, 1.0)
    assert told.cost_usd < best.cost_usd


async def test_oracle_gives_each_step_to_the_cheapest_worker_that_is_right() -> None:
    known = replies()
    pool = [model("small", usd_per_mtok_out="1"), model("large", usd_per_mtok_out="10")]
    (run,) = await known.settled([lambda: run_plan(0, PLAN, policies.oracle(pool), known)])
    assert [name for name, _ in run.calls] == ["small", "large", "small"]
    assert run.answer == str(645 + 12 + 78)


def row(name: str, accuracy: float, cost: float, *, is_rival: bool = True) -> Row:
    right = np.arange(1000) < round(1000 * accuracy)
    return Row(
        name, right.astype(float), np.full(1000, cost), np.zeros(1000), {"small": 1.0}, is_rival=is_rival
    )


ROWS = [
    row("r2", 0.95, 1.0), row("cheap", 0.93, 1.5), row("rival", 0.941, 2.0), row("all:x", 0.96, 3.0),
    row("lookup", 0.95, 0.5, is_rival=False),
]  # fmt: skip


def test_the_rival_is_the_cheapest_baseline_within_a_point_and_lookup_is_none() -> None:
    rival = cheapest_rival(ROWS)
    assert rival is not None
    assert rival.policy == "rival"
    assert cheapest_rival([ROWS[0], ROWS[-1]]) is None


def test_a_router_that_is_better_than_all_is_compared_with_the_best_of_them() -> None:
    rival = cheapest_rival([row("r2", 0.99, 1.0), *ROWS[1:]])
    assert rival is not None
    assert rival.policy == "all:x"


def test_means_over_equal_seeds_are_the_seed() -> None:
    assert means([ROWS, ROWS])[0].figures() == ROWS[0].figures()


async def test_a_folder_without_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trained pair"):
        await study(load(EMBEDDED_CONFIG), tmp_path, Console(quiet=True), num_test=2, num_development=2)


@pytest.mark.engine
async def test_summary_of_a_small_run_of_the_shipped_checkpoints_has_every_figure(tmp_path: Path) -> None:
    served = load(EMBEDDED_CONFIG)
    found = await study(served, EMBEDDED / "everyday", Console(quiet=True), num_test=6, num_development=12)
    summary = json.loads(write_summary(found, tmp_path).read_text())
    assert summary["tasks"] == 6 and summary["seeds"] == 3
    figures = {"accuracy", "strongest_accuracy", "cheapest_rival", "cost_over_cheapest_rival"}
    assert figures | {"workers_over_10_percent"} <= set(summary)
    policies_named = {row["policy"].partition(":")[0] for row in summary["rows"]}
    assert {"r2", "single", "cot", "random", "all", "final-only", "dot", "cascade"} <= policies_named
    assert {"agree", "lookup", "oracle"} <= policies_named
    assert [row["pool"] for row in summary["models"]] == [f"{n} models" for n in range(2, 10)]
    assert len(summary["training"]["after SFT"]) == len(summary["training"]["after GRPO"]) == 3
