"""A candidate in the config file, and `r2-serve compare`: what proves it no worse, worse, or nothing."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from r2_serve.cli import app as command
from r2_serve.config import RolloutConfig, ServerConfig
from r2_serve.errors import ConfigError, PublishError
from r2_serve.feedback import FeedbackStore, Rating, Score
from r2_serve.grading.answers import reader
from r2_serve.ops.publishing.compare import Evidence, Report, report_of
from r2_serve.ops.publishing.plan import Pool, plan_publication
from r2_serve.ops.publishing.steps import ConfigFile, end_trial, publish
from r2_serve.ops.publishing.trial import TrialShares, plan_end
from r2_serve.traces import TraceWriter
from r2_serve.types import Arm, RolloutNote, Trace
from tests.ops.test_publishing import (
    FakeServe,
    application,
    dashboard,
    loaded_in,
    published,
    routed_to,
    text_of,
)
from tests.support.small_adapters import adapter

SHARES = TrialShares(shadow=0.05, canary=0.1, budget_usd=Decimal(2))


def rollouts_in(text: str) -> dict[str, Any]:
    router = application(text, "r2")["deployments"][0]
    return dict(router["user_config"].get("rollouts", {}))


def tried(text: str, directory: Path, shares: TrialShares = SHARES) -> str:
    return plan_publication(text, directory, shares=shares).routed


def ended(text: str, action: Any) -> str:
    pool = Pool(text)
    return plan_end(text, action, pool.router_app, pool.rollouts).routed


# -- the file --


def test_trial_loads_the_adapter_and_leaves_the_present_router(tmp_path: Path) -> None:
    text = published(text_of(), tmp_path, "d1")
    after = tried(text, adapter(tmp_path, "d2"))
    assert (routed_to(after), loaded_in(after, "m-planner")) == ("d1", ["d1", "d2"])
    assert rollouts_in(after) == {
        "r2": {
            "candidate": "d2",
            "change": {"decomposer": {"adapter": "d2"}},
            "shadow": 0.05,
            "canary": 0.1,
            "budget_usd": "2",
        }
    }
    assert after.startswith("# the pool\n")


def test_same_candidate_with_other_shares_keeps_its_other_settings(tmp_path: Path) -> None:
    directory = adapter(tmp_path, "d1")
    after = tried(tried(text_of(), directory), directory, TrialShares(canary=0.5))
    found = rollouts_in(after)["r2"]
    assert (found["shadow"], found["canary"], found["budget_usd"]) == (0.0, 0.5, "2")


def test_promoted_candidate_becomes_the_router_and_can_be_rolled_back(tmp_path: Path) -> None:
    text = tried(published(text_of(), tmp_path, "d1"), adapter(tmp_path, "d2"))
    after = ended(text, "promoted")
    assert (routed_to(after), rollouts_in(after)) == ("d2", {})
    assert loaded_in(after, "m-planner") == ["d1", "d2"]


def test_withdrawn_candidate_leaves_the_router_as_it_was(tmp_path: Path) -> None:
    text = published(text_of(), tmp_path, "d1")
    after = ended(tried(text, adapter(tmp_path, "d2")), "withdrawn")
    assert (routed_to(after), rollouts_in(after)) == ("d1", {})


def test_adapter_on_trial_is_not_unloaded_by_another_publish(tmp_path: Path) -> None:
    text = tried(text_of(), adapter(tmp_path, "d1"))
    with pytest.raises(ConfigError, match=r"candidate 'd1' is on trial for 'r2': end that first"):
        published(text, tmp_path, "d2")
    assert loaded_in(published(ended(text, "withdrawn"), tmp_path, "d3"), "m-planner") == ["d1", "d3"]


def test_adapter_that_is_loaded_and_unused_may_go_on_trial(tmp_path: Path) -> None:
    """A publish that was killed between its steps leaves that; the same command goes on."""
    directory = adapter(tmp_path, "d1")
    loaded = plan_publication(text_of(), directory, shares=SHARES).loaded
    assert rollouts_in(tried(loaded, directory))["r2"]["candidate"] == "d1"
    with pytest.raises(ConfigError, match="is loaded in 'm-planner' already"):
        plan_publication(published(text_of(), tmp_path, "d2"), tmp_path / "d2", shares=SHARES)


@pytest.mark.parametrize("wrong", ["cost", "speed=1", "cost=-1", "cost=a"])
def test_wrong_margin_is_refused_by_name(wrong: str, path: Path, tmp_path: Path) -> None:
    words = ["publish", str(adapter(tmp_path, "d1")), "--config", str(path), "--shadow", "0.1", "--dry-run"]
    done = CliRunner().invoke(command, [*words, "--margin", wrong])
    assert done.exit_code == 1 and "accuracy, failures, fallbacks, cost, seconds" in done.output
    done = CliRunner().invoke(command, [*words, "--margin", "cost=0.5"])
    assert done.exit_code == 0 and "margins:" in done.output, done.output


def test_end_without_a_trial_is_refused() -> None:
    with pytest.raises(ConfigError, match="no candidate in the file is on trial"):
        ended(text_of(), "promoted")


# -- carrying it out --


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "serve_config.yaml"
    path.write_text(text_of())
    return path


def test_failed_promotion_is_undone(path: Path, tmp_path: Path) -> None:
    path.write_text(tried(text_of(), adapter(tmp_path, "d1")))
    before = path.read_text()
    serve = FakeServe(before, failing={"r2": "RuntimeError: no"})
    file, pool = ConfigFile(path), Pool(before)
    plan = plan_end(before, "promoted", pool.router_app, pool.rollouts)
    with pytest.raises(PublishError, match=r"still as before.*put back and deployed"):
        end_trial(plan, file, dashboard(serve), lambda _: None)
    assert path.read_text() == before
    assert serve.deployed[-1] == yaml.safe_load(before)


def test_trial_is_loaded_named_and_then_tried(path: Path, tmp_path: Path) -> None:
    serve, reported = FakeServe(path.read_text()), []
    file = ConfigFile(path)
    plan = plan_publication(file.original, adapter(tmp_path, "d1"), shares=SHARES)
    publish(plan, file, dashboard(serve), reported.append)
    assert [rollouts_in(yaml.safe_dump(config)).keys() for config in serve.deployed[:2]] == [set(), set()]
    assert reported[-1].endswith("decomposer of r2 tries d1 (shadow 5 %, canary 10 %)")


# -- evidence --


def note(arm: Arm, number: int, of: str | None = None) -> RolloutNote:
    return RolloutNote(candidate="d2", arm=arm, share=0.5, unit=f"u{number}", of=of)


def served(arm: Arm, number: int, *, seed: str = "", **fields: Any) -> Trace:
    rng = random.Random(f"{arm}/{number}/{seed}")
    usd = Decimal(str(round(0.01 * rng.uniform(0.9, 1.1), 6)))
    usual = {"cost_usd": usd, "duration_s": rng.uniform(0.9, 1.1)}
    name = f"{arm}-{number}"
    of = f"incumbent-{number}" if arm == "shadow" else None
    known = {"request_id": name, "model": "r2", "query": "?", "answer": "4", "rollout": note(arm, number, of)}
    return Trace(**{**known, **usual, **fields})


def reported(traces: list[Trace], scores: dict[str, float] | None = None, **margins: float) -> Report:
    rollout = RolloutConfig(candidate="d2", change={"policy": "one:small"}, margins=margins)
    given = {(task, None): Score(task, None, "user", score, None) for task, score in (scores or {}).items()}
    return report_of(Evidence.of(traces, "r2", "d2"), "r2", rollout, given, reader("text"))


def both(number: int, arm: Arm = "canary", **fields: Any) -> list[Trace]:
    present = [served("incumbent", i) for i in range(number)]
    return [*present, *(served(arm, i, **fields) for i in range(number))]


def scored(traces: list[Trace], share: float = 1.0) -> dict[str, float]:
    """Score 1 for all of the incumbent, and for `share` of the candidate."""

    def score(task: str) -> float:
        arm, number = task.split("-")
        return float(arm != "canary" or int(number) % 100 < 100 * share)

    return {trace.task: score(trace.task) for trace in traces}


def test_equal_candidate_is_no_worse_once_enough_is_known() -> None:
    traces = both(2_000)
    assert reported(traces, scored(traces)).verdict == "no worse"
    few = both(15)
    assert reported(few, scored(few)).verdict == "open"


def test_no_verdict_without_a_proxy_of_accuracy() -> None:
    assert reported(both(2_000)).verdict == "open"


@pytest.mark.parametrize(
    ("changed", "metric"),
    [
        ({"cost_usd": Decimal("0.015")}, "cost"),
        ({"duration_s": 1.5}, "seconds"),
        ({"plan_fallback": "no valid plan"}, "fallbacks"),
        ({"error": "SubtaskFailed: no", "answer": None}, "failures"),
    ],
)
def test_one_metric_beyond_its_margin_makes_a_candidate_worse(changed: dict[str, Any], metric: str) -> None:
    traces = both(200, **changed)
    report = reported(traces, scored(traces))
    assert report.verdict == "worse"
    assert [found.metric for found in report.canary if found.verdict == "worse"] == [metric]


def test_lower_scores_make_a_candidate_worse_and_a_wide_margin_forgives_them() -> None:
    traces = both(500)
    assert reported(traces, scored(traces, 0.8)).verdict == "worse"
    assert reported(traces, scored(traces, 0.8), accuracy=0.5, failures=0.05).verdict == "no worse"


def test_shadows_that_agree_are_no_worse_and_disagreement_alone_is_no_proof() -> None:
    assert reported(both(1_000, "shadow")).verdict == "no worse"
    report = reported(both(1_000, "shadow", answer="5"))
    assert (report.verdict, report.shadow[0].metric) == ("open", "agreement")


def test_shadow_is_compared_with_the_query_that_it_repeats() -> None:
    traces = both(30, "shadow")
    alone = served("shadow", 99)
    report = reported([*traces, alone])
    assert {found.num_candidate for found in report.shadow} == {30}


def test_answers_that_differ_in_spelling_agree() -> None:
    report = reported(both(1_000, "shadow", answer=" 4. "))
    assert report.shadow[0].candidate > 0.99


def test_queries_that_clients_left_or_sent_wrong_are_no_evidence() -> None:
    left = [served("canary", i, error="cancelled by the client", answer=None) for i in range(50)]
    wrong = [served("canary", i, error="InvalidRequest: no", answer=None) for i in range(50)]
    assert reported([*left, *wrong]).canary == ()


def test_queries_of_one_conversation_count_as_less_than_as_many_others() -> None:
    def width(num_units: int) -> float:
        traces = [
            served(arm, i, cost_usd=Decimal(1 + (i % num_units) % 2), rollout=note(arm, i % num_units))
            for arm in ("incumbent", "canary")
            for i in range(400)
        ]
        (cost,) = (found for found in reported(traces).canary if found.metric == "cost")
        return cost.interval[1] - cost.interval[0]

    assert width(10) > 4 * width(400)


# -- the command --


@pytest.fixture
def trial(path: Path, tmp_path: Path) -> Path:
    """A config with a candidate on trial, and the traces and scores of 2,000 queries of each router."""
    traces = tmp_path / "traces"
    text = text_of(server={"trace_dir": str(traces)})
    path.write_text(tried(text, adapter(tmp_path, "d2")))
    server = ServerConfig(trace_dir=str(traces))
    writer, store = TraceWriter.of(server), FeedbackStore(server)
    for trace in both(2_000):
        store.note(trace)
        writer(trace)
        store.rate("", Rating(request_id=trace.request_id, score=1))
    return path


def test_compare_prints_the_verdict_and_its_figures(trial: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = CliRunner().invoke(command, ["compare", "--config", str(trial), "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "d2 for r2: no worse (canary, 95 % intervals)" in done.output
    report = Report.model_validate_json(file.read_text())
    assert {found.metric for found in report.canary} == {"score", "failures", "fallbacks", "cost", "seconds"}
    assert report.latency["canary"].p50 == pytest.approx(1.0, abs=0.05)


def test_compare_without_a_trial_or_traces_says_what_to_do(path: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        return CliRunner().invoke(command, ["compare", "--config", str(path), *words]).output

    assert "set server.trace_dir, or give --traces" in said()
    assert "r2-serve publish --shadow 0.05" in said("--traces", str(tmp_path))


def test_rollback_needs_a_module_or_a_candidate(path: Path) -> None:
    done = CliRunner().invoke(command, ["rollback", "--config", str(path)])
    assert done.exit_code == 2 and "--candidate" in done.output
