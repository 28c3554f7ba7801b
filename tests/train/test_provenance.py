"""A changed setting has the stages made again that depend on it, and no others."""

from __future__ import annotations

import asyncio
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from r2_serve.files import write_whole
from r2_serve.lab.jsonl import read_jsonl
from r2_train.config import MODULES, Module, TrainConfig
from r2_train.provenance import Provenance, digest
from r2_train.run import Pair, TrainingRun
from r2_train.stages.alternate import ROUNDS, Alternation, RoundRow
from r2_train.stages.collect import PLANS, CollectedTask, CollectSummary
from r2_train.stages.measure import RouterScore
from r2_train.stages.rewards import Reference
from tests import EMBEDDED

SCAN: dict[str, Any] = {
    "pool": {"virtual_model": "r2-scan"},
    "data": {"benchmark": "scan", "num_train": 8, "num_validation": 4},
    "collect": {"num_candidates": 1, "executor": "scan-22k"},
}
SCORE = RouterScore(
    num_tasks=1, accuracy=1, worker_cost_ratio=1, total_cost_ratio=1, critical_path_ratio=1,
    mean_subtasks=1, mean_depth=1, calls_per_query={}, num_failed=0, num_plan_fallbacks=0,
)  # fmt: skip
TRAINED: tuple[tuple[Module, str], ...] = (("allocator", "scan-1k"), ("decomposer", "scan-3k"))
"""The half-rounds of the table, and an embedded model that stands for the checkpoint of each."""


def run_in(path: Path, **changed: Any) -> tuple[TrainingRun, io.StringIO]:
    said = io.StringIO()
    config = TrainConfig.model_validate({**SCAN, **changed})
    return TrainingRun(config, path, Console(file=said, width=200)), said


def collect(path: Path, **changed: Any) -> tuple[CollectSummary, str]:
    run, said = run_in(path, **changed)
    return asyncio.run(run.collect()), said.getvalue()


def test_collected_plans_outlive_a_changed_grpo_and_more_tasks_but_not_a_changed_teacher(
    tmp_path: Path,
) -> None:
    collect(tmp_path)
    plans = tmp_path / "collect" / PLANS
    first = plans.read_bytes()
    _, said = collect(tmp_path, allocator={"grpo": {"reward": {"cost": 0.5}}}, seed=3)
    assert plans.read_bytes() == first and "again" not in said
    more, said = collect(tmp_path, data={**SCAN["data"], "num_train": 9})
    assert plans.read_bytes().startswith(first) and "again" not in said and more.num_tasks == 13
    _, said = collect(tmp_path, collect={**SCAN["collect"], "temperature": 0.5})
    assert "collect is made again, as collect.temperature changed" in said
    assert (tmp_path / "collect.old-1" / PLANS).exists(), "nothing is deleted"


def test_changed_price_makes_the_search_again_and_not_the_plans(tmp_path: Path) -> None:
    collect(tmp_path)
    run, _ = run_in(tmp_path)
    asyncio.run(run.search())
    changed, said = run_in(tmp_path, pool={**SCAN["pool"], "prices": {"scan-3k": Decimal(2)}})
    asyncio.run(changed.collect())
    assert "again" not in said.getvalue()
    assert changed.sft_examples("allocator")
    assert "r2-train search" in said.getvalue(), "what is read was made with other prices"
    asyncio.run(changed.search())
    assert "search is made again" in said.getvalue() and "scan-3k" in said.getvalue()


def test_examples_come_from_present_plans_alone(tmp_path: Path) -> None:
    collect(tmp_path)
    run, _ = run_in(tmp_path)
    asyncio.run(run.search())
    before = [example.task_id for example in run.sft_examples("allocator")]
    rows = read_jsonl(tmp_path / "collect" / PLANS, CollectedTask)
    kept = [row.model_dump_json() for row in rows if row.task_id != before[0]]
    write_whole(tmp_path / "collect" / PLANS, "\n".join(kept) + "\n")
    assert [example.task_id for example in run.sft_examples("allocator")] == before[1:]


def test_result_of_an_earlier_version_is_taken_for_current(tmp_path: Path) -> None:
    result = tmp_path / "collect"
    result.mkdir()
    provenance = Provenance(tmp_path, Console(quiet=True))
    provenance.renew("collect", {"a": 1}, result)
    assert result.exists()
    provenance.renew("collect", {"a": 2}, result)
    assert not result.exists() and (tmp_path / "collect.old-1").exists()


def alternation(path: Path, **changed: Any) -> tuple[Alternation, Pair]:
    run, _ = run_in(path, **changed)
    start: Pair = {module: EMBEDDED / f"scan-{module}" for module in MODULES}
    return Alternation(run, start, Reference(cost_usd=1, critical_path_tokens=1)), start


def rounds_of(path: Path) -> tuple[Pair, list[RoundRow]]:
    """A table of two half-rounds that were kept, with their checkpoints."""
    state, start = alternation(path)
    state.record(RoundRow(half_round=0, is_kept=True, score=SCORE, made_from=digest(state.facts(None))))
    for number, (module, base) in enumerate(TRAINED, 1):
        row = RoundRow(
            half_round=number, module=module, checkpoint="final", is_kept=True, score=SCORE,
            made_from=digest(state.facts(module)),
        )  # fmt: skip
        folder = state.folder(number, module)
        folder.mkdir(parents=True)
        (folder / "final").symlink_to(EMBEDDED / base)
        state.pair = {**state.pair, module: folder / "final"}
        state.record(row)
    return start, state.rows


@pytest.mark.parametrize(
    ("changed", "num_left"),
    [
        ({}, 3),
        ({"decomposer": {"grpo": {"reward": {"cost": 0.9}}}}, 2),
        ({"allocator": {"grpo": {"num_prompts": 5}}}, 1),
        ({"alternate": {"num_rounds": 9}}, 3),
        ({"alternate": {"cost_weight": 0.9}}, 0),
    ],
    ids=["nothing", "decomposer", "allocator", "more rounds", "rank"],
)
def test_half_rounds_are_made_again_from_the_first_that_a_setting_concerns(
    tmp_path: Path, changed: dict[str, Any], num_left: int
) -> None:
    start, rows = rounds_of(tmp_path)
    state, _ = alternation(tmp_path, **changed)
    state.replay(start, rows)
    assert [row.half_round for row in state.rows] == list(range(num_left))
    assert len(list(read_jsonl(tmp_path / ROUNDS, RoundRow))) == num_left
    left = [path.name for path in (tmp_path / "rounds").iterdir() if ".old" not in path.name]
    assert len(left) == max(0, num_left - 1)
    assert (state.pair["allocator"] == start["allocator"]) == (num_left < 2)
