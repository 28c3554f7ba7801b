"""How a directory of each kind is read: by its small files, and the rows of an evaluation without pydantic.

A reader gets what stands in its file and returns the fields of `FoundRun`. What it raises for a file that is
not as expected (`UNREADABLE`) makes the run a broken one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from r2_serve.errors import counted
from r2_serve.lab.evaluation.manifest import MANIFEST
from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.rows import ROWS
from r2_serve.lab.jsonl import whole_lines
from r2_serve.lab.load.run_directory import REQUESTS, SUMMARY
from r2_serve.lab.reports.terminal import usd
from r2_serve.lab.results.record import Kind
from r2_serve.lab.simulate.results import SIMULATION

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, InvalidOperation)
"""What broken and foreign files raise while they are read."""
LARGEST_FILE = 200_000_000
"""Bytes of the largest file that is read for a list; a larger one is named, not read."""
RESULTS, ROUNDS, TRAINING = "results.json", "rounds.jsonl", "manifest.json"
"""The files that tell an experiment and a training run."""
Fields = dict[str, Any]
"""Fields of `FoundRun`, or what a JSON file holds."""


class ForeignDirectory(ValueError):
    """A directory has a file of a run's name, and is no run."""


def kind_of(names: set[str]) -> Kind | None:
    """The kind of run that a directory with these files may be; None if it holds none."""
    known: tuple[tuple[str, Kind], ...] = (
        (MANIFEST, "eval"),
        (ROWS, "eval"),
        (SIMULATION, "simulate"),
        (RESULTS, "experiment"),
        (ROUNDS, "train"),
        (SUMMARY, "load"),
        (REQUESTS, "load"),
        (TRAINING, "train"),
    )
    return next((kind for name, kind in known if name in names), None)


def read_run(kind: Kind, path: Path) -> Fields:
    """What is said of the run at `path`. Raises: UNREADABLE."""
    return READERS[kind](path)


def read_json(path: Path, *, known_by: str = "") -> Fields:
    """The object in a JSON file. Raises: OSError, ValueError; ForeignDirectory without the key `known_by`."""
    if not _is_small(path):
        raise ValueError(f"{path.name} has {path.stat().st_size / 1e6:,.0f} MB, which no run writes")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as e:
        raise ValueError(f"{path.name} is no JSON: {e}") from e
    if not isinstance(value, dict) or (known_by and known_by not in value):
        raise ForeignDirectory(path)
    return value


def _is_small(path: Path) -> bool:
    return not path.exists() or path.stat().st_size <= LARGEST_FILE


# -- evaluations ---------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """The rows of one policy: the last status of each task, and the cost of all tries."""

    right: dict[str, bool] = field(default_factory=dict)
    cost_usd: Decimal = Decimal(0)

    def __len__(self) -> int:
        return len(self.right)

    @property
    def cost_each_usd(self) -> float:
        return float(self.cost_usd) / len(self)


def _eval(path: Path) -> Fields:
    manifest = read_json(path / MANIFEST, known_by="benchmark")
    policies, num_tasks = [str(name) for name in manifest["policies"]], int(manifest["num_tasks"])
    starts = manifest.get("starts") or ()
    side = "" if manifest["split"] == "all" else f", {manifest['split']} side"
    fields = {
        "what": f"{manifest['benchmark']} {manifest['data']}{side}, {counted(num_tasks, 'task')}, "
        f"{counted(len(policies), 'policy', 'policies')}",
        "started": _time(starts[0]["at"]) if starts else None,
    }
    tallies = _tallies(path / ROWS) if _is_small(path / ROWS) else None
    num_rows = sum(map(len, tallies.values())) if tallies is not None else _num_lines(path / ROWS)
    wanted = num_tasks * len(policies)
    done = {} if num_rows >= wanted else {"state": "unfinished", "progress": f"{num_rows} of {wanted} rows"}
    largest = str(manifest["pool"][-1]) if manifest.get("pool") else ""
    figures = {"headline": "too many rows for a list: r2-serve eval report"}
    return {**fields, **done, **(figures if tallies is None else _eval_figures(tallies, largest))}


