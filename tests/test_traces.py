"""Trace files: complete, private, readable after a crash, and never in the way of an answer."""

import os
import socket
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from r2_serve.files import json_line
from r2_serve.traces import TraceWriter, latest_traces, read_traces
from r2_serve.types import Allocation, CallRecord, SubtaskResult, Trace, Usage, text_hash
from tests.support.in_process import plan_of

USAGE = Usage(prompt_tokens=3, completion_tokens=1)
TRACE = Trace(
    request_id="req-1",
    model="r2",
    query="wie hoch? \n\u2028 🗻",
    plan=plan_of("find", "use #1", answer="#2"),
    allocation=Allocation(models=("small", "large")),
    results=(
        SubtaskResult(
            id=1,
            model="small",
            answer="a",
            usage=USAGE,
            cost_usd=Decimal("0.000005"),
            ready_s=0,
            start_s=0,
            end_s=1.5,
        ),
    ),
    calls=(CallRecord(stage="execute", model="small", subtask=1, usage=USAGE, cost_usd=Decimal("0.000005")),),
    answer="4,806 m",
    cost_usd=Decimal("0.000005"),
)


def written(directory: Path, *traces: Trace) -> Path:
    writer = TraceWriter(directory, today=lambda: "2026-01-31")
    for trace in traces:
        writer(trace)
    assert writer.num_lost == 0
    (file,) = directory.glob("*.jsonl")
    return file


def test_trace_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    failed = Trace(request_id="req-2", model="r2", query="?", error="DeadlineExceeded: no answer within 5 s")
    file = written(tmp_path / "made" / "as needed", TRACE, failed)
    assert list(read_traces(file)) == [TRACE, failed]
    assert file.name == f"2026-01-31-{socket.gethostname()}-{os.getpid()}.jsonl"


def test_routers_of_two_machines_with_one_process_id_write_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes in containers often have the same id, and a directory that they share takes no appends of two
    machines."""
    for host in ("router-a", "router-b"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        TraceWriter(tmp_path, today=lambda: "2026-01-31")(TRACE)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_half_of_a_surrogate_pair_in_a_trace_becomes_a_question_mark(tmp_path: Path) -> None:
    file = written(tmp_path, TRACE.model_copy(update={"query": "wie \ud800 hoch?"}), TRACE)
    assert list(read_traces(file)) == [TRACE.model_copy(update={"query": "wie ? hoch?"}), TRACE]


def test_trace_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    file = written(tmp_path, TRACE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_torn_last_line_is_skipped(tmp_path: Path) -> None:
    file = written(tmp_path, TRACE, TRACE)
    file.write_bytes(file.read_bytes()[:-20])
    assert list(read_traces(file)) == [TRACE]


def test_broken_line_before_the_last_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, TRACE)
    file.write_bytes(file.read_bytes() + b'{"request_id": 1}\n' + file.read_bytes())
    with pytest.raises(ValueError, match=f"{file}:2 is not a trace"):
        list(read_traces(file))


def test_writer_continues_after_a_line_torn_by_its_predecessor(tmp_path: Path) -> None:
    """Every process in a container has the same number, so a restart finds the file of the killed one."""
    file = written(tmp_path, TRACE, TRACE)
    file.write_bytes(file.read_bytes()[:-20])
    written(tmp_path, TRACE)
    assert list(read_traces(file)) == [TRACE, TRACE]


def test_directory_is_read_file_by_file(tmp_path: Path) -> None:
    for day, request_id in (("2026-02-01", "second"), ("2026-01-31", "first")):
        TraceWriter(tmp_path, today=lambda day=day: day)(TRACE.model_copy(update={"request_id": request_id}))
    assert [trace.request_id for trace in read_traces(tmp_path)] == ["first", "second"]


def test_directory_that_cannot_be_made_costs_only_traces(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    writer = TraceWriter(tmp_path / "file" / "traces")
    writer(TRACE)
    writer(TRACE)
    assert writer.num_lost == 2
    assert "req-1" in caplog.text
    assert TRACE.query not in caplog.text


FULL_DISK = """
import resource, sys
from pathlib import Path
from r2_serve.traces import TraceWriter
from r2_serve.traces import read_traces
from r2_serve.types import Trace

writer = TraceWriter(Path(sys.argv[1]))
trace = Trace(request_id="r", model="r2", query="x" * 400)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for _ in range(4):
    writer(trace)
folder = Path(sys.argv[1])
last = next(folder.iterdir()).read_bytes()[-1:]
print(writer.num_lost, len(list(read_traces(folder))), last == b"\\n")
"""


def test_full_disk_costs_only_traces_and_leaves_no_torn_line(tmp_path: Path) -> None:
    """A file size limit makes the third write short, as a full disk does."""
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["2", "2", "True"]


def test_trace_without_texts_keeps_figures_and_hashes_alone(tmp_path: Path) -> None:
    failed = Trace(
        request_id="req-2",
        model="r2",
        query="a secret",
        query_hash=text_hash("a secret"),
        error="SubtaskFailed: the provider says that a secret is too long",
        plan_fallback="decomposer_failed (EngineRefused: a secret)",
    )
    writer = TraceWriter(tmp_path, keeps_texts=False, today=lambda: "2026-01-31")
    writer(TRACE)
    writer(failed)
    (file,) = tmp_path.glob("*.jsonl")
    kept, bare = read_traces(file)
    text = file.read_text()
    assert not [word for word in ("secret", "wie hoch", "find", "4,806") if word in text]
    assert (kept.calls, kept.allocation, kept.cost_usd) == (TRACE.calls, TRACE.allocation, TRACE.cost_usd)
    assert (bare.error, bare.plan_fallback) == ("SubtaskFailed", "decomposer_failed")
    assert bare.query_hash == text_hash("a secret")


def test_latest_traces_are_those_of_the_newest_files(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        path = tmp_path / f"2026-01-0{day}-7.jsonl"
        lines = [
            json_line(TRACE.model_copy(update={"request_id": f"{day}-{i}", "began_s": 10 * day + i}))
            for i in (1, 2)
        ]
        path.write_text("cut off\n" + "".join(lines) + "{")
    found = latest_traces(tmp_path, 3)
    assert [each.request_id for each in found] == ["2-2", "3-1", "3-2"]
    assert latest_traces(tmp_path / "none", 3) == latest_traces(tmp_path, 0) == []
