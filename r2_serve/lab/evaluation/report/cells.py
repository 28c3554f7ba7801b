"""The figures of a report as texts, for the terminal and the page alike: title, notes, rows of tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

from r2_serve.errors import counted
from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.report.comparisons import EqualAccuracy, find_policy
from r2_serve.lab.evaluation.report.figures import RunReport
from r2_serve.lab.evaluation.report.policy import PolicyReport
from r2_serve.lab.reports.terminal import usd
from r2_serve.lab.statistics import Interval, Paired, spread

Cells = tuple[str, ...]


def title(report: RunReport) -> str:
    manifest = report.manifest
    side = "" if manifest.split == "all" else f", {manifest.split} side"
    seeds = (f"{len(report.seeds)} seeds",) if len(report.seeds) > 1 else ()
    parts = (
        manifest.benchmark,
        manifest.data + side,
        counted(manifest.num_tasks, "task"),
        manifest.virtual_model,
    )
    return " · ".join((*parts, *seeds))


# -- notes under the tables ----------------------------------------------------------------------------------


def notes(report: RunReport) -> list[str]:
    """Sentences without which the figures would mislead."""
    return [
        *_rival_notes(report),
        *_equal_accuracy_notes(report),
        *_shares_notes(report),
        *_tuning_notes(report),
        *_seeds_notes(report),
        *_incomplete_notes(report),
        *failure_notes(report.policies),
        "Accuracy is over all tasks. Intervals: 95 % bootstrap, Wilson's where all tasks have one result.",
        f"Total cost prices local models as configured; ref is {report.reference}. {_api_note(report)}",
        "Latency is under the load of this very run.",
    ]


def _rival_notes(report: RunReport) -> list[str]:
    margin = points(report.margin)
    if not report.comparisons:
        return []
    if report.cheapest_rival is None:
        return [f"No baseline is within {margin} of r2's accuracy."]
    rival = next(c for c in report.comparisons if c.baseline == report.cheapest_rival)
    return [
        f"The cheapest baseline within {margin} of r2's accuracy is {rival.baseline}. Against it r2 has "
        f"{difference(rival)} points at {cost_ratio(rival)} times its total cost.",
        f"r2 is 'not worse' where Tango's test proves that it loses less than {margin} (one-sided, 2.5 %). "
        "p is McNemar's, corrected by Holm for the number of baselines.",
    ]


def _tuning_notes(report: RunReport) -> list[str]:
    if report.tuning is None:
        return []
    tuning = report.tuning
    goal = (
        "the most accurate one"
        if tuning.target_accuracy is None
        else f"the cheapest within {points(tuning.margin)} of r2 ({percent(tuning.target_accuracy)} there)"
    )
    chosen = "; ".join(
        f"{one.policy} of {one.num_settings} settings ({percent(one.accuracy)})"
        for one in tuning.chosen.values()
    )
    return [
        f"Tuned on {tuning.num_tasks} development tasks, none of which is reported, for {goal}: {chosen}."
    ]


def _seeds_notes(report: RunReport) -> list[str]:
    if len(report.seeds) < 2:
        return []
    seeds = ", ".join(map(str, report.seeds))
    found = [
        f"Seeds {seeds}: costs and counts are over all of them; the mark of a task is its mean over them, "
        "and p is the bootstrap's."
    ]
    ours = find_policy(report.policies, R2)
    deviation = spread(ours.accuracy_by_seed) if ours else None
    if deviation is not None:
        found.append(f"Over the seeds, r2's accuracy has a standard deviation of {points(deviation)}.")
    return found


def _equal_accuracy_notes(report: RunReport) -> list[str]:
    if find_policy(report.policies, R2) is None:
        return []
    if report.at_equal_accuracy is None:
        return ["No baseline, nor a mixture of two, reaches r2's accuracy."]
    found = [("total", report.at_equal_accuracy), ("API", report.at_equal_accuracy_api)]
    return [_equal_accuracy_note(name, equal) for name, equal in found if equal is not None]


def _equal_accuracy_note(name: str, equal: EqualAccuracy) -> str:
    parts = " + ".join(
        f"{percent(share)} of tasks {policy}" if share < 1 else policy
        for policy, share in equal.mixture.items()
    )
    saves, costs = percent(equal.cost_reduction), percent(-equal.cost_reduction)
    verdict = (
        f"saves {saves} of its {name} cost"
        if equal.cost_reduction >= 0
        else f"costs {costs} more ({name} cost)"
    )
    return f"At r2's accuracy the cheapest baseline is {parts}: r2 {verdict}."


def _shares_notes(report: RunReport) -> list[str]:
    if report.random_shares is None:
        return []
    shares = ", ".join(f"{model} {percent(share)}" for model, share in report.random_shares.items() if share)
    if not shares:
        return ["random drew uniformly: r2 is not in this run."]
    return [f"random drew with r2's shares: {shares}."]


def _incomplete_notes(report: RunReport) -> list[str]:
    lines = []
    if missing := sum(policy.statuses["missing"] for policy in report.policies):
        lines.append(f"NOT COMPLETE: {missing} (policy, task) pairs are missing and count as not correct.")
    if unknown := sum(policy.num_cost_unknown for policy in report.policies):
        lines.append(f"The cost of {unknown} failed requests is unknown, and in no figure here.")
    return lines


def failure_notes(policies: Iterable[PolicyReport]) -> list[str]:
    """One line per reason, because policies often fail together."""
    names: dict[str, list[str]] = {}
    for policy in policies:
        if policy.example_failure is not None:
            names.setdefault(policy.example_failure, []).append(policy.policy)
    return [f"Failed under {', '.join(found)}, for example: {reason}" for reason, found in names.items()]


def _api_note(report: RunReport) -> str:
    has_hosted = any(model.is_hosted for model in report.manifest.models)
    return "API cost is that of hosted models alone." if has_hosted else "No model is hosted: API cost is 0."


# -- one figure ----------------------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:,.1f} %"


def saved(reduction: float | None) -> str:
    """A cost reduction; more than twice the cost is written as a multiple."""
    if reduction is None or reduction > -1:
        return percent(reduction)
    return f"costs {1 - reduction:,.0f}x" if reduction < -9 else f"costs {1 - reduction:.1f}x"


def interval(bounds: Interval) -> str:
    return f"{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"


def difference(pair: Paired) -> str:
    """The difference of two accuracies in points, with its interval."""
    low, high = pair.accuracy_difference_ci95
    return f"{100 * pair.accuracy_difference:+.1f} ({100 * low:+.1f}, {100 * high:+.1f})"


def cost_ratio(pair: Paired) -> str:
    """A cost as a multiple of another, with its interval."""
    if pair.cost_ratio is None:
        return "-"
    bounds = "" if pair.cost_ratio_ci95 is None else f" ({'-'.join(map(_multiple, pair.cost_ratio_ci95))})"
    return f"{_multiple(pair.cost_ratio)}{bounds}"


def _multiple(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def probability(value: float) -> str:
    """A p-value with two digits."""
    return "<.001" if value < 0.001 else f"{value:.2g}".removeprefix("0") if value < 0.995 else "1"


def points(value: float) -> str:
    """A fraction as points, without needless digits."""
    text = f"{100 * value:.2g}"
    return f"{text} point" if text == "1" else f"{text} points"


def relative(cost_usd: Decimal, reference_usd: Decimal) -> str:
    """A cost in % of another; "-" if the other is 0."""
    return percent(float(cost_usd / reference_usd)) if reference_usd else "-"


def seconds(value: float) -> str:
    """Three digits; a dash for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:#.3g}" if value < 99.9 else f"{value:.0f}"