def _num_lines(path: Path) -> int:
    return sum(1 for _ in whole_lines(path))


def _tallies(path: Path) -> dict[str, Tally]:
    found: dict[str, Tally] = defaultdict(Tally)
    for number, line in enumerate(whole_lines(path), 1):
        try:
            row = json.loads(line)
            tally = found[row["policy"]]
            tally.right[row["task_id"]] = row["status"] == "correct"
            tally.cost_usd += sum((Decimal(str(c["cost_usd"])) for c in row["outcome"]["calls"]), Decimal(0))
        except UNREADABLE as e:
            raise ValueError(f"{path.name}:{number} is no row of an evaluation") from e
    return found


def _eval_figures(tallies: Mapping[str, Tally], largest: str) -> Fields:
    """`r2`, or else the first policy, against the largest model alone, or else the dearest policy.

    Of an unfinished run the tasks that are answered count.
    """
    ours = R2 if R2 in tallies else next(iter(tallies), None)
    if ours is None:
        return {}
    accuracy, cost = sum(tallies[ours].right.values()) / len(tallies[ours]), tallies[ours].cost_usd
    costly = [name for name, tally in tallies.items() if tally.cost_usd]
    usual = [name for name in (f"single:{largest}", f"cot:{largest}") if name in costly]
    dearest = max(tallies, key=lambda name: tallies[name].cost_each_usd)
    reference = usual[0] if usual else dearest
    each = tallies[ours].cost_each_usd
    ratio = each / tallies[reference].cost_each_usd if reference != ours and costly else None
    against = "" if ratio is None else f", {_percent(ratio)} of the cost of {reference}"
    headline = f"{ours} {_percent(accuracy)} right, {usd(cost)}{against}"
    return {"headline": headline, "accuracy": accuracy, "cost_usd": cost, "cost_ratio": ratio}


# -- loads, simulations and experiments ----------------------------------------------------------------------


def _summary(path: Path) -> Fields:
    """A load or a simulation; or a demo, a ladder or a retraining, whose summary has the same name."""
    if not (path / SUMMARY).exists():
        ended = counted(_num_lines(path / REQUESTS), "request")
        return {"state": "unfinished", "progress": f"{ended} ended, without a summary"}
    summary = read_json(path / SUMMARY)
    if "info" in summary:
        return _load(summary)
    if "strongest_accuracy" in summary:
        return _ladder(summary)
    return _demo(summary) if "date" in summary else _retrained(summary)


def _load(summary: Fields) -> Fields:
    info, share = summary["info"], summary["slo_attainment"]
    late = summary["latency_s"]
    p95 = f", p95 {late['p95']:.2f} s" if late else ""
    cost = Decimal(str(summary["cost_usd"]))
    cut = {"state": "unfinished", "progress": "interrupted"} if info["is_interrupted"] else {}
    return {
        "what": f"{info['workload']}, seed {info['seed']}, {counted(summary['num_sent'], 'request')} to "
        f"{info['model']}" + ("" if info["url"] == "simulated" else f" at {info['url']}"),
        "started": _time(info["started"]),
        "headline": f"{_percent(share)} in time{p95}, {usd(cost)}" if share is not None else "nothing ended",
        "accuracy": share,
        "cost_usd": cost,
        **cut,
    }


def _ladder(summary: Fields) -> Fields:
    ratio, rival = summary.get("cost_over_cheapest_rival"), summary.get("cheapest_rival")
    against = "" if ratio is None else f", {ratio:.2f} times the cost of {rival}"
    accuracy = float(summary["accuracy"])
    return {
        "kind": "ladder",
        "what": f"{summary['tasks']} tasks, {counted(int(summary['seeds']), 'seed')}",
        "started": _time(summary.get("date")),
        "headline": f"r2 {_percent(accuracy)} right{against}; "
        f"strongest alone {_percent(summary['strongest_accuracy'])}",
        "accuracy": accuracy,
        "cost_ratio": ratio,
    }


