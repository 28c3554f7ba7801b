"""What an evaluation has paid for once is not asked again, and changes no figure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from r2_serve.cli import app
from r2_serve.engines.scripted import Reply, ScriptedEngine
from r2_serve.errors import EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.benchmarks import sample_tasks
from r2_serve.lab.evaluation.booked import BookedAsker, booked_engines, opened, purpose_of
from r2_serve.lab.evaluation.report.figures import report_of
from r2_serve.lab.evaluation.revising import grade_book
from r2_serve.lab.evaluation.rows import read_rows
from r2_serve.lab.evaluation.runner import Standing
from r2_serve.lab.outcomes.book import read_book
from r2_serve.lab.outcomes.table import table_of
from r2_serve.lab.runs import RunError
from r2_serve.types import Completion, EngineCall, Message, Sampling
from tests.lab.evaluation.test_runner import DyingAsker, Killed, figures
from tests.support.in_process import model
from tests.support.scripted_evaluation import (
    PAIR,
    POLICIES,
    asker_of,
    engines_of,
    lines_of,
    runner_of,
    scripts,
    setting,
    sums,
)
from tests.support.scripted_pool import scripted_yaml


async def run(
    directory: Path, policies: Sequence[str], *, book: Path, tasks: Sequence[Task] = sums(6), **script: Any
) -> tuple[Standing, dict[str, int]]:
    """A run over a book; the standing, and the number of calls that each model got."""
    engines = engines_of(scripts(**script))
    with opened(book) as keeper:
        runner = runner_of(directory, tasks, policies, asker_of(engines, keeper), keeper=keeper)
        standing = await runner.run()
    return standing, {name: len(engine.calls) for name, engine in engines.items() if engine.calls}


async def test_run_over_the_book_of_an_equal_run_makes_no_call_and_has_the_same_figures(
    tmp_path: Path,
) -> None:
    first, calls = await run(tmp_path / "a", POLICIES, book=tmp_path / "book.jsonl")
    again, none = await run(tmp_path / "b", POLICIES, book=tmp_path / "book.jsonl")
    assert calls["small"] > 6 and none == {}
    assert (again.num_correct, again.cost_usd, first.cost_usd > 0) == (first.num_correct, 0, True)
    one, other = (figures(report_of(tmp_path / name)) for name in "ab")
    assert one == other


async def test_run_without_a_book_has_the_same_figures_as_one_with(tmp_path: Path) -> None:
    await runner_of(tmp_path / "plain", sums(6), POLICIES).run()
    await run(tmp_path / "booked", POLICIES, book=tmp_path / "book.jsonl")
    assert figures(report_of(tmp_path / "plain")) == figures(report_of(tmp_path / "booked"))


async def test_further_policy_asks_only_what_no_other_has_asked(tmp_path: Path) -> None:
    book = tmp_path / "book.jsonl"
    await run(tmp_path / "run", ["single:small", "single:large"], book=book)
    _, calls = await run(tmp_path / "run", [f"cascade:{PAIR}"], book=book)
    assert calls == {"small": 6}, "small is asked again for its log-probabilities, large never"
    standing, none = await run(tmp_path / "run", [f"cascade:{PAIR}", "single:small"], book=book)
    assert (standing.num_total, standing.num_correct, none) == (12, 10, {})
    assert [policy.policy for policy in report_of(tmp_path / "run").policies] == [
        "single:small",
        "single:large",
        f"cascade:{PAIR}",
    ]


async def test_larger_limit_asks_only_the_further_tasks(tmp_path: Path) -> None:
    many = sums(10)
    few = sample_tasks(many, 4)
    book = tmp_path / "book.jsonl"
    await run(tmp_path / "run", ["single:large"], book=book, tasks=few)
    standing, calls = await run(tmp_path / "run", ["single:large"], book=book, tasks=many)
    assert (standing.num_total, standing.num_done, calls) == (10, 10, {"large": 6})
    with pytest.raises(RunError, match="num_tasks: was 10, now 4"):
        await run(tmp_path / "run", ["single:large"], book=book, tasks=few)


async def test_killed_run_does_not_ask_again_what_it_had_asked(tmp_path: Path) -> None:
    engines = engines_of(scripts())
    with opened(tmp_path / "book.jsonl") as keeper, contextlib.suppress(Killed):
        dying = DyingAsker(asker_of(engines, keeper), 5)
        await runner_of(tmp_path / "run", sums(6), ["cot:large"], dying, keeper=keeper, num_at_once=1).run()
    first = len(engines["large"].calls)
    _, calls = await run(tmp_path / "run", ["cot:large"], book=tmp_path / "book.jsonl")
    _, whole = await run(tmp_path / "whole", ["cot:large"], book=tmp_path / "other.jsonl")
    assert first + calls["large"] == whole["large"]
    assert len(lines_of(tmp_path / "run")) == 6


async def test_equal_greedy_calls_at_one_time_are_asked_once_and_a_failure_is_asked_again(
    tmp_path: Path,
) -> None:
    replies: list[Reply] = [EngineUnavailable("down", 1.0), "yes"]
    scripted = ScriptedEngine(replies, delay_s=0.001)
    call = EngineCall(messages=(Message(role="user", content="?"),), sampling=Sampling(temperature=0.0))
    with opened(tmp_path / "book.jsonl") as keeper, purpose_of("0/single/1", sums(1)[0]) as purpose:
        engine = booked_engines(lambda card: scripted, {}, keeper)(model("large"))
        found = await asyncio.gather(*(engine.generate(call) for _ in range(5)), return_exceptions=True)
    texts = [reply.text for reply in found if isinstance(reply, Completion)]
    assert (texts, len(scripted.calls), purpose.num_reused) == (["yes"] * 4, 2, 3)


class Counting:
    """A model that numbers its replies, so that each is told from the others."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        self.count += 1
        return f"reply {self.count}"