def per_task(total: float, policy: PolicyReport) -> str:
    value = total / policy.num_tasks
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def mean(value: float) -> str:
    """A mean, such as the width of plans; "-" for a policy without plans."""
    return f"{value:.1f}" if value else "-"


def not_correct(policy: PolicyReport) -> str:
    """Why tasks are not correct, the commonest reason first."""
    counts = [(n, status) for status, n in policy.statuses.items() if n and status != "correct"]
    return ", ".join(f"{n} {status}" for n, status in sorted(counts, reverse=True)) or "-"


# -- rows of tables ------------------------------------------------------------------------------------------

ACCURACY_COLUMNS = (
    *("policy", "accuracy", "95 % CI", "not correct"),
    *("total cost", "% of ref", "API cost", "workers", "router"),
)


def accuracy_cells(policy: PolicyReport, reference: PolicyReport) -> Cells:
    """Cells in the order of `ACCURACY_COLUMNS`."""
    return (
        policy.policy,
        percent(policy.accuracy),
        interval(policy.accuracy_ci95),
        not_correct(policy),
        usd(policy.total_cost_usd),
        relative(policy.total_cost_usd, reference.total_cost_usd),
        *map(usd, (policy.api_cost_usd, policy.worker_cost_usd, policy.router_cost_usd)),
    )


USAGE_COLUMNS = ("policy", "calls/task", "tokens/task", "p50 s", "p95 s", "steps", "width", "depth")


def usage_cells(policy: PolicyReport) -> Cells:
    """Cells in the order of `USAGE_COLUMNS`."""
    return (
        policy.policy,
        per_task(sum(use.num_calls for use in policy.models.values()), policy),
        per_task(sum(use.usage.total_tokens for use in policy.models.values()), policy),
        *map(seconds, (policy.latency_p50_s, policy.latency_p95_s)),
        *map(mean, (policy.mean_subtasks, policy.mean_width, policy.mean_depth)),
    )


COMPARISON_COLUMNS = ("r2 against", "points (95 % CI)", "p", "r2 is", "cost, times (CI)")


def comparison_rows(report: RunReport) -> list[Cells]:
    """Cells in the order of `COMPARISON_COLUMNS`."""
    return [
        (c.baseline, difference(c), probability(c.holm_p), c.verdict, cost_ratio(c))
        for c in report.comparisons
    ]


MODEL_COLUMNS = ("policy", "model", "calls", "tokens in", "tokens out", "cost", "of subtasks")


def model_rows(policies: Iterable[PolicyReport]) -> list[Cells]:
    """Cells in the order of `MODEL_COLUMNS`; the name of a policy stands in its first row only."""
    return [
        (
            policy.policy if i == 0 else "",
            model,
            *(f"{n:,}" for n in (use.num_calls, use.usage.prompt_tokens, use.usage.completion_tokens)),
            usd(use.cost_usd),
            percent(policy.share(model)) if use.num_subtasks else "-",
        )
        for policy in policies
        for i, (model, use) in enumerate(policy.models.items())
    ]


OVERVIEW_COLUMNS = ("run", "r2", "95 % CI", "reference", "its accuracy", "r2's cost")


def overview_row(report: RunReport) -> Cells:
    """One run in the order of `OVERVIEW_COLUMNS`; r2's cost is in % of the reference's."""
    ours, reference = find_policy(report.policies, R2), report.reference_report
    return (
        f"{report.manifest.benchmark} {report.manifest.data}",
        percent(ours.accuracy) if ours else "-",
        interval(ours.accuracy_ci95) if ours else "-",
        report.reference,
        percent(reference.accuracy),
        relative(ours.total_cost_usd, reference.total_cost_usd) if ours else "-",
    )
