"""A run survives whatever kills it, refuses to mix with another, and stops where it was told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r2_serve.errors import EngineUnavailable
from r2_serve.lab.evaluation.asker import Asked, Asker
from r2_serve.lab.evaluation.report.figures import RunReport, report_of
from r2_serve.lab.evaluation.rows import EvalRow, merged, read_rows
from r2_serve.lab.evaluation.runner import Standing, read_shares
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.runs import RunError
from r2_serve.types import Query
from tests import ROOT
from tests.support.scripted_evaluation import (
    PAIR,
    POLICIES,
    asker_of,
    engines_of,
    lines_of,
    manifest_of,
    runner_of,
    scripts,
    sums,
)

FOUR = ("r2", "single:large", f"cascade:{PAIR}", "random")
"""Policies of the runs that are processes of their own."""


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class DyingAsker:
    """Asks as `asker` does, until the `num_asks`-th ask."""

    def __init__(self, asker: Asker, num_asks: int) -> None:
        self._asker, self._left = asker, num_asks

    async def ask(self, query: Query) -> Asked:
        self._left -= 1
        if self._left <= 0:
            raise Killed
        return await self._asker.ask(query)


def scripted() -> Asker:
    return asker_of(engines_of(scripts()))


def figures(report: RunReport) -> dict[str, Any]:
    """All of a report but its directory and what a clock told."""
    plain = report.model_dump(mode="json", exclude={"directory"})
    for policy in plain["policies"]:
        del policy["latency_p50_s"], policy["latency_p95_s"]
    del plain["manifest"]["starts"]
    return plain


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("undisturbed")
    asyncio.run(runner_of(directory, sums(12), POLICIES).run())
    return figures(report_of(directory))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(st.integers(1, 120), min_size=1, max_size=5),
    torn=st.integers(0, 400),
    num_at_once=st.integers(1, 40),
)
def test_run_killed_anywhere_ends_as_an_undisturbed_one(
    undisturbed: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    torn: int,
    num_at_once: int,
) -> None:
    directory = tmp_path_factory.mktemp("killed")
    for num_asks in kills:
        dying = DyingAsker(scripted(), num_asks)
        with contextlib.suppress(Killed):  # the last kills may come after the last ask
            asyncio.run(runner_of(directory, sums(12), POLICIES, dying, num_at_once=num_at_once).run())
        with (directory / "rows.jsonl").open("ab") as file:
            file.write(b'{"policy":"r2","task_id":"sum-1","x":"' + b"x" * torn)
    asyncio.run(runner_of(directory, sums(12), POLICIES, num_at_once=num_at_once).run())
    keys = Counter((line["policy"], line["task_id"]) for line in lines_of(directory))
    assert set(keys.values()) == {1}
    assert len(keys) == 12 * len(POLICIES)
    assert figures(report_of(directory)) == undisturbed


def test_process_killed_five_times_over_300_tasks_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    draw, num_tasks = random.Random(7), 300
    num_rows = num_tasks * len(FOUR)
    for _ in range(5):
        killed = start_driver(tmp_path / "killed", num_tasks)
        assert killed.stdout is not None
        for _ in range(draw.randint(0, num_rows // 5)):
            assert killed.stdout.readline() == "row\n"
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
    assert 0 < len(lines_of(tmp_path / "killed", is_whole=False)) < num_rows
    out, _ = start_driver(tmp_path / "killed", num_tasks).communicate()
    assert out.endswith("done\n")
    asyncio.run(runner_of(tmp_path / "whole", sums(num_tasks), FOUR).run())
    keys = Counter((line["policy"], line["task_id"]) for line in lines_of(tmp_path / "killed"))
    assert (len(keys), set(keys.values())) == (num_rows, {1})
    assert figures(report_of(tmp_path / "killed")) == figures(report_of(tmp_path / "whole"))


def start_driver(directory: Path, num_tasks: int, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.evaluation_driver", str(directory), str(num_tasks), *FOUR]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, **options)


def test_second_driver_on_a_directory_is_refused_and_the_first_continues(tmp_path: Path) -> None:
    first = start_driver(tmp_path, 100)
    assert first.stdout is not None
    assert first.stdout.readline() == "row\n"
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(RunError, match="being written by another process"):
        asyncio.run(runner_of(tmp_path, sums(100), FOUR).run())
    os.kill(first.pid, signal.SIGCONT)
    assert first.communicate()[0].endswith("done\n")


def test_full_disk_loses_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the kernel cuts a write at it and refuses the next."""
    limit = 30_000
    full = start_driver(
        tmp_path,
        40,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, errors = full.communicate()
    assert full.returncode == 1
    assert "rows.jsonl: only" in errors
    assert "free some space and give the same command again" in errors
    kept = (tmp_path / "rows.jsonl").read_bytes()
    assert limit - 1000 < len(kept) <= limit
    assert kept.endswith(b"\n")
    asyncio.run(runner_of(tmp_path, sums(40), FOUR).run())
    assert (tmp_path / "rows.jsonl").read_bytes().startswith(kept)
    assert set(Counter((line["policy"], line["task_id"]) for line in lines_of(tmp_path)).values()) == {1}
    asyncio.run(runner_of(tmp_path / "whole", sums(40), FOUR).run())
    assert figures(report_of(tmp_path)) == figures(report_of(tmp_path / "whole"))


async def test_finished_tasks_are_never_asked_again(tmp_path: Path) -> None:
    await runner_of(tmp_path, sums(5), ["r2", "single:large"]).run()
    engines = engines_of(scripts())
    standing = await runner_of(tmp_path, sums(5), ["r2", "single:large"], asker_of(engines)).run()
    assert standing.num_done == 10
    assert all(engine.calls == [] for engine in engines.values())


async def test_policies_take_turns_and_random_comes_last(tmp_path: Path) -> None:
    await runner_of(tmp_path, sums(3), ["random", "r2", "single:large"], num_at_once=1).run()
    order = [line["policy"] for line in lines_of(tmp_path)]
    assert order == ["r2", "single:large"] * 3 + ["random"] * 3
    assert read_shares(tmp_path) == {"small": pytest.approx(2 / 3), "large": pytest.approx(1 / 3)}


async def test_random_without_r2_is_uniform(tmp_path: Path) -> None:
    await runner_of(tmp_path, sums(40), ["random"]).run()
    models = Counter(model for line in lines_of(tmp_path) for model in line["outcome"]["subtask_models"])
    assert read_shares(tmp_path) == {}
    assert 40 < models["large"] < 80


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prices_sha256", {"prices_sha256": "0"}),
        ("config_sha256", {"config_sha256": "0"}),
        ("code_version", {"code_version": "0"}),
        ("seed", {"seed": 1}),
        ("num_tasks", {"num_tasks": 2}),
    ],
)
async def test_changed_run_is_refused_by_name(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    runner = runner_of(tmp_path, sums(3), ["single:large"])
    await runner.run()
    before = (tmp_path / "rows.jsonl").read_bytes()
    changed = manifest_of(sums(3), ["single:large"]).model_copy(update=change)
    runner.manifest = changed
    with pytest.raises(RunError, match=f"(?s)holds another run.*{name}: (was .*, now |changed)"):
        await runner.run()
    assert (tmp_path / "rows.jsonl").read_bytes() == before


async def test_other_tasks_are_named_without_their_hashes(tmp_path: Path) -> None:
    await runner_of(tmp_path, sums(3), ["single:large"]).run()
    with pytest.raises(RunError, match="num_tasks: was 3, now 2") as refused:
        await runner_of(tmp_path, sums(2), ["single:large"]).run()
    assert "sha256" not in refused.value.message


async def test_two_drivers_never_share_a_directory(tmp_path: Path) -> None:
    first = runner_of(tmp_path, sums(1), ["single:large"])
    await first.run()
    with JsonlLog(tmp_path / "rows.jsonl"), pytest.raises(RunError, match="being written by another process"):
        await first.run()


async def test_failures_are_rows_and_asked_again_only_on_request(tmp_path: Path) -> None:
    broken = asker_of(engines_of(scripts(large=[EngineUnavailable("down", 99.0)])))
    await runner_of(tmp_path, sums(4), ["single:large"], broken).run()
    assert Counter(line["status"] for line in lines_of(tmp_path)) == {"failed": 4}
    engines = engines_of(scripts())
    await runner_of(tmp_path, sums(4), ["single:large"], asker_of(engines)).run()
    assert engines["large"].calls == []
    standing = await runner_of(
        tmp_path, sums(4), ["single:large"], asker_of(engines), retry_errors=True
    ).run()
    assert (standing.num_done, standing.num_correct, standing.num_failed) == (4, 4, 0)
    report = report_of(tmp_path).policies[0]
    assert (report.statuses["correct"], report.statuses["failed"]) == (4, 0)
    assert report.total_cost_usd == sum((row.cost_usd for row in read_rows(tmp_path)), Decimal(0))


async def test_spending_stops_at_the_limit_and_earlier_runs_count(tmp_path: Path) -> None:
    whole = await runner_of(tmp_path / "whole", sums(10), ["single:large"]).run()
    one_task = whole.cost_usd / 10
    part = await runner_of(
        tmp_path / "part", sums(10), ["single:large"], num_at_once=1, max_cost_usd=4 * one_task
    ).run()
    assert (part.num_done, part.cost_usd) == (4, 4 * one_task)
    assert "Raise --max-cost-usd" in (part.stopped_because or "")
    again = await runner_of(
        tmp_path / "part", sums(10), ["single:large"], num_at_once=1, max_cost_usd=6 * one_task
    ).run()
    assert (again.num_done, again.cost_usd) == (6, 6 * one_task)
    rest = await runner_of(tmp_path / "part", sums(10), ["single:large"]).run()
    assert (rest.num_done, rest.stopped_because) == (10, None)
    exact = await runner_of(tmp_path / "exact", sums(10), ["single:large"], max_cost_usd=whole.cost_usd).run()
    assert (exact.num_done, exact.stopped_because) == (10, None)


async def test_dead_endpoint_stops_the_run(tmp_path: Path) -> None:
    broken = asker_of(engines_of(scripts(large=[EngineUnavailable("down", 99.0)])))
    standing = await runner_of(
        tmp_path, sums(50), ["single:large"], broken, num_at_once=1, max_failures_in_a_row=5
    ).run()
    assert (standing.num_done, standing.num_failed) == (6, 6)
    assert "in a row failed" in (standing.stopped_because or "")


async def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    await runner_of(tmp_path, sums(2), POLICIES).run()
    for row in read_rows(tmp_path):
        assert EvalRow.model_validate_json(row.model_dump_json(exclude_defaults=True)) == row


async def test_second_try_keeps_the_calls_of_the_first(tmp_path: Path) -> None:
    await runner_of(tmp_path, sums(1), ["single:large"]).run()
    row = next(read_rows(tmp_path))
    both = merged([row.model_copy(update={"status": "failed"}), row])[row.key]
    assert both.status == "correct"
    assert both.cost_usd == 2 * row.cost_usd


async def test_progress_shows_accuracy_and_spend_so_far(tmp_path: Path) -> None:
    seen: list[tuple[int, int, Decimal]] = []

    def note(standing: Standing) -> None:
        seen.append((standing.num_done, standing.num_correct, standing.cost_usd))

    await runner_of(tmp_path, sums(3), ["single:small"], on_row=note, num_at_once=1).run()
    assert [done for done, _, _ in seen] == [0, 1, 2, 3]
    assert [correct for _, correct, _ in seen] == [0, 1, 2, 2]
    assert json.loads((tmp_path / "run.json").read_text())["num_tasks"] == 3
    assert [cost for _, _, cost in seen] == sorted(cost for _, _, cost in seen)
