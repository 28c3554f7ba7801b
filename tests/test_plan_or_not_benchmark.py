"""`plan: auto` on SCAN mixed with one-step commands: both ways are evaluated, fitted and served."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import plan_samples
from benchmarks.plan_or_not import CLASSES, ClassRow, measure, write_config
from r2_serve.serve_config import load_without_ray


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[ClassRow]:
    return measure(tmp_path_factory.mktemp("plan-or-not"), num_each=40)


def test_accuracy_is_that_of_planning_always(rows: list[ClassRow]) -> None:
    assert [row.name for row in rows] == list(CLASSES)
    assert all(row.auto_accuracy >= row.always_accuracy for row in rows)
    assert rows[-1].auto_accuracy > rows[-1].direct_accuracy + 0.5


def test_no_class_of_commands_costs_more_than_the_direct_call_plus_10_percent(rows: list[ClassRow]) -> None:
    assert all(row.auto_cost <= 1.1 for row in rows)


def test_long_commands_are_planned_at_a_fraction_of_the_direct_cost(rows: list[ClassRow]) -> None:
    assert rows[-1].planned > 0.9 and rows[-1].auto_cost < 0.25


def test_embedded_router_plans_always_and_others_by_themselves(tmp_path: Path) -> None:
    """The embedded workers read no English."""
    write_config(tmp_path / "config.yaml")
    virtual = load_without_ray(tmp_path / "config.yaml").routing.virtual_models
    assert {model.plan for model in virtual.values()} == {"always"}
    assert type(virtual["r2"]).model_fields["plan"].default == "auto"


@pytest.mark.parametrize("virtual_model", ["r2", "r2-scan"])
async def test_samples_in_turn_pay_for_one_plan_at_equal_accuracy(virtual_model: str) -> None:
    at_once, in_turn = [await plan_samples.measure(virtual_model, way, 40) for way in plan_samples.WAYS]
    assert in_turn.accuracy >= at_once.accuracy
    assert at_once.calls == 3 and in_turn.calls < 1.1
    assert in_turn.tokens < 0.4 * at_once.tokens
