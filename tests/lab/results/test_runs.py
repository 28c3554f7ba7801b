"""`r2-serve runs`: every kind of run is listed, compared, exported and opened, whatever lies beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.errors import R2Error
from r2_serve.lab.experiment.results import CellFigures, Results, differences_of, rows_of
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.load.session import write_summary
from r2_serve.lab.results import finding
from r2_serve.lab.results.finding import find_run, find_runs
from r2_serve.lab.results.serving import pages_app
from r2_serve.types import Record
from r2_train.stages.alternate import RoundRow
from tests.lab.evaluation.test_report import call, row, write
from tests.lab.load.test_load_summary import info, record
from tests.lab.outcomes import books

POLICIES = ("r2", "single:small", "single:large")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in ("runs", *arguments)])


def write_eval(directory: Path, right: int = 3, num_tasks: int = 4, done: int = 4) -> None:
    """`r2` has `right` of the tasks right at 1 USD each; the large model has all of them at 4 USD each."""
    rows = [row("r2", i, "correct" if i < right else "wrong", call("small", "1")) for i in range(done)]
    rows += [row("single:small", i, "wrong", call("small", "0.5")) for i in range(done)]
    rows += [row("single:large", i, "correct", call("large", "4")) for i in range(done)]
    write(directory, rows, *POLICIES, num_tasks=num_tasks)


def write_load(directory: Path, late: int = 0, **fields: object) -> None:
    """Twenty requests, of which `late` take longer than the objective allows."""
    directory.mkdir(parents=True)
    with JsonlLog(directory / "requests.jsonl") as log:
        for index in range(20):
            log.append(record(index, float(index), 9.0 if index < late else 1.0))
    write_summary(directory, info(**fields))


def write_experiment(directory: Path) -> None:
    cells = tuple(
        CellFigures(
            workload="bursts",
            variant=variant,
            seed=seed,
            directory=f"bursts/{variant}-{seed}",
            num_requests=10,
            slo_attainment=share,
            goodput_per_s=1.0,
            p50_s=0.5,
            p95_s=1.0,
            replica_s=100.0,
            starting_s=5.0,
            gpu_s=0.0,
            gpu_usd=0.0,
            node_s=None,
            model_usd=Decimal("0.1"),
            num_failed=0,
            warnings=(),
        )
        for variant, share in (("stock", 0.8), ("ahead", 0.9))
        for seed in (0, 1)
    )
    results = Results(
        name="mine",
        target="local",
        machine="2 CPUs",
        code_version="1",
        num_cells=6,
        scaled=(),
        cells=cells,
        rows=rows_of(cells),
        differences=differences_of(cells, "stock"),
    )
    write_json(directory / "results.json", results)


def write_training(directory: Path) -> None:
    score = {
        **dict.fromkeys(("num_tasks", "num_failed", "num_plan_fallbacks"), 3),
        "total_cost_ratio": 0.2,
        "worker_cost_ratio": 0.1,
        "critical_path_ratio": 0.5,
        "mean_subtasks": 3,
        "mean_depth": 2,
        "calls_per_query": {"a": 1.0},
    }
    rounds = [
        RoundRow.model_validate({"half_round": i, "is_kept": True, "score": {**score, "accuracy": share}})
        for i, share in enumerate((0.6, 0.9))
    ]
    made = {"started": "2026-11-20T10:00:00+00:00", "num_train": 50, "pool": ["a", "b"]}
    write_json(directory / "manifest.json", made)
    with JsonlLog(directory / "rounds.jsonl") as log:
        for each in rounds:
            log.append(each)
    (directory / "best").mkdir()


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value.model_dump_json() if isinstance(value, Record) else json.dumps(value))


@pytest.fixture(scope="module")
def runs_of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("all") / "runs"
    write_eval(root / "eval" / "scan")
    (root / "eval" / "scan" / "report.html").write_text("<p>the page of scan</p>")
    write_eval(root / "eval" / "half", done=2)
    write_load(root / "load" / "bursts", late=5)
    shutil.copytree(root / "load" / "bursts", root / "simulate" / "bursts")
    (root / "simulate" / "bursts" / "simulation.json").write_text("{}")
    write_experiment(root / "experiment" / "mine")
    write_training(root / "router")
    write_json(root / "ladder" / "summary.json", LADDER)
    write_json(
        root / "demo" / "summary.json", {"date": "2026-11-01", "machine": {}, "words": {"policies": []}}
    )
    write_replay(root / "gsm.json", tmp_path_factory.mktemp("book"))
    return root


def write_replay(path: Path, folder: Path) -> None:
    """A replay, by the commands that users give, with its page beside it."""
    source, book = books.write(folder / "rows.jsonl", books.lines(60)), folder / "gsm.book"
    prices = ("--grader", "number", "--prices", books.write_prices(folder / "prices.yaml"))
    for arguments in (
        ("outcomes", "import", "recorded", source, *prices, "--out", book),
        ("replay", book, "--splits", 1, "--reference", "large", "--json", path),
    ):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
    path.with_suffix(".html").write_text("<p>the page of gsm</p>")


LADDER = {
    "tasks": 1000,
    "accuracy": 0.93,
    "strongest_accuracy": 0.9,
    "cheapest_rival": "cascade",
    "cost_over_cheapest_rival": 0.5,
    "seeds": 5,
    "date": "2026-11-02",
    "rows": [{"policy": "r2", "accuracy": 0.93}, {"policy": "cascade", "accuracy": 0.92, "cost_usd": 0.25}],
}


def listed(root: Path, *options: object) -> dict[str, dict[str, object]]:
    done = run("--dir", root, "--json", *options)
    assert done.exit_code == 0, done.output
    return {each["path"]: each for each in json.loads(done.stdout)}


def test_every_kind_of_run_is_listed_with_its_figures(runs_of_all_kinds: Path) -> None:
    found = listed(runs_of_all_kinds)
    kinds = {path: each["kind"] for path, each in found.items()}
    assert kinds == {
        "eval/scan": "eval",
        "eval/half": "eval",
        "load/bursts": "load",
        "simulate/bursts": "simulate",
        "experiment/mine": "experiment",
        "gsm.json": "replay",
        "ladder": "ladder",
        "demo": "demo",
        "router": "train",
    }
    scan = found["eval/scan"]
    assert (scan["accuracy"], scan["cost_usd"], scan["cost_ratio"]) == (0.75, "4", 0.25)
    assert scan["headline"] == "r2 75.0 % right, $4.0000, 25.0 % of the cost of single:large"
    assert (found["load/bursts"]["accuracy"], found["load/bursts"]["started"]) == (
        0.75,
        "2026-11-24T16:00:00Z",
    )
    assert found["router"]["headline"] == "90.0 % right, 20.0 % of the reference's cost"
    assert found["ladder"]["headline"].startswith("r2 93.0 % right, 0.50 times the cost of cascade")  # type: ignore[attr-defined]
    assert "stock: 80.0 % in time; bursts ahead: 90.0 %" in str(found["experiment/mine"]["headline"])
    assert "of the cost of large" in str(found["gsm.json"]["headline"])
    assert found["gsm.json"]["pages"] == ["gsm.html"]


def test_unfinished_runs_say_how_far_they_are(runs_of_all_kinds: Path) -> None:
    found = listed(runs_of_all_kinds, "--state", "unfinished")
    assert {path: each["progress"] for path, each in found.items()} == {
        "eval/half": "6 of 12 rows",
        "experiment/mine": "4 of 6 runs",
    }
    assert found["eval/half"]["accuracy"] == 1, "of the tasks that are answered"


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        (("--kind", "eval", "--sort", "name"), ["eval/half", "eval/scan"]),
        (("--kind", "eval", "--sort", "accuracy", "--reverse"), ["eval/scan", "eval/half"]),
        (("--kind", "eval", "--sort", "cost"), ["eval/half", "eval/scan"]),
        (("--match", "BURSTS", "--sort", "kind"), ["experiment/mine", "load/bursts", "simulate/bursts"]),
        (("--since", "2026-11-20", "--kind", "train"), ["router"]),
        (("--since", "2026-11-21", "--kind", "train"), []),
    ],
)
def test_runs_are_chosen_and_ordered_by_flags(
    options: tuple[str, ...], paths: list[str], runs_of_all_kinds: Path
) -> None:
    assert list(listed(runs_of_all_kinds, *options)) == paths


def test_list_is_printed_and_written_for_papers(runs_of_all_kinds: Path, tmp_path: Path) -> None:
    csv, text = tmp_path / "runs.csv", tmp_path / "runs.tex"
    done = run("--dir", runs_of_all_kinds, "--csv", csv, "--latex", text)
    assert "9 runs." in done.stdout and "unfinished" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert len(csv.read_text().splitlines()) == 10 and "cost_ratio" in csv.read_text().splitlines()[0]
    assert r"25.0 \% of the cost of single:large" in text.read_text()


# -- what else may lie there -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "progress"),
    [
        ("run.json", "{", "run.json is no JSON"),
        ("run.json", '{"benchmark": "scan"}', "a file lacks 'policies'"),
        ("rows.jsonl", "", "run.json: No such file or directory"),
        ("summary.json", '{"info": {', "summary.json is no JSON"),
        ("summary.json", '{"info": 3, "slo_attainment": 1}', "summary"),
        ("results.json", '{"cells": 3}', "a file lacks 'rows'"),
    ],
)
def test_broken_run_says_what_is_wrong_with_it(name: str, text: str, progress: str, tmp_path: Path) -> None:
    write_eval(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / name).write_text(text)
    found = listed(tmp_path)
    assert found["good"]["state"] == "finished"
    assert found["bad"]["state"] == "broken"
    assert progress in str(found["bad"]["progress"]) or progress == "summary"


def test_row_that_is_none_is_named_with_its_line_and_a_torn_one_is_not_yet_there(tmp_path: Path) -> None:
    write_eval(tmp_path / "torn")
    with (tmp_path / "torn" / "rows.jsonl").open("a") as file:
        file.write('{"policy": "r2", "tas')
    shutil.copytree(tmp_path / "torn", tmp_path / "bad")
    with (tmp_path / "bad" / "rows.jsonl").open("a") as file:
        file.write("k\n")
    found = listed(tmp_path)
    assert found["torn"]["state"] == "finished"
    assert found["bad"]["progress"] == "rows.jsonl:13 is no row of an evaluation"


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "results.json", "run.json", "other.json"])
def test_foreign_directory_is_no_run_and_is_searched(name: str, tmp_path: Path) -> None:
    for text in ('{"x": 1}', "[1]", '"book"'):
        (tmp_path / name).write_text(text)
        write_eval(tmp_path / "below" / text.strip('[]{"}: '))
    assert {Path(path).parts[0] for path in listed(tmp_path)} == {"below"}


def test_directory_that_cannot_be_opened_is_listed_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_eval(tmp_path / "good")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(finding.os, "scandir", closed)
    states = {found.path: (found.state, found.progress) for found in find_runs(tmp_path).runs}
    assert states["closed"] == ("broken", "cannot be opened: Permission denied")
    assert states["good"][0] == "finished"


def test_links_hidden_directories_and_environments_are_not_searched(tmp_path: Path) -> None:
    for name in (".hidden", "env/lib", "real"):
        write_eval(tmp_path / "runs" / name)
    (tmp_path / "runs" / "env" / "pyvenv.cfg").touch()
    write_eval(tmp_path / "outside")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs")
    assert list(listed(tmp_path / "runs")) == ["real"]


def test_huge_directories_are_cut_and_the_list_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "MOST_DIRECTORIES", 3)
    monkeypatch.setattr(finding, "MOST_ENTRIES", 6)
    for i in range(9):
        (tmp_path / f"d{i}").mkdir()
    notes = find_runs(tmp_path).notes
    assert len(notes) == 2
    assert "only 6 of its entries" in notes[0] and "only the first 3 directories" in notes[1]


def test_rows_too_large_for_a_list_are_counted_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_eval(tmp_path / "large")
    monkeypatch.setattr("r2_serve.lab.results.kinds.LARGEST_FILE", 2_000)
    (found,) = find_runs(tmp_path).runs
    assert (found.state, found.accuracy) == ("finished", None)
    assert "r2-serve eval report" in found.headline


def test_missing_directory_and_unknown_run_say_what_to_name(tmp_path: Path) -> None:
    write_eval(tmp_path / "eval" / "scan")
    done = run("--dir", tmp_path / "none")
    assert done.exit_code == 1 and "is not there yet" in done.output
    with pytest.raises(R2Error, match=r"no run 'scam': choose one of eval/scan"):
        find_run(tmp_path, "scam")
    assert find_run(tmp_path, "scan").path == "eval/scan"


# -- two runs --------------------------------------------------------------------------------------------


def compared(*arguments: object) -> str:
    done = run("compare", *arguments)
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


def test_evaluations_are_compared_task_by_task(tmp_path: Path) -> None:
    write_eval(tmp_path / "a", right=30, num_tasks=30, done=30)
    write_eval(tmp_path / "b", right=10, num_tasks=30, done=30)
    assert "r2 <.001" in compared(tmp_path / "a", tmp_path / "b", "--policy", "r2")
    assert "better" in compared("a", "b", "--dir", tmp_path, "--csv", tmp_path / "a.csv")
    assert "mcnemar_p" in (tmp_path / "a.csv").read_text()


def test_loads_of_one_workload_and_seed_are_compared_request_by_request(tmp_path: Path) -> None:
    write_load(tmp_path / "a")
    write_load(tmp_path / "b", late=15)
    text = compared(tmp_path / "a", tmp_path / "b")
    assert "in time in time 100.0 % 25.0 % +75.0" in text and "20 tasks" in text


def test_comparison_that_would_say_nothing_is_refused_with_the_reason(runs_of_all_kinds: Path) -> None:
    write_load(runs_of_all_kinds.parent / "other-seed", seed=4)
    for a, b, reason in (
        ("eval/scan", "load/bursts", "share no tasks"),
        ("experiment/mine", "load/bursts", "paired differences of its own variants"),
        ("router", "router", "no answers: evaluate both routers"),
        ("gsm.json", "gsm.json", "means and no tasks"),
        ("load/bursts", runs_of_all_kinds.parent / "other-seed", "their seed is 3 and 4"),
    ):
        done = run("compare", a, b, "--dir", runs_of_all_kinds)
        assert done.exit_code == 1 and reason in done.output, done.output


# -- tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("eval/scan", {"policies", "usage", "comparisons", "models"}),
        ("load/bursts", {"figures", "latency", "slowest"}),
        ("simulate/bursts", {"figures", "latency", "slowest"}),
        ("experiment/mine", {"variants", "differences", "runs"}),
        ("gsm.json", {"policies", "splits", "models"}),
        ("ladder", {"rows"}),
        ("router", {"rounds"}),
    ],
)
def test_every_table_of_a_run_is_exported(
    name: str, tables: set[str], runs_of_all_kinds: Path, tmp_path: Path
) -> None:
    done = run("export", name, "--dir", runs_of_all_kinds, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert {path.stem for path in tmp_path.iterdir()} == tables
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".tex"}
    for table in tables:
        header, first, *_ = (tmp_path / f"{table}.csv").read_text().splitlines()
        text = (tmp_path / f"{table}.tex").read_text()
        assert header.count(",") >= 1 and first and text.count(r"\\") >= 2


def test_run_without_a_table_says_so(runs_of_all_kinds: Path) -> None:
    done = run("export", "demo", "--dir", runs_of_all_kinds)
    assert done.exit_code == 1 and "has no tables yet" in done.output


# -- pages -----------------------------------------------------------------------------------------------


@pytest.fixture
def client(runs_of_all_kinds: Path) -> Iterator[httpx.Client]:
    from starlette.testclient import TestClient

    with TestClient(pages_app(runs_of_all_kinds), base_url="http://127.0.0.1") as opened:
        yield opened


def test_index_links_to_the_pages_and_escapes_what_it_shows(
    client: httpx.Client, runs_of_all_kinds: Path
) -> None:
    text = client.get("/").text
    assert 'href="/files/eval/scan/report.html"' in text and "25.0 % of the cost of single:large" in text
    assert f"no page yet: r2-serve eval report {runs_of_all_kinds}/eval/half" in text
    reply = client.get("/files/eval/scan/report.html")
    assert reply.text == "<p>the page of scan</p>"
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_name_of_a_run_is_no_markup(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    write_eval(tmp_path / "<b>x&y")
    (tmp_path / "<b>x&y" / "report.html").write_text("here")
    with TestClient(pages_app(tmp_path), base_url="http://localhost") as client:
        assert "&lt;b&gt;x&amp;y" in client.get("/").text
        assert client.get("/files/%3Cb%3Ex%26y/report.html").text == "here"


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.html",
        "/files/%2e%2e/secret.html",
        "/files/eval/..%2f..%2f..%2fsecret.html",
        "/files//etc/passwd",
        "/files/link.html",
        "/files/folder/secret.html",
        "/files/eval/scan/rows.jsonl",
        "/files/eval/scan/.hidden.html",
        "/files/eval/scan",
        "/files/",
        "/secret.html",
    ],
)
def test_nothing_but_pages_of_the_directory_is_served(
    path: str, client: httpx.Client, runs_of_all_kinds: Path
) -> None:
    (runs_of_all_kinds.parent / "secret.html").write_text("secret")
    (runs_of_all_kinds / "eval" / "scan" / ".hidden.html").write_text("secret")
    for name, target in (("link.html", "secret.html"), ("folder", ".")):
        if not (link := runs_of_all_kinds / name).is_symlink():
            link.symlink_to(runs_of_all_kinds.parent / target)
    reply = client.get(path)
    assert reply.status_code == 404 and "secret" not in reply.text


def test_request_by_another_name_is_refused(client: httpx.Client) -> None:
    """A page of another site whose name leads here (DNS rebinding) must not read the results."""
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_run_without_a_page_is_not_opened(runs_of_all_kinds: Path) -> None:
    done = run("open", "eval/half", "--dir", runs_of_all_kinds)
    assert done.exit_code == 1 and "has no page" in done.output


def test_directory_that_is_not_there_yet_is_said_to_be_made_by_a_run(tmp_path: Path) -> None:
    result = run("--dir", tmp_path / "runs")
    assert result.exit_code == 1
    assert "is not there yet: `r2-serve eval run` and others make it" in result.output
