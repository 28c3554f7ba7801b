"""The figures of a report as texts, for the terminal and for the page alike: what is said of a run, in which words."""

from __future__ import annotations

from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.report.figures import (
    Comparison,
    EqualAccuracy,
    Interval,
    PolicyReport,
    RunReport,
)
from r2_serve.lab.reports.terminal import usd


def title(report: RunReport) -> str:
    manifest = report.manifest
    side = "" if manifest.split == "all" else f", {manifest.split} side"
    return f"{manifest.benchmark} · {manifest.data}{side} · {manifest.num_tasks} tasks · {manifest.virtual_model}"


def notes(report: RunReport) -> list[str]:
    """What must be said beside the figures."""
    lines = [
        *_equal_accuracy_notes(report),
        *_shares_notes(report),
        *_incomplete_notes(report),
        *_failure_notes(report),
    ]
    lines.append(
        "Accuracy is over all tasks. Intervals: 95 % bootstrap, Wilson's where all tasks went alike."
    )
    lines.append(
        f"Total cost prices local models as configured; ref is {report.reference}. {_api_note(report)}"
    )
    lines.append("Latency is under the load of this very run.")
    return lines


def _equal_accuracy_notes(report: RunReport) -> list[str]:
    if not any(policy.policy == R2 for policy in report.policies):
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
    reduction = equal.cost_reduction
    verdict = (
        f"saves {percent(reduction)} of its {name} cost"
        if reduction >= 0
        else f"costs {percent(-reduction)} more ({name} cost)"
    )
    return f"At r2's accuracy the cheapest baseline is {parts}: r2 {verdict}."


def _shares_notes(report: RunReport) -> list[str]:
    if report.random_shares is None:
        return []
    shares = ", ".join(f"{model} {percent(share)}" for model, share in report.random_shares.items() if share)
    return [
        f"random drew with r2's shares: {shares}."
        if shares
        else "random drew uniformly: r2 is not in this run."
    ]


def _incomplete_notes(report: RunReport) -> list[str]:
    missing = sum(policy.statuses["missing"] for policy in report.policies)
    lines = (
        [f"NOT COMPLETE: {missing} (policy, task) pairs are missing and count as not correct."]
        if missing
        else []
    )
    if unknown := sum(policy.num_cost_unknown for policy in report.policies):
        lines.append(f"{unknown} failed requests did not tell their cost, which is in no figure here.")
    return lines


def _failure_notes(report: RunReport) -> list[str]:
    """One line per reason, as policies fail together."""
    policies: dict[str, list[str]] = {}
    for policy in report.policies:
        if policy.example_failure is not None:
            policies.setdefault(policy.example_failure, []).append(policy.policy)
    return [f"Failed under {', '.join(names)}, for one: {reason}" for reason, names in policies.items()]


def _api_note(report: RunReport) -> str:
    has_hosted = any(model.is_hosted for model in report.manifest.models)
    return "API cost is that of hosted models alone." if has_hosted else "No model is hosted: API cost is 0."


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:,.1f} %"


def saved(reduction: float | None) -> str:
    """A cost reduction; more than twice the cost is told as a multiple."""
    if reduction is None or reduction > -1:
        return percent(reduction)
    return f"costs {1 - reduction:,.0f}x" if reduction < -9 else f"costs {1 - reduction:.1f}x"


def interval(bounds: Interval) -> str:
    return f"{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"


def difference(comparison: Comparison) -> str:
    low, high = comparison.difference_ci95
    return f"{100 * comparison.accuracy_difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def relative_cost(policy: PolicyReport, report: RunReport) -> str:
    """In % of the reference's total cost; "-" where the reference is free."""
    reference = next(p.total_cost_usd for p in report.policies if p.policy == report.reference)
    return percent(float(policy.total_cost_usd / reference)) if reference else "-"