async def test_samples_are_drawn_anew_for_each_policy_and_come_back_to_their_own(tmp_path: Path) -> None:
    """`one:large` asks the bare task without a temperature, so the provider draws."""
    book = tmp_path / "book.jsonl"
    counting = Counting()
    both = ["one:large", "r2"]
    plain = {"large": counting, "decomposer": ["no plan"], "small": counting}
    await run(tmp_path / "a", both, book=book, tasks=sums(3), **plain)
    drawn = {
        (line["policy"], line["task_id"]): line["outcome"]["answer"] for line in lines_of(tmp_path / "a")
    }
    assert len(set(drawn.values())) == 6
    _, calls = await run(tmp_path / "b", both, book=book, tasks=sums(3), **plain)
    again = {
        (line["policy"], line["task_id"]): line["outcome"]["answer"] for line in lines_of(tmp_path / "b")
    }
    assert (again, calls) == (drawn, {})


async def test_equal_samples_of_one_task_get_different_replies(tmp_path: Path) -> None:
    task = sums(1)[0]
    call = EngineCall(messages=(Message(role="user", content="?"),), sampling=Sampling(temperature=1.0))
    found = []
    for _ in range(2):
        with opened(tmp_path / "book.jsonl") as keeper, purpose_of("0/tot/1", task):
            engine = booked_engines(lambda card: ScriptedEngine(Counting()), {}, keeper)(model("large"))
            found.append([(await engine.generate(call)).text for _ in range(3)])
    assert found == [["reply 1", "reply 2", "reply 3"]] * 2


async def test_book_of_a_run_replays_with_the_accuracy_of_its_rows(tmp_path: Path) -> None:
    book = tmp_path / "book.jsonl"
    await run(tmp_path / "run", ["single:small", "single:large", "dot:small,large"], book=book)
    async with Grader() as grader:
        await grade_book(book, sums(6), grader, is_all=False)
    table = table_of(read_book(book))
    assert (table.models, table.accuracy.tolist()) == (("small", "large"), [pytest.approx(4 / 6), 1.0])
    whole = [record for record in read_book(book) if not record.step]
    assert {
        (record.grader, record.gold is not None, record.group == 0) for record in whole if record.right
    } == {("number", True, True)}


async def test_endpoint_is_not_asked_again_for_what_a_pool_model_said(tmp_path: Path) -> None:
    async def run_of(name: str) -> dict[str, int]:
        engines = engines_of(scripts())
        with opened(tmp_path / "book.jsonl") as keeper:
            asker = BookedAsker(asker_of(engines), setting().cards, "http://r2/v1", keeper)
            await runner_of(
                tmp_path / name, sums(4), ["single:small", f"cascade:{PAIR}"], asker, keeper=keeper
            ).run()
        return {name: len(engine.calls) for name, engine in engines.items() if engine.calls}

    assert (await run_of("a"))["small"] > 0 and await run_of("b") == {}
    assert figures(report_of(tmp_path / "a")) == figures(report_of(tmp_path / "b"))


async def test_rows_hold_plan_step_answers_gold_and_request_ids(tmp_path: Path) -> None:
    await run(
        tmp_path / "run", ["r2", f"dot:{PAIR}", "single:large"], book=tmp_path / "book.jsonl", tasks=sums(1)
    )
    rows = {line["policy"]: line for line in lines_of(tmp_path / "run")}
    for name in ("r2", f"dot:{PAIR}"):
        outcome = rows[name]["outcome"]
        assert [step["text"] for step in outcome["plan"]["subtasks"]] == [
            "recall 1",
            "recall 2",
            "add #1 and #2",
        ]
        assert (outcome["step_answers"], rows[name]["golds"]) == (["1", "2", "3"], ["3"])
    assert "plan" not in rows["single:large"]["outcome"]
    asked = [id for row in rows.values() for id in row["outcome"]["request_ids"]]
    assert len(asked) == len(set(asked)) >= 3 and all(id.startswith("eval-") for id in asked)


# -- as it is typed ------------------------------------------------------------------------------------------


