"""Prompts of the baselines that judge or reason by prompt, and the readers of their replies.

They belong to the baselines, not to the router: no codec knows them. They hold no examples, so none can come
from evaluated rows. The ideas are the papers'; the wording is ours, because the papers' prompts hold
examples.
"""

from __future__ import annotations

import re

from r2_serve.types import Message

_EASY_OR_HARD = (
    "You judge how hard a question is for a small language model. Reply with one word: easy or hard.\n"
    "Easy: a small model will surely answer it correctly. "
    "Hard: it takes knowledge or several steps of reasoning."
)
_SCORE = (
    "You judge a proposed answer to one step of a question. "
    "Reply with one whole number from 0 (wrong) to 10 (surely right)."
)
_STEP_BY_STEP = "Think step by step, then state the final answer on the last line."
MAX_SCORE = 10


def difficulty_prompt(question: str) -> tuple[Message, ...]:
    """Source: DataShunt, as a baseline of arXiv 2502.04392: difficulty decides between two models."""
    return (
        Message(role="system", content=_EASY_OR_HARD),
        Message(role="user", content=f"<question>\n{question}\n</question>"),
    )


def parse_is_hard(reply: str) -> bool:
    """A reply that does not plainly say easy means hard: doubt costs money, not answers."""
    words = re.findall(r"[a-z]+", reply.lower())
    return not words or "hard" in words or "easy" not in words


def step_by_step_prompt(question: str) -> tuple[Message, ...]:
    """Source: chain of thought without examples (arXiv 2205.11916)."""
    return (Message(role="user", content=f"{question}\n\n{_STEP_BY_STEP}"),)


def score_prompt(question: str, step: str, answer: str) -> tuple[Message, ...]:
    """Source: Tree of Thoughts (arXiv 2305.10601), value prompt; N = 2 as in arXiv 2502.04392."""
    parts = {"question": question, "step": step, "proposed_answer": answer}
    body = "\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts.items())
    return (Message(role="system", content=_SCORE), Message(role="user", content=body))


def parse_score(reply: str) -> float:
    """The first number from 0 to 10; 0 if there is none."""
    numbers = [int(text) for text in re.findall(r"(?<![\d.])\d{1,3}(?![\d.])", reply)]
    return float(next((number for number in numbers if number <= MAX_SCORE), 0))
