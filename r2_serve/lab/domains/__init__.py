"""Generated task domains with exact answers, for the demo, evaluation and training of the embedded models.

`everyday` has problems in English whose steps need different skills, `words` is multi-step arithmetic in
English, and `scan` is the SCAN benchmark. Every task is a pure function
of its seed. A task's plans are for training and tests: no router sees them.
"""

from __future__ import annotations

from collections.abc import Callable

from r2_serve.types import Plan, Record, substitute


class Task(Record):
    """One query, its exact answer, and plans that solve it."""

    id: str
    query: str
    gold: str
    reference_plan: Plan
    other_plans: tuple[Plan, ...] = ()
    """Plans in other styles. Training finds out which style is best."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (self.reference_plan, *self.other_plans)


def solve_plan(plan: Plan, solve: Callable[[str], str]) -> str:
    """The plan's answer if `solve` answers each subtask's text, with the references filled in."""
    answers: dict[int, str] = {}
    for subtask in plan.subtasks:
        answers[subtask.id] = solve(substitute(subtask.text, answers))
    return answers[len(plan.subtasks)] if plan.answer is None else substitute(plan.answer, answers)
