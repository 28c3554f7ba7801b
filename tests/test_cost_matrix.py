"""A routed query is never dearer than the direct call on the default model: the matrix of `benchmarks`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from functools import cache
from itertools import product

import pytest

from benchmarks.cost_matrix import (
    BEGIN,
    DEFAULT,
    END,
    STATED,
    STEPS,
    TIERS,
    Outcome,
    markdown,
    run_cell,
    run_matrix,
    text_of,
    workloads,
)
from benchmarks.cost_matrix import Workload as W
from tests import ROOT


@cache
def matrix_of(router_tier: str) -> list[Outcome]:
    return asyncio.run(run_matrix(router_tier))


@pytest.fixture(params=TIERS)
def matrix(request: pytest.FixtureRequest) -> list[Outcome]:
    """All cells, with each of the tiers as decomposer and allocator."""
    return matrix_of(request.param)


def test_no_cell_costs_more_than_110_percent_of_the_direct_call(matrix: list[Outcome]) -> None:
    assert len(matrix) == len(workloads()) * len(TIERS) * len(STEPS)
    assert [cell for cell in matrix if cell.ratio > Decimal("1.10")] == []


def test_the_routers_ledger_equals_the_providers_bill_in_each_cell(matrix: list[Outcome]) -> None:
    assert [cell for cell in matrix if cell.booked_usd != cell.routed_usd] == []


def test_short_queries_take_one_call(matrix: list[Outcome]) -> None:
    cells = [cell for cell in matrix if cell.workload == "hi"]
    assert {(cell.num_calls, cell.ratio, cell.reason) for cell in cells} == {(1, 1, "short")}


def test_plans_on_cheaper_models_save_on_long_documents_where_a_cheap_model_plans() -> None:
    """A share of 10 % pays for plans of documents that have short answers; 5 % did not."""
    cells = [cell for cell in matrix_of("cheap") if "document" in cell.workload and cell.tier != DEFAULT]
    assert all(cell.is_planned and cell.ratio < Decimal("0.75") for cell in cells)


async def test_cheap_steps_route_a_question_with_a_long_answer_at_half_the_direct_bill() -> None:
    for num_steps in STEPS:
        cell = await run_cell(W("q", text_of(1_000), STATED, STATED), num_steps, "cheap")
        assert cell.is_planned
        assert cell.ratio <= Decimal("0.5")


@pytest.mark.parametrize("answer_tokens", [1, 5_000])
async def test_bound_holds_for_answers_of_any_length_where_none_is_stated(answer_tokens: int) -> None:
    for workload, tier in product(workloads(), TIERS):
        if workload.stated is None:
            cell = await run_cell(replace(workload, answer_tokens=answer_tokens), 8, tier)
            assert cell.ratio <= Decimal("1.10")


async def test_an_answer_half_as_long_as_expected_keeps_a_plan_below_the_direct_call() -> None:
    """Planning alone may then cost more than 10 % of the direct call: at most 10 % of the expected one."""
    for tier in TIERS:
        cell = await run_cell(W("q", text_of(1_000), STATED // 2, STATED), 8, tier)
        assert cell.ratio <= (1 if cell.is_planned else Decimal("1.20"))


def test_page_shows_the_matrix_that_was_computed() -> None:
    page = (ROOT / "docs" / "cost_matrix.md").read_text()
    table = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert table == markdown(matrix_of("cheap"))
