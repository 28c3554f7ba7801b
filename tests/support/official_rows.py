"""Rows of benchmarks as their authors publish them."""

from __future__ import annotations

CHOICES = {"A": "bank", "B": "library", "C": "department store", "D": "mall", "E": "new york"}
CSQA = {
    "id": "c1",
    "answerKey": "B",
    "question": {
        "stem": "Where are books lent?",
        "question_concept": "book",
        "choices": [{"label": label, "text": text} for label, text in CHOICES.items()],
    },
}
MATH = {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."}
P3 = {
    "name": "Study_1:0",
    "sat": "def sat(x: int):\n    return x == 1",
    "ans_type": "int",
    "sol_header": "def sol():",
    "sol_docstring": '    """One."""',
    "sol_bodies": ["    return 1"],
    "module": "study.py",
    "notes": "",
    "weight": 1.0,
}
CHAMP = {"ids": 0, "problem_identifier": "P_1", "problem_text": "How many?", "problem_answer": "144"}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who wrote it?",
    "paragraphs": [{"idx": 0, "title": "It", "paragraph_text": "Ann wrote it.", "is_supporting": True}],
    "question_decomposition": [],
    "answer": "Ann",
    "answer_aliases": ["Anne"],
    "answerable": True,
}
SCAN_LINE = "IN: jump twice OUT: I_JUMP I_JUMP"


def math_row(gold: str) -> dict[str, str]:
    return {**MATH, "solution": gold if "boxed" in gold else f"So \\boxed{{{gold}}}."}


def champ_row(gold: str) -> dict[str, object]:
    return {**CHAMP, "problem_answer": gold}
