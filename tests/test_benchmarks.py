"""The programs in `benchmarks/` fit the code that they measure."""

from __future__ import annotations

import importlib

import pytest

from benchmarks import page
from benchmarks.eval_throughput import ask_models, ask_router, measure, measure_by_hand
from tests import ROOT

NEEDS_TORCH = ("recovery", "training")
BENCHMARKS = [
    path.stem for path in sorted((ROOT / "benchmarks").glob("*.py")) if path.stem not in NEEDS_TORCH
]


@pytest.mark.parametrize(
    "name",
    [
        *BENCHMARKS,
        "simulation.study",
        *(pytest.param(name, marks=pytest.mark.train) for name in NEEDS_TORCH),
    ],
)
def test_every_benchmark_finds_the_names_that_it_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert importlib.import_module(f"benchmarks.{name}").__doc__


@pytest.mark.parametrize("policy", ["single:worker", "r2"])
def test_runner_router_and_models_answer_the_same_tasks_correctly(policy: str) -> None:
    rows = [
        measure(4, policy, 2),
        measure_by_hand("router by hand", ask_router(policy), 4, 2),
        measure_by_hand("models by hand", ask_models(policy), 4, 2),
    ]
    assert all(row["tasks_per_s"] > 0 for row in rows)


def test_ratio_of_percentiles_has_the_interval_of_its_pairs() -> None:
    slow = [[2.0, 4.0, 6.0], [2.0, 4.0, 8.0]]
    fast = [[each / 2 for each in block] for block in slow]
    assert page.ratio(slow, fast, 50) == [2.0, 2.0, 2.0], "each pair says the same"
    middle, low, high = page.ratio(slow, [[1.0, 2.0, 3.0], [2.0, 4.0, 8.0]], 50)
    assert low == 1.0 < middle < high == 2.0