def _demo(summary: Fields) -> Fields:
    domains = [name for name, value in summary.items() if isinstance(value, dict) and "policies" in value]
    return {"kind": "demo", "what": ", ".join(domains), "started": _time(summary["date"])}


def _retrained(summary: Fields) -> Fields:
    """The summary of `r2-train retrain`, over domains and seeds, or of one seed."""
    if "accuracy" in summary:
        return {"kind": "train", **_router(summary)}
    domains = {
        name: value for name, value in summary.items() if isinstance(value, dict) and "accuracy" in value
    }
    each = [f"{name}: {_router(value)['headline']}" for name, value in domains.items()]
    if not each:
        raise ForeignDirectory("summary.json is that of no known run")
    return {"kind": "train", "what": f"retrained {', '.join(domains)}", "headline": "; ".join(each)}


def _experiment(path: Path) -> Fields:
    results = read_json(path / RESULTS, known_by="cells")
    cells, rows = results["cells"], results["rows"]
    done = len(cells) == results["num_cells"]
    state = (
        {} if done else {"state": "unfinished", "progress": f"{len(cells)} of {results['num_cells']} runs"}
    )
    each = [
        f"{row['workload']} {row['variant']}: {_percent(row['slo_attainment']['mean'])} in time"
        for row in rows
    ]
    return {**state, "what": f"{results['name']} on {results['target']}", "headline": "; ".join(each)}


# -- replays and training ------------------------------------------------------------------------------------


def is_replay(path: Path) -> bool:
    """Whether a JSON file looks like the report of a replay, by its first bytes."""
    with path.open("rb") as file:
        return b'"book"' in file.read(64)


def _replay(path: Path) -> Fields:
    report = read_json(path)
    accuracy, ratio = float(report["accuracy"]), report["cost_ratio"]
    at = "" if ratio is None else f", {_percent(ratio)} of the cost of {report['reference']}"
    return {
        "what": f"{report['book']}, {counted(report['tasks'], 'task')}, "
        f"{counted(report['num_splits'], 'split')}",
        "started": _time(str(report["made"]).split(",")[0].split(" ")[0]),
        "headline": f"fitted gate {_percent(accuracy)} right{at}",
        "accuracy": accuracy,
        "cost_ratio": ratio,
    }


def _train(path: Path) -> Fields:
    made = read_json(path / TRAINING) if (path / TRAINING).exists() else {}
    if "started" not in made and not (path / ROUNDS).exists():
        raise ForeignDirectory(path)
    rounds = [json.loads(line) for line in whole_lines(path / ROUNDS)]
    kept = [row for row in rounds if row["is_kept"]]
    is_done = (path / "best").is_dir()
    state = {} if is_done else {"state": "unfinished", "progress": f"{counted(len(rounds), 'half-round')}"}
    pool = ", ".join(map(str, made.get("pool", ())))
    return {
        "what": f"router of {pool}, {made.get('num_train', '?')} tasks" if pool else "router",
        "started": _time(made.get("started")),
        **(_router(kept[-1]["score"]) if kept else {}),
        **state,
    }


def _router(score: Fields) -> Fields:
    accuracy, ratio = float(score["accuracy"]), float(score["total_cost_ratio"])
    headline = f"{_percent(accuracy)} right, {_percent(ratio)} of the reference's cost"
    return {"headline": headline, "accuracy": accuracy, "cost_ratio": ratio}


READERS: Mapping[Kind, Callable[[Path], Fields]] = {
    "eval": _eval,
    "load": _summary,
    "simulate": _summary,
    "experiment": _experiment,
    "replay": _replay,
    "train": _train,
}


def _percent(share: float) -> str:
    return f"{100 * float(share):.1f} %"


def _time(text: object) -> datetime | None:
    """A time in ISO form; None for anything else, as a date is no reason to lose a run."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