def router_share(policy: PolicyReport) -> str:
    return percent(float(policy.router_cost_usd / policy.total_cost_usd)) if policy.total_cost_usd else "-"


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3f}" if value < 1 else f"{value:#.3g}" if value < 99.9 else f"{value:.0f}"


def per_task(total: float, policy: PolicyReport) -> str:
    value = total / policy.num_tasks
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def mean(value: float) -> str:
    """Of what a policy may not have, such as a plan's width."""
    return f"{value:.1f}" if value else "-"


def not_correct(policy: PolicyReport) -> str:
    """Why tasks are not correct, the commonest first."""
    counts = sorted(
        ((n, status) for status, n in policy.statuses.items() if n and status != "correct"), reverse=True
    )
    return ", ".join(f"{n} {status}" for n, status in counts) or "-"


# -- rows of the page's tables ------------------------------------------------------------------------------------

ACCURACY_COLUMNS = (
    "policy",
    "accuracy",
    "95 % CI",
    "not correct",
    "total cost",
    "% of ref",
    "API cost",
    "workers",
    "router",
)


def accuracy_cells(policy: PolicyReport, report: RunReport) -> tuple[str, ...]:
    """In the order of `ACCURACY_COLUMNS`."""
    return (
        policy.policy,
        percent(policy.accuracy),
        interval(policy.accuracy_ci95),
        not_correct(policy),
        usd(policy.total_cost_usd),
        relative_cost(policy, report),
        *map(usd, (policy.api_cost_usd, policy.worker_cost_usd, policy.router_cost_usd)),
    )


USAGE_COLUMNS = ("policy", "calls/task", "tokens/task", "p50 s", "p95 s", "steps", "width", "depth")


def usage_cells(policy: PolicyReport) -> tuple[str, ...]:
    """In the order of `USAGE_COLUMNS`."""
    return (
        policy.policy,
        per_task(sum(use.num_calls for use in policy.models.values()), policy),
        per_task(sum(use.usage.total_tokens for use in policy.models.values()), policy),
        seconds(policy.latency_p50_s),
        seconds(policy.latency_p95_s),
        *map(mean, (policy.mean_subtasks, policy.mean_width, policy.mean_depth)),
    )


COMPARISON_COLUMNS = ("r2 against", "accuracy (95 % CI)", "r2 is", "total saved", "API saved")


def comparison_rows(report: RunReport) -> list[tuple[str, ...]]:
    """In the order of `COMPARISON_COLUMNS`."""
    return [
        (c.baseline, difference(c), c.verdict, saved(c.total_cost_reduction), saved(c.api_cost_reduction))
        for c in report.comparisons
    ]


MODEL_COLUMNS = ("policy", "model", "calls", "tokens in", "tokens out", "cost", "of subtasks")


def model_rows(report: RunReport) -> list[tuple[str, ...]]:
    """In the order of `MODEL_COLUMNS`; the policy is named once."""
    return [
        (
            policy.policy if i == 0 else "",
            model,
            f"{use.num_calls:,}",
            f"{use.usage.prompt_tokens:,}",
            f"{use.usage.completion_tokens:,}",
            usd(use.cost_usd),
            percent(policy.share(model)) if use.num_subtasks else "-",
        )
        for policy in report.policies
        for i, (model, use) in enumerate(policy.models.items())
    ]


OVERVIEW_COLUMNS = ("run", "r2", "95 % CI", "reference", "its accuracy", "r2's cost")


def overview_row(report: RunReport) -> tuple[str, ...]:
    """In the order of `OVERVIEW_COLUMNS`: one run in a line, r2's cost in % of the reference's."""
    policies = {policy.policy: policy for policy in report.policies}
    ours, reference = policies.get(R2), policies[report.reference]
    name = f"{report.manifest.benchmark} {report.manifest.data}"
    told = (percent(ours.accuracy), interval(ours.accuracy_ci95)) if ours else ("-", "-")
    return (
        name,
        *told,
        report.reference,
        percent(reference.accuracy),
        relative_cost(ours, report) if ours else "-",
    )
