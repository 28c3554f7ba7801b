"""Rows of benchmarks as their authors publish them."""

from __future__ import annotations

CHOICES = {"A": "bank", "B": "library", "C": "department store", "D": "mall", "E": "new york"}
CSQA = {
    "id": "c1",
    "answerKey": "B",
    "question": {
        "stem": "Where?",
        "choices": [{"label": label, "text": text} for label, text in CHOICES.items()],
    },
}


def math_row(gold: str) -> dict[str, str]:
    return {"problem": "p", "solution": gold if "boxed" in gold else f"So \\boxed{{{gold}}}."}


def champ_row(gold: str) -> dict[str, str]:
    return {"problem_identifier": "P_1", "problem_text": "?", "problem_answer": gold}
