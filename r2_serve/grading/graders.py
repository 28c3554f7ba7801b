"""Verdicts on answers. A grader sees a row and an answer, never the model, and has no part in answering.

| benchmark | correct | decided by |
|---|---|---|
| math | math-verify, else MATH's string match | `math_workers`, `grade_math` |
| champ | yes/no, plain text, math-verify; wrong only on proof | the same |
| gsm8k | the number stated last | `answers.number_answer` |
| csqa | the letter stated last | `grade_text.last_letter` |
| scan | the exact action sequence | `grade_text.scan_actions` |
| p3 | `sat(value) is True`, run in sandboxes | `p3` |
| musique | exact match with the answer or an alias; F1 is a second score | `grade_text.span_scores` |
| words | the last whole number | `grade_text.last_number` |
| qa, and any other on request | the grader of that name, or your own by import path | `named` |
| everyday | all results, in order | `grade_text.listed_results` |

`correct` is None if the grader cannot decide (`ungradable`, `error`, `timeout` of a comparison). Such a
verdict is never turned into False, and never dropped. A reply in which no answer is found is `unparsed` and
False.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from r2_serve.config import Config
from r2_serve.config.imported import is_import_path
from r2_serve.grading import grade_math, grade_text, named, rows
from r2_serve.grading.answers import number_answer, reader
from r2_serve.grading.math_workers import MathTimeout, MathWorkers
from r2_serve.grading.p3 import grade_puzzle
from r2_serve.grading.reading import read_answer
from r2_serve.grading.rows import Benchmark, BenchmarkError, Task
from r2_serve.grading.sandbox import Sandbox, SandboxConfig, SandboxLimits
from r2_serve.types import GraderName, Record

if TYPE_CHECKING:
    from r2_serve.grading.math_compare import Relation

Status = Literal["correct", "wrong", "unparsed", "ungradable", "timeout", "error"]
"""`timeout`: the answer's program (p3: `correct` is False) or its comparison (math and champ: `correct` is
None) did not end in time. `error`: the row does not belong to its benchmark, or the grader itself failed."""


class Verdict(Record):
    """Judgement of one answer."""

    id: str
    correct: bool | None
    status: Status
    detail: str = ""
    scores: dict[str, float] = Field(default_factory=dict)
    """Further scores: `f1` and `em` (musique), `math_verify` and `string_match` (math)."""


class GraderConfig(Config):
    """Resources of a `Grader`."""

    num_math_workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1)
    math_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time of one comparison. After it the worker process is killed."""
    p3_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time of a program, and again of the check of its value."""
    sandbox: SandboxConfig = SandboxConfig(limits=SandboxLimits(output_bytes=8 << 20))
    """Limits of programs. The output is large because a few official solutions have millions of digits."""


class Grader:
    """Grades concurrently. It owns the comparing processes and the sandbox, which start when first needed.

    `async with Grader() as grader: verdict = await grader.grade("csqa", row, "(B)")`
    """

    def __init__(self, config: GraderConfig | None = None) -> None:
        self._config = config or GraderConfig()
        self._math: MathWorkers | None = None
        self._sandbox: Sandbox | None = None
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self, benchmark: Benchmark) -> None:
        """Start what a benchmark needs, so that a missing sandbox is known before the first task.

        Raises: SandboxUnavailable.
        """
        async with self._starting:
            if benchmark in ("math", "champ") and self._math is None:
                self._math = MathWorkers(self._config.num_math_workers, timeout_s=self._config.math_timeout_s)
            if benchmark == "p3" and self._sandbox is None:
                sandbox = Sandbox(self._config.sandbox)
                await sandbox.start()
                self._sandbox = sandbox

    async def close(self) -> None:
        if self._math is not None:
            await self._math.close()
            self._math = None

    async def grade(
        self,
        benchmark: Benchmark,
        row: Mapping[str, object],
        answer: str,
        *,
        task_id: str = "",
        grader: str | None = None,
    ) -> Verdict:
        """Judge `answer` to an official row. `task_id` names the verdict; by default it is the row's own id.

        `grader` stands in for the benchmark's own: a name of `named.GRADER_NAMES`, or MODULE:NAME.
        Raises: BenchmarkError if the row does not belong to the benchmark; ConfigError if an own grader
        cannot be imported; SandboxUnavailable.
        """
        parsed = rows.parse_row(benchmark, row)
        name = named.grader_of(parsed, grader)
        if name is None:
            await self.start(benchmark)
            verdict = await self._judge(parsed, answer)
        elif is_import_path(name):
            verdict = await _own_verdict(name, row, answer)
        else:
            verdict = await self._judge_by(named.known_name(name), parsed, answer)
        shown = {"id": printable(task_id or parsed.task_id), "detail": printable(verdict.detail)}
        return verdict.model_copy(update=shown)

    async def judge(self, task: Task, answer: str) -> Verdict:
        """Judge `answer` to a task, as `grade` does."""
        return await self.grade(task.benchmark, task.row, answer, task_id=task.id, grader=task.grader)

    async def _judge_by(self, name: GraderName, row: rows.OfficialRow, answer: str) -> Verdict:
        gold = named.gold_answer(name, row)
        if name == "math":
            await self.start("math")
            return await self._grade_math(gold, answer)
        return _choice(reader(name, row.choices or None)(answer), gold)

    async def _judge(self, row: rows.OfficialRow, answer: str) -> Verdict:
        match row:
            case rows.MathRow():
                return await self._grade_math(row.final, answer)
            case rows.ChampRow():
                return await self._grade_champ(row.problem_answer, answer)
            case rows.P3Row():
                return await self._grade_p3(row, answer)
            case rows.Gsm8kRow():
                return _choice(number_answer(answer), named.gold_answer("number", row))
            case rows.CsqaRow():
                return _choice(grade_text.last_letter(answer, row.choices), row.answerKey)
            case rows.ScanRow():
                return grade_scan(row.actions, answer)
            case rows.MusiqueRow(answerable=False):  # the official script counts no answer text for it
                return _verdict(grade_text.abstains(answer), "the row has no answer")
            case rows.MusiqueRow():
                return grade_musique(row.golds, answer)
            case rows.WordsRow():
                return _choice(grade_text.last_number(answer), row.gold)
            case rows.QaRow():
                raise BenchmarkError("a row of your own is judged by a grader that has a name")
            case rows.EverydayRow():
                return _choice(", ".join(grade_text.listed_results(answer)) or None, row.gold)

    async def _grade_math(self, gold: str, reply: str) -> Verdict:
        gold, answer = read_answer(gold).text, grade_math.math_answer(reply)
        if answer is None:
            return _verdict("unparsed", "no answer found", string_match=0.0, math_verify=0.0)
        is_same_text = grade_math.is_equivalent(answer, gold)
        is_whole = is_same_text and "\\text{ " not in f"{answer}{gold}"
        try:
            relation = await self._compare(gold, answer)
        except MathTimeout as e:
            return _verdict(is_whole or "timeout", str(e), string_match=float(is_same_text))
        return _verdict(
            relation == "equal" or (is_whole and relation == "unread"),
            _answer_and_gold(answer, gold),
            string_match=float(is_same_text),
            math_verify=float(relation == "equal"),
        )

    async def _grade_champ(self, gold: str, reply: str) -> Verdict:
        answer = grade_math.math_answer(reply)
        if grade_math.yes_or_no(gold) == gold.strip().lower():
            return _choice(grade_math.yes_or_no(answer or read_answer(reply).text), gold.strip().lower())
        if answer is None:
            return _verdict("unparsed", "no answer found")
        golds = grade_math.alternatives(gold)
        if any(grade_math.plain_text(answer) == grade_math.plain_text(text) for text in (gold, *golds)):
            return _verdict(True, "same text")
        formulas = [formula for text in golds if (formula := grade_math.as_formula(text)) is not None]
        answer_formula = grade_math.as_formula(answer)
        detail = _answer_and_gold(answer, gold)
        if not formulas or answer_formula is None:
            return _verdict("ungradable", detail)
        try:
            relations = {await self._compare(formula, answer_formula) for formula in formulas}
        except MathTimeout as e:
            return _verdict("timeout", str(e))
        if "equal" in relations:
            return _verdict(True, "equal by math-verify")
        if relations == {"different"}:
            return _verdict(False, detail)
        return _verdict("ungradable", f"neither equal nor proven different: {detail}")

    async def _grade_p3(self, row: rows.P3Row, answer: str) -> Verdict:
        assert self._sandbox is not None
        outcome = await grade_puzzle(
            self._sandbox, answer, sat=row.sat, ans_type=row.ans_type, timeout_s=self._config.p3_timeout_s
        )
        is_correct = None if outcome.status == "error" else outcome.status == "correct"
        return Verdict(id="", correct=is_correct, status=outcome.status, detail=outcome.detail)

    async def _compare(self, gold: str, answer: str) -> Relation:
        assert self._math is not None
        return await self._math.compare(gold, answer)


# -- pure graders --------------------------------------------------------------------------------------------


def grade_scan(gold: str, answer: str) -> Verdict:
    """Correct is the whole action sequence, after the names are made official.

    Raises: BenchmarkError if `gold` is no action sequence.
    """
    golds, actions = grade_text.scan_actions(gold), grade_text.scan_actions(answer)
    if golds is None:
        raise BenchmarkError(f"not a scan row: gold actions {gold[:60]!r}")
    if actions is None:
        return _verdict("unparsed", "not a sequence of actions")
    return _verdict(actions == golds, f"{len(actions)} actions, gold {len(golds)}")


def grade_musique(golds: Iterable[str], answer: str) -> Verdict:
    """Correct is an exact match with one of `golds`. F1 is reported as a score."""
    if not read_answer(answer).text.strip():
        return _verdict("unparsed", "empty answer", em=0.0, f1=0.0)
    exact, f1 = grade_text.span_scores(answer, golds)
    return _verdict(exact == 1.0, f"F1 {f1:.3f}", em=exact, f1=f1)


async def _own_verdict(import_path: str, row: Mapping[str, object], answer: str) -> Verdict:
    """The verdict of a user's grader; its failure is a verdict too."""
    try:
        found = await named.own_verdict(import_path, row, answer)
    except BenchmarkError as e:
        return _verdict("error", e.message)
    if isinstance(found, Verdict):
        return found
    if found is None or isinstance(found, bool):
        return _verdict("ungradable" if found is None else found, "")
    return _verdict("error", f"{import_path} returned {found!r:.60}, expected True, False, None or a Verdict")


def _choice(found: str | None, gold: str) -> Verdict:
    if found is None:
        return _verdict("unparsed", "no answer found")
    return _verdict(found == gold, f"answer {_short(found)}, gold {gold}")


def _verdict(outcome: bool | Status, detail: str, **scores: float) -> Verdict:
    """A verdict that `Grader.grade` names. True stands for "correct", False for "wrong"."""
    status: Status = outcome if isinstance(outcome, str) else "correct" if outcome else "wrong"
    is_correct = {"correct": True, "wrong": False, "unparsed": False}.get(status)
    return Verdict(id="", correct=is_correct, status=status, detail=detail, scores=scores)


def _answer_and_gold(answer: str, gold: str) -> str:
    return f"answer {_short(answer)}, gold {_short(gold)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def printable(text: str) -> str:
    """`text` with "?" in place of lone surrogates, which no file in UTF-8 can hold."""
    return text.encode(errors="replace").decode()
