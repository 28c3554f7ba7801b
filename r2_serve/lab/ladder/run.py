"""The whole of `make ladder`: its tables, and the figures of `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.lab.ladder.changes import GUEST, Changed, by_steps, changed, growing, pools, with_guest
from r2_serve.lab.ladder.study import (
    Bench,
    Row,
    bench_of,
    cheapest_rival,
    compared,
    means,
    planned,
    routed,
    rows_of,
    seeds_of,
    strongest,
    summary,
)
from r2_serve.serve_config import ServeConfig


async def study(
    served: ServeConfig, folder: Path, console: Console, *, num_test: int, num_development: int
) -> dict[str, object]:
    """Runs the study on the pairs in `folder`, prints its tables, and returns the summary.

    Raises: ConfigError if the folder has no pair.
    """
    pairs = seeds_of(served, folder)
    if not pairs:
        raise ConfigError(f"{folder} has no trained pair: expected seed-0/decomposer and seed-0/allocator")
    bench = await bench_of(served, folder, num_test, num_development)
    seeds = [await planned(bench, seed) for seed in pairs]
    of_seeds = [await rows_of(bench, seed) for seed in seeds]
    rows = means(of_seeds)
    console.print(
        policies_table(rows, f"{num_test:,} held-out everyday problems, means of {len(seeds)} seeds")
    )
    console.print(_shares(rows[0]))
    for other in filter(None, (strongest(rows), cheapest_rival(rows))):
        console.print(_comparison(rows[0], other))
    trained = await _stages(bench, served, folder, [seed_rows[0] for seed_rows in of_seeds])
    console.print(stages_table(trained))
    added = {f"with {GUEST} of another domain": await with_guest(bench, served.router.model(GUEST))}
    tables = {
        "changes": await changed(bench, seeds, {**pools(bench.cards), **added}),
        "models": await changed(bench, seeds, growing(bench.cards)),
        "steps": by_steps(bench, rows[0], strongest(rows)),
    }
    for name, title in TITLES.items():
        console.print(changes_table(tables[name], title))
    return {
        **summary(bench, rows, of_seeds),
        "training": {name: [row.figures() for row in found] for name, found in trained.items()},
        **{name: [each.figures() for each in found] for name, found in tables.items()},
    }


TITLES = {
    "changes": "the same router on changed pools, not trained again",
    "models": "the same router as the pool grows",
    "steps": "by the number of steps of a problem",
}


async def _stages(
    bench: Bench, served: ServeConfig, folder: Path, after_grpo: Sequence[Row]
) -> dict[str, list[Row]]:
    """The router of every seed after SFT, where its checkpoints are there, and after GRPO."""
    after_sft = [
        await routed(bench, await planned(bench, seed), bench.cards)
        for seed in seeds_of(served, folder, "sft-")
    ]
    return {"after SFT": after_sft, "after GRPO": list(after_grpo)}


def policies_table(rows: Sequence[Row], title: str) -> Table:
    """Accuracy, cost of a problem in millionths of a USD, and cost over the router's.

    The best of the single workers stands for all of them.
    """
    found = Table(title=title)
    for heading in ("policy", "right", "µUSD", "workers", "over r2"):
        found.add_column(heading, justify="left" if heading == "policy" else "right")
    singles = [row for row in rows if row.policy.startswith("single:")]
    best = max(singles, key=lambda row: row.accuracy, default=None)
    for row in rows:
        if row in singles and row is not best:
            continue
        name = f"single:*, best of {len(singles)}" if row is best else row.policy
        ratio = row.cost_usd / rows[0].cost_usd
        found.add_row(
            name, _percent(row.accuracy), _micro(row.cost_usd), _micro(_workers(row)), f"{ratio:.2f}"
        )
    return found


def stages_table(stages: dict[str, list[Row]]) -> Table:
    """What GRPO adds to SFT, seed by seed."""
    found = Table(title="the router after SFT and after GRPO")
    for heading in ("stage", "seed", "right", "µUSD", "workers", "router"):
        found.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, rows in stages.items():
        for seed, row in enumerate(rows):
            own = float(row.router_usd.mean())
            costs = [_micro(usd) for usd in (row.cost_usd, _workers(row), own)]
            found.add_row(name, str(seed), _percent(row.accuracy), *costs)
    return found


def changes_table(rows: Sequence[Changed], title: str) -> Table:
    """The router on changed pools, beside the strongest model on every step of the same plans."""
    found = Table(title=title)
    for heading in ("pool", "right", "µUSD", "router", "strongest", "µUSD", "saved"):
        found.add_column(heading, justify="left" if heading == "pool" else "right")
    for row in rows:
        own = float(row.router.router_usd.mean())
        ours = (_percent(row.router.accuracy), _micro(row.router.cost_usd), _micro(own))
        theirs = (_percent(row.strongest.accuracy), _micro(row.strongest.cost_usd))
        found.add_row(row.pool, *ours, *theirs, f"{100 * row.saving:.0f} %")
    return found


def write_summary(found: dict[str, object], out: Path) -> Path:
    """Writes `out`/summary.json, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "summary.json", json.dumps(found, indent=2))
    return out / "summary.json"


def _shares(row: Row) -> str:
    return "steps of r2: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.shares.items())


def _comparison(row: Row, other: Row) -> str:
    found = compared(row, other)
    low, high = (100 * bound for bound in found.accuracy_difference_ci95)
    text = (
        f"r2 less {other.policy}: {100 * found.accuracy_difference:+.1f} points ({low:+.1f} to {high:+.1f})"
    )
    if found.cost_ratio is None or found.cost_ratio_ci95 is None:
        return text
    least, most = found.cost_ratio_ci95
    return f"{text}; cost {found.cost_ratio:.3f} of it ({least:.3f} to {most:.3f})"


def _workers(row: Row) -> float:
    return float(row.worker_usd.mean())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _micro(usd: float) -> str:
    return f"{1e6 * usd:.2f}"
