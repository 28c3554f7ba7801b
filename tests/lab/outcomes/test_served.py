"""A book of served traffic: what clients rated, with the propensity of each choice, feeds the estimates."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.config import ServerConfig
from r2_serve.feedback import FeedbackStore, Rating
from r2_serve.lab.outcomes.book import Outcome, read_book
from r2_serve.lab.outcomes.served import outcomes_of, served_queries
from r2_serve.traces import TraceWriter
from r2_serve.types import RolloutNote, text_hash
from tests.support.in_process import Router, allocation_json, plan_json, query, routing

SKILL = {"small": 0.4, "large": 0.9}
PLAN = plan_json("height of Mont Blanc", "compare #1 with 4000 m")


class Served:
    """A router over scripted models whose traces and scores go to a directory."""

    def __init__(self, directory: Path, *, trace_texts: bool = True, **virtual: Any) -> None:
        self.directory = directory
        server = ServerConfig(trace_dir=str(directory), trace_texts=trace_texts)
        self.store = FeedbackStore(server)
        self.router = Router(
            routed=routing(**virtual),
            decomposer=[PLAN],
            allocator=[allocation_json("small", "large")],
            small=["4806 m"],
            large=["higher"],
        )
        self.router.pipeline.sinks = [self.router.traces.append, self.store.note, TraceWriter.of(server)]

    def ask(self, name: str, **fields: Any) -> str:
        asked = query(f"How high is {name}?", request_id=name, reply_id=f"id-{name}", **fields)
        answer = asyncio.run(self.router.pipeline.answer(asked))
        return answer.models[-1]

    def rate(self, name: str, score: float, **more: Any) -> None:
        self.store.rate("", Rating(request_id=f"chatcmpl-id-{name}", score=score, **more))

    def records(self, view: Any = "models") -> dict[tuple[str, str], Outcome]:
        found = list(outcomes_of(*served_queries(self.directory), view))
        return {(record.step, record.model): record for record in found}


def run(*words: str) -> str:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return done.output


def test_plan_becomes_a_record_of_the_whole_and_one_of_each_step(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.ask("q")
    served.rate("q", 1, source="check")
    served.rate("q", 0)
    served.rate("q", 0.25, step=1)
    records = served.records()
    whole, first, second = records["", "r2"], records["1", "small"], records["2", "large"]
    (trace,) = served.router.traces
    assert (whole.task, whole.prompt, whole.reply) == ("id-q", "How high is q?", "higher")
    assert (whole.score, whole.score_source, whole.right) == (1, "check", True)
    assert (whole.cost_usd, whole.seconds) == (trace.cost_usd, trace.duration_s)
    assert whole.tokens_in == sum(call.usage.prompt_tokens for call in trace.calls)
    assert (first.score, first.right, first.reply) == (0.25, False, "4806 m")
    assert (second.prompt, second.right) == ("compare 4806 m with 4000 m", None)
    assert second.cost_usd == trace.results[1].cost_usd


def test_whole_query_becomes_a_record_of_its_model_with_the_share_that_drew_it(tmp_path: Path) -> None:
    served = Served(tmp_path, plan="never", policy="random:small=1,large=3")
    model = served.ask("q")
    ((_, named),) = served.records()
    assert named == model
    assert served.records()["", model].propensity == {"small": 0.25, "large": 0.75}[model]


def test_choice_of_another_model_than_the_policys_has_no_propensity(tmp_path: Path) -> None:
    served = Served(tmp_path, plan="never", policy="random:small=1,large=3")
    model = served.ask("q")
    (trace,) = served.router.traces
    other = trace.results[0].model_copy(update={"model": "stand-in"})
    (record,) = outcomes_of([trace.model_copy(update={"results": (other,)})], {})
    assert model != record.model == "stand-in"
    assert record.propensity is None


def test_routers_view_tells_the_candidate_from_the_incumbent(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.ask("q")
    (trace,) = served.router.traces

    def record(arm: Any, share: float) -> Outcome:
        note = RolloutNote(candidate="dec-2", arm=arm, share=share, unit="u")
        (found,) = outcomes_of([trace.model_copy(update={"rollout": note})], {}, "routers")
        return found

    incumbent, canary = record("incumbent", 0.9), record("canary", 0.1)
    assert (incumbent.model, incumbent.propensity) == ("r2", 0.9)
    assert (canary.model, canary.propensity) == ("r2@dec-2", 0.1)


def test_book_without_texts_has_hashes_and_figures(tmp_path: Path) -> None:
    served = Served(tmp_path, trace_texts=False)
    served.ask("q")
    served.rate("q", 1)
    whole = served.records()["", "r2"]
    assert (whole.prompt, whole.reply, whole.right) == ("", "", True)
    assert whole.prompt_hash == text_hash("How high is q?")
    assert whole.cost_usd > 0


def test_random_policy_and_feedback_give_estimates_of_every_model(tmp_path: Path) -> None:
    served = Served(tmp_path / "traces", plan="never", policy="random:small=1,large=1")
    for number in range(300):
        model = served.ask(f"q{number}")
        served.rate(f"q{number}", float((number * 37) % 100 < 100 * SKILL[model]))
    for number in range(300, 320):
        served.ask(f"q{number}")
    book, report = tmp_path / "served.book", tmp_path / "report.json"
    assert "320 replies, 300 rated" in run(
        "outcomes", "import", "traces", str(tmp_path / "traces"), "-o", str(book)
    )
    assert len(read_book(book)) == 320
    run("replay", str(book), "--json", str(report))
    found = json.loads(report.read_text())
    assert found["tasks"] == 300
    for estimate in found["models"]:
        assert estimate["accuracy_dr"]["value"] == pytest.approx(SKILL[estimate["model"]], abs=0.1)
        assert estimate["accuracy_ips"]["value"] == pytest.approx(SKILL[estimate["model"]], abs=0.1)


def test_exploration_and_feedback_give_estimates_of_a_gate_and_of_every_model(tmp_path: Path) -> None:
    gate = {"ask": ["small", "large"], "accept": [{"kind": "agreement"}]}
    served = Served(
        tmp_path / "traces", plan="never", policy="one:careful", gates={"careful": gate}, explore=0.4
    )
    for number in range(400):
        served.ask(f"q{number}")
        allocation = served.router.trace.allocation
        assert allocation is not None
        right = {"careful": 0.95, **SKILL}[allocation.models[0]]
        served.rate(f"q{number}", float((number * 37) % 100 < 100 * right))
    book, report = tmp_path / "served.book", tmp_path / "report.json"
    run("outcomes", "import", "traces", str(tmp_path / "traces"), "-o", str(book))
    run("replay", str(book), "--json", str(report))
    found = {model["model"]: model for model in json.loads(report.read_text())["models"]}
    assert {name: model["refused"] for name, model in found.items()} == dict.fromkeys((*SKILL, "careful"))
    for name, right in {"careful": 0.95, **SKILL}.items():
        assert found[name]["accuracy_dr"]["value"] == pytest.approx(right, abs=0.12)


def test_choices_by_a_rule_give_no_estimate(tmp_path: Path) -> None:
    served = Served(tmp_path / "traces", plan="never", policy="one:large")
    for number in range(80):
        served.ask(f"q{number}", **({"policy": "one:small"} if number % 2 else {}))
        served.rate(f"q{number}", 1)
    book, report = tmp_path / "served.book", tmp_path / "report.json"
    run("outcomes", "import", "traces", str(tmp_path / "traces"), "-o", str(book))
    run("replay", str(book), "--json", str(report))
    refused = {model["model"]: model["refused"] for model in json.loads(report.read_text())["models"]}
    assert all("stand for 40 of 80 tasks" in str(reason) for reason in refused.values())


def test_book_without_ratings_cannot_be_replayed(tmp_path: Path) -> None:
    served = Served(tmp_path / "traces")
    served.ask("q")
    book = tmp_path / "served.book"
    run("outcomes", "import", "traces", str(tmp_path / "traces"), "-o", str(book))
    done = CliRunner().invoke(app, ["replay", str(book)])
    assert done.exit_code == 1 and "holds no rated reply" in done.output


def test_directory_without_traces_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["outcomes", "import", "traces", str(tmp_path), "-o", str(tmp_path / "b")])
    assert done.exit_code == 1 and "holds no trace of an answered query" in done.output
