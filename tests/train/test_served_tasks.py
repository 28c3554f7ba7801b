"""Served queries that were rated as right become training tasks; all do where a grader needs no gold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2_serve.config import ServerConfig
from r2_serve.errors import ConfigError
from r2_serve.feedback import FeedbackStore, Rating
from r2_serve.grading.graders import Grader
from r2_serve.traces import TraceWriter
from r2_serve.types import Trace
from r2_train.config import DataConfig
from r2_train.stages.served_tasks import write_served_tasks
from r2_train.stages.tasks import TaskSplit, is_correct


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Forty queries: a third was rated as wrong, a third as right, and a third not at all."""
    server = ServerConfig(trace_dir=str(tmp_path / "traces"))
    writer, store = TraceWriter.of(server), FeedbackStore(server)
    for number in range(40):
        trace = Trace(request_id=f"q{number}", model="r2", query=f"{number} + 1?", answer=f"{number + 1}")
        writer(trace)
        store.note(trace)
        if number % 3 < 2:
            store.rate("", Rating(request_id=trace.request_id, score=float(number % 3)))
    return tmp_path / "traces"


async def test_queries_rated_as_right_are_graded_by_the_answer_that_was_right(
    traces: Path, tmp_path: Path
) -> None:
    file = write_served_tasks(tmp_path / "run/served.jsonl", traces)
    assert len(file.read_text().splitlines()) == 13
    data = DataConfig(benchmark="qa", data=str(file), grader="number", num_validation=2)
    tasks = TaskSplit.load(data).by_id.values()
    assert {int(task.query.split()[0]) % 3 for task in tasks} == {1}
    task = next(iter(tasks))
    right = int(task.query.split()[0]) + 1
    async with Grader() as grader:
        assert await is_correct(grader, task, f"It is {right}.") is True
        assert await is_correct(grader, task, f"It is {right + 1}.") is False


def test_grader_of_ones_own_needs_no_rating(traces: Path, tmp_path: Path) -> None:
    file = write_served_tasks(tmp_path / "served.jsonl", traces, "mine:judge")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert (len(rows), sum(row["answer"] is None for row in rows)) == (40, 27)


def test_file_that_exists_is_kept(traces: Path, tmp_path: Path) -> None:
    file = write_served_tasks(tmp_path / "served.jsonl", traces)
    before = file.read_text()
    write_served_tasks(file, tmp_path / "gone")
    assert file.read_text() == before


def test_traces_without_ratings_are_refused(traces: Path, tmp_path: Path) -> None:
    (traces / "feedback.sqlite").unlink()
    with pytest.raises(ConfigError, match="clients rate answers"):
        write_served_tasks(tmp_path / "served.jsonl", traces)
