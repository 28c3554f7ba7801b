"""One official row of each benchmark: what must be in it, the query it asks, and its gold answer.

The models below check the fields that are used and keep the others; `Task.row` is the row as published,
verbatim. A query is what a user would type. It never holds the gold answer, and nothing here is shown to a
model but the query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r2_serve.errors import R2Error
from r2_serve.grading.reading import boxed
from r2_serve.types import Record

Benchmark = Literal["math", "csqa", "p3", "scan", "champ", "musique", "words"]
"""The six benchmarks, and `words`, the generated arithmetic word problems of `r2_serve.lab.domains.words`."""
BENCHMARKS: tuple[Benchmark, ...] = get_args(Benchmark)


class BenchmarkError(R2Error):
    """A data file is not what its benchmark publishes; says file, line and field."""


class Task(Record):
    """One evaluated query. `row` is the official row, which graders read and models never see."""

    id: str
    benchmark: Benchmark
    query: str
    row: dict[str, Any]


class OfficialRow(Protocol):
    """What every row model answers."""

    @property
    def task_id(self) -> str: ...
    @property
    def query(self) -> str: ...


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class MathRow(_Row):
    """MATH: `problem`, `solution` (Hendrycks et al.) and `answer` (MATH-500), or `question` and a full
    `answer`.

    The id is made from the problem's text, so that a problem has one id, and one split, in every format.
    """

    problem: str = Field(min_length=1)
    solution: str
    final: str

    @model_validator(mode="before")
    @classmethod
    def _unify(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        solution = row.get("solution", row.get("answer"))
        final = (boxed(solution) or None) if isinstance(solution, str) else None
        if final is None and "solution" in row:
            final = row.get("answer")
        if final is None:
            raise ValueError(
                "no final answer: the solution has no \\boxed{} and there is no short answer beside it"
            )
        return {
            **row,
            "problem": row.get("problem", row.get("question")),
            "solution": solution,
            "final": final,
        }

    @property
    def task_id(self) -> str:
        return f"math-{hashlib.sha256(' '.join(self.problem.split()).encode()).hexdigest()[:16]}"

    @property
    def query(self) -> str:
        return f"{self.problem}\n\nPut the final answer in \\boxed{{}}."


class _Choice(_Row):
    label: str = Field(pattern=r"^[A-Z]$")
    text: str


class _CsqaQuestion(_Row):
    stem: str = Field(min_length=1)
    choices: tuple[_Choice, ...] = Field(min_length=2)


class CsqaRow(_Row):
    """CommonsenseQA: `id`, `question.stem`, `question.choices`, `answerKey`."""

    id: str
    question: _CsqaQuestion
    answerKey: str = Field(pattern=r"^[A-Z]$")

    @model_validator(mode="before")
    @classmethod
    def _unify(cls, row: Any) -> Any:
        """The hub's columns (`question` a string, `choices` of two lists) as the official nesting."""
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("question"), str)
            or not isinstance(row.get("choices"), dict)
        ):
            return row
        labels, texts = row["choices"].get("label", ()), row["choices"].get("text", ())
        choices = [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
        return {**row, "question": {"stem": row["question"], "choices": choices}}

    @model_validator(mode="after")
    def _key_is_a_choice(self) -> CsqaRow:
        if self.answerKey not in {choice.label for choice in self.question.choices}:
            raise ValueError(
                f"answerKey {self.answerKey!r} is not among the choices (the test split is "
                f"published without keys)"
            )
        return self

    @property
    def task_id(self) -> str:
        return self.id

    @property
    def query(self) -> str:
        choices = "\n".join(f"({choice.label}) {choice.text}" for choice in self.question.choices)
        return f"{self.question.stem}\n{choices}\n\nAnswer with the letter of the best choice."


class P3Row(_Row):
    """Python Programming Puzzles: `name`, `sat`, `ans_type`, `sol_header`, `sol_docstring`, `sol_bodies`."""

    name: str = ""
    sat: str = Field(pattern=r"(?m)^def sat\(")
    ans_type: str = Field(pattern=r"^(List\[)*(bool|int|float|str)\]*$")
    sol_header: str = "def sol():"
    sol_docstring: str = ""

    @property
    def task_id(self) -> str:
        return self.name

    @property
    def query(self) -> str:
        return (
            f"Find an input that makes this Python function return True.\n\n```python\n{self.sat}\n```\n\n"
            f"Answer with a Python function that takes no further input and returns a value of type "
            f"{self.ans_type}:\n\n"
            f"```python\n{self.sol_header}\n{self.sol_docstring}\n```"
        )


class ScanRow(_Row):
    """SCAN: `commands` and `actions`, as in its text files (IN: ... OUT: ...) and on the Hugging Face hub."""

    commands: str = Field(pattern=r"^[a-z]+( [a-z]+)*$")
    actions: str

    @property
    def task_id(self) -> str:
        return f"scan-{self.commands.replace(' ', '-')}"

    @property
    def query(self) -> str:
        return self.commands


class ChampRow(_Row):
    """CHAMP: `problem_identifier`, `problem_text`, `problem_answer`."""

    problem_identifier: str
    problem_text: str = Field(min_length=1)
    problem_answer: str = Field(min_length=1)

    @property
    def task_id(self) -> str:
        return self.problem_identifier

    @property
    def query(self) -> str:
        return f"{self.problem_text}\n\nPut the final answer in \\boxed{{}}."


class _Paragraph(_Row):
    idx: int
    title: str
    paragraph_text: str


class MusiqueRow(_Row):
    """MuSiQue: `id`, `question`, `paragraphs`, `answer`, `answer_aliases`, `answerable`."""

    id: str
    question: str = Field(min_length=1)
    paragraphs: tuple[_Paragraph, ...] = ()
    answer: str
    answer_aliases: tuple[str, ...] = ()
    answerable: bool = True

    @property
    def task_id(self) -> str:
        return self.id

    @property
    def query(self) -> str:
        context = "\n\n".join(
            f"{paragraph.title}\n{paragraph.paragraph_text}" for paragraph in self.paragraphs
        )
        return f"{context}\n\nQuestion: {self.question}\nAnswer with a few words.".lstrip()


class WordsRow(_Row):
    """A generated word problem: `id`, `query`, `gold` (a whole number)."""

    id: str
    query: str = Field(min_length=1)
    gold: str = Field(pattern=r"^-?[0-9]+$")

    @property
    def task_id(self) -> str:
        return self.id


ROW_MODELS: dict[Benchmark, type[_Row]] = {
    "math": MathRow, "csqa": CsqaRow, "p3": P3Row, "scan": ScanRow, "champ": ChampRow, "musique": MusiqueRow,
    "words": WordsRow,
}  # fmt: skip


def parse_row(benchmark: Benchmark, row: Mapping[str, Any]) -> Any:
    """The row as its benchmark's model. Raises: BenchmarkError naming the field."""
    try:
        return ROW_MODELS[benchmark].model_validate(dict(row))
    except ValidationError as e:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'row'}: {error['msg']}" for error in e.errors()[:3]
        )
        raise BenchmarkError(f"not a {benchmark} row: {problems}") from e


def task_of(benchmark: Benchmark, row: Mapping[str, Any]) -> Task:
    """The task that an official row asks. Raises: BenchmarkError."""
    parsed: OfficialRow = parse_row(benchmark, row)
    if not parsed.task_id:
        raise BenchmarkError(f"not a {benchmark} row: it has no id")
    return Task(id=parsed.task_id, benchmark=benchmark, query=parsed.query, row=dict(row))
