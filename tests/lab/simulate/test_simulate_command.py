"""`r2-serve simulate`: files like those of a real run, the comparison with one, and errors with their
line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.errors import ConfigError
from r2_serve.lab.load.run_directory import RequestFile, read_timeline
from r2_serve.lab.load.summary import LoadSummary, summarize
from r2_serve.lab.simulate.compare import compare, read_summary
from r2_serve.lab.simulate.hardware import load_hardware

WORKLOAD = """
name: small
duration_s: 30
arrivals: {kind: poisson, rate_per_s: 1.0}
tasks: {kind: synthetic, shapes: [{waves: [{model: small, count: 2, words: 20}, {model: large, words: 30}]}]}
slo: {latency_s: 20}
"""


def simulated(tmp_path: Path, *arguments: str) -> Path:
    """Runs the command and returns the directory of the run."""
    (tmp_path / "small.yaml").write_text(WORKLOAD)
    out = tmp_path / "run"
    result = CliRunner().invoke(
        app, ["simulate", str(tmp_path / "small.yaml"), "--out", str(out), *arguments]
    )
    assert result.exit_code == 0, result.output
    return out


def test_simulated_run_writes_the_files_of_a_real_one_and_its_summary_follows_from_its_rows(
    tmp_path: Path,
) -> None:
    out = simulated(tmp_path)
    summary = read_summary(out)
    again = summarize(summary.info, RequestFile(out), list(read_timeline(out)))
    assert again == summary
    assert summary.info.url == "simulated"
    assert summary.num_ok == summary.num_sent > 10
    assert summary.deployments["m-large/Model"].gpu_s > 0
    facts = json.loads((out / "simulation.json").read_text())
    assert facts["num_decisions"]["m-small/Model"] >= 1
    assert facts["paid_gpu_s"] >= summary.gpu_s * 0.9


def test_comparison_with_a_run_of_the_same_workload_gives_every_figure_its_error(tmp_path: Path) -> None:
    out = simulated(tmp_path)
    summary = read_summary(out)
    assert summary.latency_s is not None
    slower = summary.latency_s.model_copy(update={"p95": summary.latency_s.p95 * 1.25})
    real = summary.model_copy(update={"latency_s": slower})
    errors = {row.name: row.error for row in compare(real, summary)}
    assert errors["latency, p95, s"] == pytest.approx(-0.2)
    assert errors["latency, p50, s"] == 0
    assert "replica-seconds of m-small/Model" in errors
    other = summary.model_copy(update={"info": summary.info.model_copy(update={"seed": 9})})
    with pytest.raises(ConfigError, match="differ in their seed: 9 and 0"):
        compare(other, summary)


def test_table_of_the_comparison_is_printed(tmp_path: Path) -> None:
    out = simulated(tmp_path)
    result = CliRunner().invoke(
        app,
        ["simulate", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "second"), "--compare", str(out)],
    )
    assert result.exit_code == 0, result.output
    assert "latency, p95, s" in result.output and "+0.0 %" in result.output


def test_figures_are_the_same_without_rows_and_no_run_is_overwritten(tmp_path: Path) -> None:
    whole = read_summary(simulated(tmp_path))
    result = CliRunner().invoke(
        app, ["simulate", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 1 and "holds a run already" in result.output
    out = tmp_path / "other"
    result = CliRunner().invoke(
        app, ["simulate", str(tmp_path / "small.yaml"), "--out", str(out), "--no-rows"]
    )
    assert result.exit_code == 0, result.output
    assert not (out / "requests.jsonl").exists()
    again = CliRunner().invoke(
        app, ["simulate", str(tmp_path / "small.yaml"), "--out", str(out), "--no-rows"]
    )
    assert again.exit_code == 1 and "holds a run already" in again.output
    assert _figures(read_summary(out)) == _figures(whole)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"TIMESTAMP\n1\n"])
def test_trace_that_cannot_be_read_leaves_the_run_directory_unclaimed(
    tmp_path: Path, content: bytes | None
) -> None:
    trace = "arrivals: {kind: trace, path: trace.csv, format: azure}\n"
    shapes = "tasks: {kind: synthetic, shapes: [{waves: [{model: small, count: 1, words: [4, 8]}]}]}\n"
    (tmp_path / "traced.yaml").write_text(f"name: traced\n{trace}{shapes}")
    if content is not None:
        (tmp_path / "trace.csv").write_bytes(content)
    files = [str(tmp_path / "traced.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["simulate", *files])
    assert result.exit_code == 1 and "trace.csv" in result.output, result.output
    assert not (tmp_path / "run").exists()


def _figures(summary: LoadSummary) -> dict[str, object]:
    return summary.model_dump(exclude={"info"})


def test_hardware_file_is_refused_with_every_error_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "hardware.yaml"
    cluster = "cluster: {gpus: 4, nodes: {gpus_per_node: 8, max_nodes: 2}}"
    path.write_text(f"{cluster}\noverheads:\n  htp_s: 1\nmodels:\n  a: {{}}\n")
    with pytest.raises(ConfigError) as refused:
        load_hardware(path)
    for part in (
        "line 1",
        "gpus and nodes are two ways",
        "line 3",
        "did you mean 'http_s'",
        "line 5",
        "give `speed`",
    ):
        assert part in refused.value.message
    path.write_text("cluster: {gpus: 4, gpu_usd_per_hour: 2.5}\n")
    assert load_hardware(path).cluster.gpus == 4
