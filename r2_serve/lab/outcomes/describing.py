"""What a book holds, as a table for people."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from r2_serve.errors import counted
from r2_serve.lab.outcomes.book import Outcome, read_book
from r2_serve.lab.reports.terminal import figures_table

COLUMNS = ("model", "replies", "missing", "right", "no answer", "USD/1K", "tokens in", "out")


def print_description(path: Path, console: Console) -> None:
    """Print a line for each model that answered whole tasks. Raises: BookError, OSError."""
    book = read_book(path)
    records = [record for record in book if not record.step]
    tasks = {record.task for record in records}
    graders = sorted({record.grader or "none" for record in records})
    by_model: dict[str, list[Outcome]] = defaultdict(list)
    for record in records:
        by_model[record.model].append(record)
    replies = counted(len(records), "reply", "replies")
    console.print(Text(f"{path.name}: {counted(len(tasks), 'task')}, {replies}, grader {', '.join(graders)}"))
    console.print(
        figures_table(COLUMNS, [_cells(model, found, len(tasks)) for model, found in by_model.items()])
    )
    if num_steps := len(book) - len(records):
        steps = counted(num_steps, "reply", "replies")
        console.print(Text(f"Not in the table: {steps} to steps, plans and other prompts."))


def _cells(model: str, records: list[Outcome], num_tasks: int) -> tuple[str, ...]:
    num = len(records)

    def share(count: int) -> str:
        return f"{100 * count / num:.1f} %"

    return (
        model,
        str(num),
        str(num_tasks - num),
        share(sum(bool(record.right) for record in records)),
        share(sum(record.answer is None for record in records)),
        f"{1000 * float(sum(record.cost_usd for record in records)) / num:.3f}",
        *(f"{sum(getattr(r, name) for r in records) / num:.0f}" for name in ("tokens_in", "tokens_out")),
    )