def typed(directory: Path, *more: object, gold: int = 1, **changed: Any) -> Result:
    questions = [{"question": f"What is {i} + 1?", "answer": i + gold} for i in range(6)]
    (directory / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    config = directory / "serve_config.yaml"
    if not config.exists() or changed:
        config.write_text(scripted_yaml(replies={"large": ["The answer is 3.0"]}, **changed))
    files = ("-b", "qa", "-d", directory / "mine.jsonl", "-c", config, "-o", directory / "run")
    options = (*files, "--split", "all", *more)
    return CliRunner().invoke(app, ["eval", "run", *map(str, options)])


def rows_in(directory: Path) -> list[dict[str, Any]]:
    return lines_of(directory / "run")


def test_changed_price_prices_the_rows_anew_without_a_call(tmp_path: Path) -> None:
    first = typed(tmp_path, "-g", "number", "-p", "single:large")
    assert "asked for 6 replies" in first.output, first.output
    before = [row["outcome"]["calls"][0]["cost_usd"] for row in rows_in(tmp_path)]
    config = tmp_path / "serve_config.yaml"
    config.write_text(raised(config.read_text()))
    refused = typed(tmp_path, "-g", "number", "-p", "single:large")
    assert refused.exit_code == 1 and "--reprice prices its rows anew" in refused.output
    paid = sum((row.spent_usd for row in read_rows(tmp_path / "run")), Decimal(0))
    done = typed(tmp_path, "-g", "number", "-p", "single:large", "--reprice")
    assert "6 rows priced anew" in done.output and "asked for 0 replies" in done.output, done.output
    after = [row["outcome"]["calls"][0]["cost_usd"] for row in rows_in(tmp_path)]
    assert [float(cost) for cost in after] == [pytest.approx(10 * float(cost)) for cost in before]
    assert sum(float(r.cost_usd) for r in read_book(tmp_path / "run" / "book.jsonl")) == pytest.approx(
        sum(map(float, after))
    )

    assert sum((row.spent_usd for row in read_rows(tmp_path / "run")), Decimal(0)) == paid > 0


def raised(config: str) -> str:
    """The same config with every price ten times as high."""
    return re.sub(r"(usd_per_mtok_\w+: )'([\d.]+)'", lambda found: f"{found[1]}'{found[2]}0'", config)


def test_changed_grader_grades_the_rows_anew_without_a_call(tmp_path: Path) -> None:
    assert typed(tmp_path, "-g", "text", "-p", "single:large").exit_code == 0
    assert {row["status"] for row in rows_in(tmp_path)} == {"wrong"}
    refused = typed(tmp_path, "-g", "number", "-p", "single:large")
    assert refused.exit_code == 1 and "--regrade grades its rows anew" in refused.output
    done = typed(tmp_path, "-g", "number", "-p", "single:large", "--regrade")
    assert "asked for 0 replies" in done.output, done.output
    assert [row["status"] for row in rows_in(tmp_path)].count("correct") == 1
    book = read_book(tmp_path / "run" / "book.jsonl")
    assert {record.grader for record in book} == {"number"} and sum(bool(r.right) for r in book) == 1


def test_mended_right_answers_grade_the_rows_anew_without_a_call(tmp_path: Path) -> None:
    assert typed(tmp_path, "-g", "number", "-p", "single:large", gold=100).exit_code == 0
    refused = typed(tmp_path, "-g", "number", "-p", "single:large")
    assert refused.exit_code == 1 and "data_sha256" in refused.output
    done = typed(tmp_path, "-g", "number", "-p", "single:large", "--regrade")
    assert "1 verdict changed" in done.output and "asked for 0 replies" in done.output, done.output
    assert [row["golds"] for row in rows_in(tmp_path)] == [[str(i + 1)] for i in range(6)]


def test_run_json_tells_when_where_and_with_what(tmp_path: Path) -> None:
    typed(tmp_path, "-g", "number", "-p", "single:large")
    typed(tmp_path, "-g", "number", "-p", "one:large")
    first, second = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert first["at"] <= second["at"] and (first["policies"], second["policies"]) == (
        ["single:large"],
        ["one:large"],
    )
    assert first["machine"]["cpus"] >= 1 and {"numpy", "pydantic", "typer"} <= set(first["packages"])


def test_run_that_is_set_aside_leaves_its_book(tmp_path: Path) -> None:
    typed(tmp_path, "-g", "number", "-p", "single:large")
    done = typed(tmp_path, "-g", "number", "-p", "single:large", "--seed", "1", "--set-aside")
    assert "asked for 0 replies" in done.output and "6 came from" in done.output, done.output
    assert (tmp_path / "run.1" / "rows.jsonl").exists()


def test_book_that_another_run_writes_or_that_is_compressed_is_refused(tmp_path: Path) -> None:
    refused = typed(tmp_path, "-g", "number", "-p", "single:large", "--book", tmp_path / "b.jsonl.gz")
    assert refused.exit_code == 1 and "gunzip" in refused.output
    with opened(tmp_path / "b.jsonl"):
        refused = typed(tmp_path, "-g", "number", "-p", "single:large", "--book", tmp_path / "b.jsonl")
    assert refused.exit_code == 1 and "being written by another process" in refused.output
