"""A fit lets `plan: auto` decide by the prompt alone, before any call and in less than a millisecond."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from r2_serve.config import RouterConfig
from r2_serve.errors import ConfigError
from r2_serve.router.fitted_plan import (
    NUM_SIZES,
    FittedPlan,
    FittedPlanFile,
    Line,
    read_fitted_plan,
    write_fitted_plan,
)
from r2_serve.router.router import in_process
from r2_serve.types import Trace
from tests.support.cpu import loops
from tests.support.in_process import Router, allocation_json, model, plan_json, query, routing
from tests.support.virtual_time import run


def line(intercept: float, hard: float = 0.0) -> Line:
    """A function of the one known word, "hard"."""
    return Line(intercept=intercept, terms=(hard,), sizes=(0.0,) * NUM_SIZES)


def fit_of(**fields: Any) -> FittedPlan:
    """Prompts with the word "hard" gain from a plan; all others lose. A plan costs half of a direct call."""
    usual = {
        "idf": {"hard": 1.0},
        "planned_right": line(2.0),
        "direct_right": line(3.0, hard=-3.0),
        "cost_ratio": line(-0.7),
        "answer_tokens": line(5.0),
        "planning_share": line(-4.0),
        "plan_tokens": line(4.0),
        "step_tokens": 20,
        "value": 0.0,
    }
    return FittedPlan(**{**usual, **fields})


def written(path: Path, fit: FittedPlan) -> str:
    about = {"made": "today", "source": "s", "planned": "r2", "direct": "large", "tasks": 100}
    expected = {"expected_difference": 0.0, "expected_cost_ratio": 0.5, "expected_planned": 0.5}
    write_fitted_plan(path, FittedPlanFile.model_validate({**about, **expected, "fit": fit}))
    return str(path)


def decided(tmp_path: Path, text: str, fit: FittedPlan, **virtual: Any) -> Trace:
    """The router's trace; the large model is forty times as dear as the others."""
    cards = {
        name: {"usd_per_mtok_in": Decimal(price), "usd_per_mtok_out": Decimal(price) * 4}
        for name, price in (("small", "0.1"), ("large", "4"), ("decomposer", "0.1"), ("allocator", "0.1"))
    }
    router = Router(
        routed=routing(plan="auto", plan_file=written(tmp_path / "plan.json", fit), **virtual),
        cards=cards,
        decomposer=[plan_json("find the first", "use #1")],
        allocator=[allocation_json("small", "small")],
        small=["half"],
        large=["whole"],
    )
    run(router.pipeline.answer(query(text)))
    return router.trace


@pytest.fixture(autouse=True)
def forgetful() -> None:
    """Tests write different fits to paths that may be equal."""
    read_fitted_plan.cache_clear()


def test_prompt_alone_decides_and_its_lengths_are_those_of_the_fit(tmp_path: Path) -> None:
    hard, easy = (decided(tmp_path, text, fit_of()) for text in ("a hard one", "an easy one"))
    assert hard.decision is not None and easy.decision is not None
    assert (hard.decision.action, hard.decision.reason) == ("planned", "may_save")
    assert (easy.decision.action, easy.decision.reason) == ("whole", "no_gain")
    assert hard.decision.expected_tokens == round(2.718281828**5)
    assert [call.stage for call in easy.calls] == ["execute"]


def test_short_queries_may_be_planned_where_a_fit_says_that_it_saves(tmp_path: Path) -> None:
    trace = decided(tmp_path, "hard", fit_of())
    assert trace.decision is not None and trace.decision.action == "planned"


def test_saved_cost_is_worth_some_right_answers(tmp_path: Path) -> None:
    """Half of a direct call is saved: at ten right answers a call that outweighs any loss."""
    trace = decided(tmp_path, "an easy one", fit_of(value=10.0))
    assert trace.decision is not None and trace.decision.action == "planned"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cost_ratio": line(0.1)}, "no_gain"),
        ({"planning_share": line(-2.0)}, "planning_too_dear"),
        ({"plan_tokens": line(9.0)}, "planning_too_dear"),
    ],
    ids=["a plan costs more than the direct call", "planning costs 14 % of it", "plans are very long"],
)
def test_guarantee_holds_with_a_fit_too(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    trace = decided(tmp_path, "hard", fit_of(value=1e6, **fields))
    assert trace.decision is not None
    assert (trace.decision.action, trace.decision.reason) == ("whole", reason)
    assert [call.model for call in trace.calls] == ["large"]


def test_planning_share_is_a_setting(tmp_path: Path) -> None:
    fit = fit_of(planning_share=line(-2.0), plan_tokens=line(4.0))
    trace = decided(tmp_path, "hard", fit, planning_share=Decimal("0.2"))
    assert trace.decision is not None and trace.decision.action == "planned"


def test_fit_without_the_cost_of_planning_leaves_that_to_arithmetic(tmp_path: Path) -> None:
    fit = fit_of(planning_share=None, plan_tokens=None, step_tokens=None)
    trace = decided(tmp_path, "hard", fit)
    assert trace.decision is not None
    assert (trace.decision.action, trace.decision.reason) == ("whole", "planning_too_dear")


def test_decision_about_a_long_prompt_takes_less_than_a_millisecond() -> None:
    words = [f"word{i}" for i in range(1_000)]
    wide = Line(intercept=0.0, terms=(0.1,) * len(words), sizes=(0.1,) * NUM_SIZES)
    names = ("planned_right", "direct_right", "cost_ratio", "answer_tokens", "planning_share", "plan_tokens")
    fit = fit_of(idf=dict.fromkeys(words, 1.0), **dict.fromkeys(names, wide))
    text = " ".join(words) + " more words" * 10_000
    fit.estimate(text)
    assert loops(lambda: fit.estimate(text)) < 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is no fit of `plan: auto`"),
        ('{"kind": "r2-gate-1"}', "is no fit of `plan: auto`"),
    ],
    ids=["missing", "torn", "a gate"],
)
def test_router_refuses_a_plan_file_that_it_cannot_use(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    names = ("small", "large", "decomposer", "allocator")
    config = RouterConfig(models=tuple(model(name) for name in names))
    with pytest.raises(ConfigError, match=message):
        in_process(config, routing(plan="auto", plan_file=str(path)), lambda card: None)  # type: ignore[arg-type,return-value]


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "plan.json", fit_of())
    Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), "kind": "r2-plan-0"}))
    with pytest.raises(ConfigError, match="fit it anew"):
        read_fitted_plan(path)
