"""Generated task domains with exact answers, for the demo, evaluation and training of the embedded models.

`scan` is the SCAN benchmark, `words` is multi-step arithmetic in English. Serving never imports this package,
and nothing here needs more than the standard library and the router's own records. Everything is a pure
function of its seed. A task's plans are for training and tests: no router sees them.
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
    """In other styles: which style pays is for training to find out."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (self.reference_plan, *self.other_plans)


def solve_plan(plan: Plan, solve: Callable[[str], str]) -> str:
    """The plan's answer when each subtask's text, references filled in, is answered by `solve`."""
    answers: dict[int, str] = {}
    for subtask in plan.subtasks:
        answers[subtask.id] = solve(substitute(subtask.text, answers))
    if plan.answer is not None:
        return substitute(plan.answer, answers)
    return answers[len(plan.subtasks)]
