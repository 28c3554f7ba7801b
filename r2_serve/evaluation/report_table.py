"""A report as tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from r2_serve.evaluation.policies import R2
from r2_serve.evaluation.report import Interval, PolicyReport, RunReport
from r2_serve.views import usd


def print_report(report: RunReport, console: Console) -> None:
    """Every table of one run."""
    console.rule(f"[bold]{title(report)}")
    console.print(_policies_table(report))
    console.print(_models_table(report))
    if report.comparisons:
        console.print(_comparisons_table(report))
    for note in notes(report):
        console.print(note)


def title(report: RunReport) -> str:
    manifest = report.manifest
    return f"{manifest.benchmark} · {manifest.data} · {manifest.num_tasks} tasks ({manifest.split}) · {manifest.virtual_model}"


def notes(report: RunReport) -> list[str]:
    """What must be said beside the figures."""
    lines = []
    equal = report.at_equal_accuracy
    if equal is not None:
        parts = " + ".join(f"{percent(share)} {name}" for name, share in equal.mixture.items())
        lines.append(f"At r2's accuracy the cheapest baseline is {parts}: r2 costs {percent(equal.total_cost_reduction)} less (total).")
    elif any(policy.policy == R2 for policy in report.policies):
        lines.append("No baseline, nor a mixture of two, reaches r2's accuracy.")
    if report.random_shares is not None:
        shares = ", ".join(f"{model} {percent(share)}" for model, share in report.random_shares.items())
        lines.append(f"random draws with r2's shares: {shares}." if shares else "random draws uniformly: r2 is not in this run.")
    if not report.is_complete:
        missing = sum(policy.statuses["missing"] for policy in report.policies)
        lines.append(f"NOT COMPLETE: {missing} (policy, task) pairs are missing and count as not correct.")
    if unknown := sum(policy.num_cost_unknown for policy in report.policies):
        lines.append(f"{unknown} failed requests did not tell their cost, which is in no figure here.")
    lines.append("Accuracy: over all tasks, 95 % bootstrap CI (Wilson's where none or all are correct).")
    lines.append("API cost: hosted models only; total: local models priced as configured too. Latency: under the load of this very run.")
    return lines


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def saved(reduction: float | None) -> str:
    """A cost reduction; more than twice the cost is told as a multiple."""
    return percent(reduction) if reduction is None or reduction > -1 else f"costs {1 - reduction:.1f}x"


def interval(bounds: Interval) -> str:
    return f"{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"


def not_correct(policy: PolicyReport) -> str:
    """Why tasks are not correct, the commonest first."""
    counts = sorted(((n, status) for status, n in policy.statuses.items() if n and status != "correct"), reverse=True)
    return ", ".join(f"{n} {status}" for n, status in counts) or "-"


POLICY_COLUMNS = (
    "policy", "accuracy", "95 % CI", "not correct", "API cost", "total", "workers", "router", "calls", "tokens",
    "p50 s", "p95 s", "steps", "width", "depth",
)  # fmt: skip


def policy_cells(policy: PolicyReport) -> tuple[str, ...]:
    """In the order of `POLICY_COLUMNS`."""
    tokens = sum(use.usage.total_tokens for use in policy.models.values())
    shape = (policy.mean_subtasks, policy.mean_width, policy.mean_depth)
    costs = (policy.api_cost_usd, policy.total_cost_usd, policy.worker_cost_usd, policy.router_cost_usd)
    return (
        policy.policy,
        percent(policy.accuracy),
        interval(policy.accuracy_ci95),
        not_correct(policy),
        *map(usd, costs),
        f"{sum(use.num_calls for use in policy.models.values()):,}",
        f"{tokens:,}",
        f"{policy.latency_p50_s:.3f}",
        f"{policy.latency_p95_s:.3f}",
        *(f"{value:.1f}" if value else "-" for value in shape),
    )


COMPARISON_COLUMNS = ("r2 against", "accuracy difference", "95 % CI, paired", "intervals", "total cost saved", "API cost saved")


def comparison_rows(report: RunReport) -> list[tuple[str, ...]]:
    """In the order of `COMPARISON_COLUMNS`."""
    return [
        (
            c.baseline,
            f"{100 * c.accuracy_difference:+.1f}",
            f"{100 * c.difference_ci95[0]:+.1f} to {100 * c.difference_ci95[1]:+.1f}",
            "overlap" if c.do_intervals_overlap else "apart",
            saved(c.total_cost_reduction),
            saved(c.api_cost_reduction),
        )
        for c in report.comparisons
    ]


MODEL_COLUMNS = ("policy", "model", "calls", "tokens in", "tokens out", "cost", "share of subtasks")


def model_rows(report: RunReport) -> list[tuple[str, ...]]:
    """In the order of `MODEL_COLUMNS`."""
    return [
        (
            policy.policy,
            model,
            f"{use.num_calls:,}",
            f"{use.usage.prompt_tokens:,}",
            f"{use.usage.completion_tokens:,}",
            usd(use.cost_usd),
            percent(policy.share(model)) if use.num_subtasks else "-",
        )
        for policy in report.policies
        for model, use in policy.models.items()
    ]


def _policies_table(report: RunReport) -> Table:
    table = _table(POLICY_COLUMNS, num_left=1)
    for policy in report.policies:
        style = "bold" if policy.policy == R2 else "" if policy.policy in report.pareto else "dim"
        table.add_row(*policy_cells(policy), style=style)
    table.caption = "dim: another policy is at least as accurate and cheaper in total"
    return table


def _models_table(report: RunReport) -> Table:
    table = _table(MODEL_COLUMNS, num_left=2)
    last = ""
    for row in model_rows(report):
        table.add_row("" if row[0] == last else row[0], *row[1:])
        last = row[0]
    return table


def _comparisons_table(report: RunReport) -> Table:
    table = _table(COMPARISON_COLUMNS, num_left=1)
    for row in comparison_rows(report):
        table.add_row(*row)
    return table


def _table(columns: tuple[str, ...], *, num_left: int) -> Table:
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < num_left or column == "not correct" else "right", overflow="fold")
    return table
