"""`r2-serve load` over HTTP on a loopback port: the real client against the real router, and against servers
that misbehave."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.grading.sandbox import SandboxUnavailable
from r2_serve.lab.load.failing import check_failures
from r2_serve.lab.load.records import ClusterCounts
from r2_serve.lab.load.replicas import ReadReplicas
from r2_serve.lab.load.run_directory import RequestFile, claim, read_timeline, under_way
from r2_serve.lab.load.session import LoadOptions, Target, run_load
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.runs import RunError
from r2_serve.lab.workload import Workload
from r2_serve.lab.workload.failures import NodeDies, ReplicaDies
from r2_serve.ops.local.controller_log import PolicyFailed
from tests.support.load_endpoint import chunk, event, router_app, serving, sse_app, whole

SHAPES = [{"waves": [{"model": "small", "count": [1, 3], "words": [5, 9]}, {"model": "large", "words": 7}]}]


def workload(rate_per_s: float = 50.0, duration_s: float = 1.0, **fields: Any) -> Workload:
    arrivals = {"kind": "constant", "rate_per_s": rate_per_s}
    return Workload.model_validate(
        {
            "name": "w",
            "duration_s": duration_s,
            "arrivals": arrivals,
            "tasks": {"kind": "synthetic", "shapes": SHAPES},
            **fields,
        }
    )


def requests(directory: Path) -> list[Any]:
    return sorted(RequestFile(directory), key=lambda record: record.index)


async def load_against(
    server: Any, directory: Path, given: Workload | None = None, **options: Any
) -> LoadSummary:
    async with serving(server) as url:
        return await run_load(
            given or workload(), Target(url), LoadOptions(out=directory, interval_s=0.2, **options)
        )


async def test_router_answers_synthetic_tasks_by_their_own_plans_and_reports_their_cost(
    tmp_path: Path,
) -> None:
    load = workload(slo={"latency_s": 30.0})
    summary = await load_against(router_app(), tmp_path / "run", load)
    assert (summary.num_sent, summary.num_ok, summary.num_good, summary.slo_attainment) == (50, 50, 50, 1.0)
    drawn = list(load.requests())
    for record, request in zip(requests(tmp_path / "run"), drawn, strict=True):
        assert record.num_subtasks == len(request.steps or ())
        assert record.cost_usd is not None and record.cost_usd > 0
        assert record.first_token_s is not None and record.sent_s < record.first_token_s < record.end_s
    assert summary.cost_usd == sum(record.cost_usd for record in requests(tmp_path / "run"))
    timeline = list(read_timeline(tmp_path / "run"))
    assert (
        timeline[-1].num_done == 50
        and timeline[-1].queue is not None
        and timeline[-1].spent_usd == summary.cost_usd
    )
    assert LoadSummary.model_validate_json((tmp_path / "run" / "summary.json").read_text()) == summary
    assert "Over time" in (tmp_path / "run" / "report.html").read_text()


async def test_whole_replies_are_counted_like_streamed_ones(tmp_path: Path) -> None:
    summary = await load_against(router_app(), tmp_path / "run", workload(20, 0.5), is_streamed=False)
    assert (
        summary.num_ok == 10
        and summary.ttft_s is None
        and summary.cost_usd > 0
        and summary.completion_tokens > 0
    )


@pytest.mark.parametrize("max_open", [200, 1])
async def test_stall_of_the_server_shows_in_every_latency(tmp_path: Path, max_open: int) -> None:
    """Requests due in the 0.8 s in which the server answers none wait, also if there is one connection."""
    resumed = asyncio.Event()

    async def answer(number: int) -> list[bytes]:
        if number == 10:
            asyncio.get_running_loop().call_later(0.8, resumed.set)
        if number >= 10:
            await resumed.wait()
        return whole()

    summary = await load_against(sse_app(answer), tmp_path / "run", workload(50, 1.5), max_open=max_open)
    assert summary.num_ok == 75
    (stalled_at,) = [record.intended_start_s for record in requests(tmp_path / "run") if record.index == 10]
    waited = [
        record
        for record in requests(tmp_path / "run")
        if stalled_at <= record.intended_start_s < stalled_at + 0.7
    ]
    assert len(waited) == 35
    for record in waited:
        assert record.latency_s > 0.8 - (record.intended_start_s - stalled_at) - 0.01
    assert summary.latency_s is not None and summary.latency_s.max > 0.79
    assert (summary.info.blocked_s > 0.5) == (max_open == 1)
    assert any("--max-open" in warning for warning in summary.warnings) == (max_open == 1)


FAULTY_STREAMS = {
    "cut off": [chunk("a")],
    "200 subtask_failed": [chunk("a"), event({"error": {"code": "subtask_failed", "message": "2 failed"}})],
    "not a chat completion": [b"data: {broken\n\n"],
}
NOT_CHUNKS: list[Any] = [
    {"no": "choices"},
    {"choices": [{"index": 0, "delta": None}]},
    {"choices": [None]},
    {"choices": 3},
    {"choices": [{"delta": {"content": {"a": 1}}}]},
    {"choices": [], "r2": {"cost_usd": "free", "subtasks": 1}},
    [],
    "text",
    7,
]
HARMLESS_CHUNKS: list[Any] = [
    {"choices": [{"index": 0}]},
    {"choices": [], "usage": "many"},
    {"choices": [], "usage": {"prompt_tokens": "x"}},
]


@pytest.mark.parametrize(("kind", "pieces"), list(FAULTY_STREAMS.items()))
async def test_faulty_stream_is_one_failed_request_with_its_reason(
    tmp_path: Path, kind: str, pieces: list[bytes]
) -> None:
    async def answer(number: int) -> list[bytes]:
        return pieces if number else whole()

    summary = await load_against(sse_app(answer), tmp_path / "run", workload(8, 0.5))
    assert (summary.num_ok, summary.errors) == (1, {kind: 3})


async def test_chunks_of_a_wrong_form_fail_their_requests_alone(tmp_path: Path) -> None:
    async def answer(number: int) -> list[bytes]:
        return [chunk("a"), event(NOT_CHUNKS[number]), *whole()] if number < len(NOT_CHUNKS) else whole()

    summary = await load_against(sse_app(answer), tmp_path / "run", workload(16, 1.0))
    assert (summary.num_sent, summary.num_ok) == (16, 16 - len(NOT_CHUNKS))
    assert summary.errors == {"not a chat completion": len(NOT_CHUNKS)}


async def test_chunks_without_a_delta_or_with_unreadable_usage_fail_no_request(tmp_path: Path) -> None:
    async def answer(number: int) -> list[bytes]:
        return [chunk("a"), *(event(harmless) for harmless in HARMLESS_CHUNKS), *whole()]

    summary = await load_against(sse_app(answer), tmp_path / "run", workload(8, 0.5))
    assert (summary.num_ok, summary.errors) == (4, {})


def failing_policy() -> ReadReplicas:
    """A reader of replica counts that finds an autoscaling policy failing at its third reading."""
    errors = iter([None, None, PolicyFailed("an autoscaling policy fails: ValueError: no requests")])

    def read() -> ClusterCounts:
        if (error := next(errors)) is not None:
            raise error
        return ClusterCounts()

    return read


async def test_failing_autoscaling_policy_ends_the_run_with_its_error_and_a_summary(tmp_path: Path) -> None:
    async def answer(number: int) -> list[bytes]:
        return whole()

    options = LoadOptions(out=tmp_path / "run", interval_s=0.2)
    async with serving(sse_app(answer)) as url:
        with pytest.raises(PolicyFailed, match="ValueError: no requests\nthe run ended there"):
            await run_load(workload(20, 60.0), Target(url, failing_policy()), options)
    summary = LoadSummary.model_validate_json((tmp_path / "run" / "summary.json").read_text())
    assert summary.info.is_interrupted and summary.wall_s < 30


async def test_failures_of_the_workload_happen_at_their_times(tmp_path: Path) -> None:
    async def answer(number: int) -> list[bytes]:
        return whole()

    failures = [{"at_s": 0.3, "kills": "node"}, {"at_s": 0.1, "kills": "replica", "app": "m"}]
    asked = Workload.model_validate({**workload(8, 1.0).model_dump(), "failures": failures})
    happened: list[str] = []
    async with serving(sse_app(answer)) as url:
        with pytest.raises(ConfigError, match="they happen on a local cluster only"):
            await run_load(asked, Target(url), LoadOptions(out=tmp_path / "none"))
        target = Target(url, kill=lambda failure: happened.append(failure.kills))
        await run_load(asked, target, LoadOptions(out=tmp_path / "run"))
    assert happened == ["replica", "node"]


@pytest.mark.parametrize(("app", "told"), [("m-smal", "did you mean 'm-small'?"), (None, "besides the head")])
def test_failure_of_what_a_local_cluster_lacks_is_refused_before_it_starts(
    app: str | None, told: str
) -> None:
    failure = NodeDies(at_s=1, kills="node") if app is None else ReplicaDies(at_s=1, kills="replica", app=app)
    with pytest.raises(ConfigError) as e:
        check_failures([failure], ["m-small"], has_nodes=False)
    assert told in e.value.message


async def test_refusal_is_counted_by_its_status_and_code(tmp_path: Path) -> None:
    async def answer(number: int) -> list[bytes]:
        return [json.dumps({"error": {"code": "overloaded", "message": "the queue is full"}}).encode()]

    summary = await load_against(sse_app(answer, status=429), tmp_path / "run", workload(8, 0.5))
    assert summary.errors == {"429 overloaded": 4}
    assert requests(tmp_path / "run")[0].error == "429 overloaded: the queue is full"
    assert summary.num_cost_unknown == 4


async def test_endless_answer_fails_at_the_timeout(tmp_path: Path) -> None:
    async def answer(number: int) -> list[bytes]:
        await asyncio.sleep(60)
        return whole()

    summary = await load_against(sse_app(answer), tmp_path / "run", workload(4, 0.5), timeout_s=0.3)
    assert summary.errors == {"timeout": 2}
    assert summary.wall_s < 5


async def test_ctrl_c_writes_a_report_of_the_ended_requests(tmp_path: Path) -> None:
    async def answer(number: int) -> list[bytes]:
        if number == 5:  # once: a second signal could come when the run no longer catches it
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        if number >= 5:
            await asyncio.sleep(60)
        return whole()

    summary = await load_against(sse_app(answer), tmp_path / "run", workload(20, 30.0))
    assert summary.info.is_interrupted and any("interrupted" in warning for warning in summary.warnings)
    assert summary.num_ok == 5 and summary.num_unfinished >= 1 and summary.num_failed == 0
    assert summary.slo_attainment == 1.0  # of those that ended
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "requests.jsonl",
        "timeline.jsonl",
        "summary.json",
        "report.html",
    }


async def test_answers_to_a_benchmark_are_graded(tmp_path: Path) -> None:
    tasks = {"kind": "benchmark", "name": "words", "dataset": "test@20", "model": "r2"}
    load = workload(20, 1.0, tasks=tasks)
    golds = {request.text: str(request.task.row["gold"]) for request in load.requests() if request.task}
    wrong = {request.text for request in load.requests() if request.index % 4 == 0}

    async def answer(text: str) -> list[bytes]:
        return whole("-1" if text in wrong else golds[text])

    summary = await load_against(sse_app(answer_to=answer), tmp_path / "run", load)
    assert (summary.num_graded, summary.num_correct, summary.num_good) == (20, 15, 15)
    assert [record.correct for record in requests(tmp_path / "run")] == [bool(i % 4) for i in range(20)]


async def test_answers_are_reported_even_if_they_cannot_be_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise SandboxUnavailable("no bubblewrap here")

    monkeypatch.setattr(Grader, "grade", refuse)
    tasks = {"kind": "benchmark", "name": "words", "dataset": "test@5", "model": "r2"}

    async def answer(number: int) -> list[bytes]:
        return whole("7")

    with pytest.raises(
        SandboxUnavailable, match="no bubblewrap here\nnothing was graded; 5 answers are reported"
    ):
        await load_against(sse_app(answer), tmp_path / "run", workload(20, 0.25, tasks=tasks))
    summary = LoadSummary.model_validate_json((tmp_path / "run" / "summary.json").read_text())
    assert (summary.num_ok, summary.num_graded, len(requests(tmp_path / "run"))) == (5, 0, 5)


async def test_earlier_run_is_never_overwritten_and_set_aside_on_request(tmp_path: Path) -> None:
    first = await load_against(router_app(), tmp_path / "run", workload(4, 0.5))
    with pytest.raises(ConfigError, match=r"--set-aside"):
        await load_against(router_app(), tmp_path / "run", workload(8, 0.5))
    second = await load_against(router_app(), tmp_path / "run", workload(8, 0.5), set_aside=True)
    assert (first.num_sent, second.num_sent) == (2, 4)
    assert len(requests(tmp_path / "run.1")) == 2 and len(requests(tmp_path / "run")) == 4


async def test_impossible_runs_are_refused_before_anything_is_sent_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no endpoint answers at http://127.0.0.1:9/v1/models"):
        await run_load(workload(), Target("http://127.0.0.1:9/v1"), LoadOptions(out=tmp_path / "run"))
    tasks = {"kind": "synthetic", "model": "r3", "shapes": SHAPES}
    with pytest.raises(ConfigError, match=r"no model 'r3'.*known: large, picker"):
        await load_against(router_app(), tmp_path / "run", workload(tasks=tasks))
    with pytest.raises(ConfigError, match=r"sends nothing"):
        await load_against(
            router_app(), tmp_path / "run", workload(arrivals={"kind": "poisson", "rate_per_s": 1e-9})
        )
    with pytest.raises(ConfigError, match=r"slo.ttft_s"):
        await load_against(router_app(), tmp_path / "run", workload(slo={"ttft_s": 1}), is_streamed=False)
    assert not (tmp_path / "run").exists()


# -- the command -----------------------------------------------------------------------------------------


def test_dry_run_shows_the_requests(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(workload(3, 40).model_dump(mode="json")))
    done = CliRunner().invoke(app, ["load", str(tmp_path / "w.yaml"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "w: 120 requests to r2 in 40 s" in done.output
    assert "120 x large" in done.output and "█" in done.output and "Synthetic task 0." in done.output


def test_examples_are_listed_and_a_wrong_name_gets_a_suggestion() -> None:
    listed = CliRunner().invoke(app, ["load", "--example", "list"])
    assert {"bursts", "on-off"} <= set(listed.output.split())
    wrong = CliRunner().invoke(app, ["load", "--example", "burst", "--dry-run"])
    assert wrong.exit_code == 1 and "did you mean 'bursts'?" in wrong.output


def test_command_without_a_workload_names_its_options() -> None:
    done = CliRunner().invoke(app, ["load"])
    assert done.exit_code == 1 and "--example" in done.output


async def test_faulty_trace_row_is_named_and_earlier_answers_are_kept(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Timestamp,Request tokens,Response tokens\n0,3,4\n0.3,3,4\n0.6,x,4\n")
    trace = workload(
        duration_s=9, arrivals={"kind": "trace", "path": str(tmp_path / "t.csv"), "format": "burstgpt"}
    )

    async def answer(number: int) -> list[bytes]:
        return whole()

    with pytest.raises(ConfigError, match=r"t\.csv:4.*invalid literal"):
        await load_against(sse_app(answer), tmp_path / "run", trace)
    summary = LoadSummary.model_validate_json((tmp_path / "run" / "summary.json").read_text())
    assert summary.info.is_interrupted and summary.num_sent == len(requests(tmp_path / "run")) >= 1


async def test_full_disk_keeps_earlier_answers_and_says_how_to_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, num_rows = os.write, 0

    def write_until_full(descriptor: int, data: bytes) -> int:
        nonlocal num_rows
        num_rows += 1
        if num_rows > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_until_full)
    with pytest.raises(
        RunError, match=r"No space left on device; free some space and run it again with --set-aside"
    ):
        await load_against(router_app(), tmp_path / "run")
    kept = len(requests(tmp_path / "run")) + len(list(read_timeline(tmp_path / "run")))
    assert kept == 10
    assert not list((tmp_path / "run").glob(".*.partial"))


async def test_running_run_is_not_set_aside(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").touch()
    with under_way(tmp_path / "run"), pytest.raises(ConfigError, match="under way"):
        claim(tmp_path / "run", set_aside=True)
    assert claim(tmp_path / "run", set_aside=True) == tmp_path / "run.1"


def test_impossible_run_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        claim(tmp_path / "file" / "run")


@pytest.mark.parametrize("url", ["127.0.0.1:9/v1", "127.0.0.1:9"])
async def test_address_without_protocol_and_path_is_that_of_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"no endpoint answers at http://127\.0\.0\.1:9/v1/models"):
        await run_load(workload(), Target(url), LoadOptions(out=tmp_path / "run"))
