"""The official rows of each benchmark: the fields that must be in them, the query they ask, the gold answer.

The models below check the fields that are used and keep the others. A query is what a user would type. It
never holds the gold answer, and a model is shown nothing but the query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r2_serve.errors import R2Error
from r2_serve.grading.reading import boxed
from r2_serve.types import Record

Benchmark = Literal["math", "csqa", "p3", "scan", "champ", "musique", "words"]
"""The six benchmarks, and `words`, the generated arithmetic word problems of `r2_serve.lab.domains.words`."""
BENCHMARKS: tuple[Benchmark, ...] = get_args(Benchmark)

_BOX_THE_ANSWER = "\n\nPut the final answer in \\boxed{}."


class BenchmarkError(R2Error):
    """A data file is not what its benchmark publishes. The message names the file, the line and the field."""


class Task(Record):
    """One evaluated query."""

    id: str
    benchmark: Benchmark
    query: str
    row: dict[str, object]
    """The official row as it was published. Graders read it; models never see it."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class MathRow(_Row):
    """MATH: `problem` and `solution` (Hendrycks et al.), also with a short `answer` (MATH-500), or `question`
    with a full `answer`.

    The id is made from the problem's text, so that a problem has one id, and one split, in every format.
    """

    problem: str = Field(min_length=1)
    solution: str
    final: str

    @model_validator(mode="before")
    @classmethod
    def _unify(cls, row: object) -> object:
        if not isinstance(row, dict):
            return row
        solution = row.get("solution", row.get("answer"))
        final = (boxed(solution) or None) if isinstance(solution, str) else None
        if final is None and "solution" in row:
            final = row.get("answer")
        if final is None:
            raise ValueError(
                "no final answer: the solution has no \\boxed{}, and the row has no short answer"
            )
        problem = row.get("problem", row.get("question"))
        return {**row, "problem": problem, "solution": solution, "final": final}

    @property
    def task_id(self) -> str:
        return f"math-{hashlib.sha256(' '.join(self.problem.split()).encode()).hexdigest()[:16]}"

    @property
    def query(self) -> str:
        return self.problem + _BOX_THE_ANSWER


class _Choice(_Row):
    label: str = Field(pattern=r"^[A-Z]$")
    text: str


class _CsqaQuestion(_Row):
    stem: str = Field(min_length=1)
    choices: tuple[_Choice, ...] = Field(min_length=2)


class CsqaRow(_Row):
    """CommonsenseQA: `id`, `question.stem`, `question.choices`, `answerKey`."""

    task_id: str = Field(alias="id")
    question: _CsqaQuestion
    answerKey: str = Field(pattern=r"^[A-Z]$")

    @model_validator(mode="before")
    @classmethod
    def _unify(cls, row: object) -> object:
        """The hub's columns (`question` a string, `choices` of two lists) as the official nesting."""
        match row:
            case {"question": str() as stem, "choices": dict() as columns, **others}:
                labels, texts = columns.get("label", ()), columns.get("text", ())
                choices = [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
                return {**others, "question": {"stem": stem, "choices": choices}}
        return row

    @model_validator(mode="after")
    def _key_is_a_choice(self) -> CsqaRow:
        if self.answerKey not in self.choices:
            raise ValueError(
                f"answerKey {self.answerKey!r} is not among the choices (the test split is published "
                f"without keys)"
            )
        return self

    @property
    def choices(self) -> dict[str, str]:
        """The text of each choice by its letter."""
        return {choice.label: choice.text for choice in self.question.choices}

    @property
    def query(self) -> str:
        choices = "\n".join(f"({label}) {text}" for label, text in self.choices.items())
        return f"{self.question.stem}\n{choices}\n\nAnswer with the letter of the best choice."


class P3Row(_Row):
    """Python Programming Puzzles: `name`, `sat`, `ans_type`, `sol_header`, `sol_docstring`, `sol_bodies`."""

    task_id: str = Field(default="", alias="name")
    sat: str = Field(pattern=r"(?m)^def sat\(")
    ans_type: str = Field(pattern=r"^(List\[)*(bool|int|float|str)\]*$")
    sol_header: str = "def sol():"
    sol_docstring: str = ""

    @property
    def query(self) -> str:
        return (
            f"Find an input that makes this Python function return True.\n\n```python\n{self.sat}\n```\n\n"
            f"Answer with a Python function that takes no further input and returns a value of type "
            f"{self.ans_type}:\n\n```python\n{self.sol_header}\n{self.sol_docstring}\n```"
        )


class ScanRow(_Row):
    """SCAN: `commands` and `actions`, as in its text files (IN: ... OUT: ...) and on the Hugging Face hub."""

    query: str = Field(pattern=r"^[a-z]+( [a-z]+)*$", alias="commands")
    actions: str

    @property
    def task_id(self) -> str:
        return f"scan-{self.query.replace(' ', '-')}"


class ChampRow(_Row):
    """CHAMP: `problem_identifier`, `problem_text`, `problem_answer`."""

    task_id: str = Field(alias="problem_identifier")
    problem_text: str = Field(min_length=1)
    problem_answer: str = Field(min_length=1)

    @property
    def query(self) -> str:
        return self.problem_text + _BOX_THE_ANSWER


class _Paragraph(_Row):
    idx: int
    title: str
    paragraph_text: str


class MusiqueRow(_Row):
    """MuSiQue: `id`, `question`, `paragraphs`, `answer`, `answer_aliases`, `answerable`."""

    task_id: str = Field(alias="id")
    question: str = Field(min_length=1)
    paragraphs: tuple[_Paragraph, ...] = ()
    answer: str
    answer_aliases: tuple[str, ...] = ()
    answerable: bool = True

    @property
    def golds(self) -> tuple[str, ...]:
        return (self.answer, *self.answer_aliases)

    @property
    def query(self) -> str:
        context = "\n\n".join(
            f"{paragraph.title}\n{paragraph.paragraph_text}" for paragraph in self.paragraphs
        )
        return f"{context}\n\nQuestion: {self.question}\nAnswer with a few words.".lstrip()


class WordsRow(_Row):
    """A generated word problem: `id`, `query`, `gold` (a whole number)."""

    task_id: str = Field(alias="id")
    query: str = Field(min_length=1)
    gold: str = Field(pattern=r"^-?[0-9]+$")


OfficialRow = MathRow | CsqaRow | P3Row | ScanRow | ChampRow | MusiqueRow | WordsRow
ROW_MODELS: dict[Benchmark, type[OfficialRow]] = {
    "math": MathRow, "csqa": CsqaRow, "p3": P3Row, "scan": ScanRow, "champ": ChampRow, "musique": MusiqueRow,
    "words": WordsRow,
}  # fmt: skip


def parse_row(benchmark: Benchmark, row: Mapping[str, object]) -> OfficialRow:
    """The row as the model of its benchmark. Raises: BenchmarkError, which names the field."""
    try:
        return ROW_MODELS[benchmark].model_validate(dict(row))
    except ValidationError as e:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'row'}: {error['msg']}" for error in e.errors()[:3]
        )
        raise BenchmarkError(f"not a {benchmark} row: {problems}") from e


def task_of(benchmark: Benchmark, row: Mapping[str, object]) -> Task:
    """The task that an official row asks. Raises: BenchmarkError."""
    parsed = parse_row(benchmark, row)
    if not parsed.task_id:
        raise BenchmarkError(f"not a {benchmark} row: it has no id")
    return Task(id=parsed.task_id, benchmark=benchmark, query=parsed.query, row=dict(row))
