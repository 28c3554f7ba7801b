"""A query while it is answered, as text for terminals: the plan, and the state of each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from r2_serve import client
from r2_serve.lab.reports.terminal import dag_view, figures_table, short, usd
from r2_serve.types import Event, Plan, Query

_MARKS = {"waits": ("·", "dim"), "works": ("▶", "yellow"), "done": ("✓", "green"), "failed": ("✗", "red")}
MOST_CHARS = 32
"""How much of a step's text and of its answer a row shows."""


@dataclass
class _Step:
    text: str
    state: str = "waits"
    model: str = ""
    answer: str = ""
    cost_usd: Decimal = Decimal(0)
    num_calls: int = 0
    notes: list[str] = field(default_factory=list)


class WatchedQuery:
    """What is known of a query so far. `take` gives it each event; `view` shows it."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._steps: dict[int, _Step] = {}
        self._now = "the query is read"
        self._router_usd, self._at_s = Decimal(0), 0.0

    def take(self, event: Event) -> None:
        self._at_s = event.at_s
        if event.plan is not None and event.plan != self._plan:
            self._plan = event.plan
            self._steps = {step.id: _Step(step.text) for step in event.plan.subtasks}
        take = getattr(self, f"_{event.kind}", None)
        if take is not None:
            take(event)

    def view(self) -> RenderableType:
        if self._plan is None:
            return self._line()
        table = figures_table(("", "subtask", "model", "answer", "calls", "cost"), (), num_texts=4)
        for column in table.columns[1:4]:
            column.no_wrap = False  # or figures would be cut where the terminal is narrow
        for number, step in self._steps.items():
            self._add(table, number, step)
        return Group(dag_view(self._plan), table, self._line())

    def _line(self) -> Text:
        spent = self._router_usd + sum((step.cost_usd for step in self._steps.values()), Decimal(0))
        return Text(f"{self._at_s:.1f} s, {usd(spent)}: {self._now}", style="dim")

    def _add(self, table: Table, number: int, step: _Step) -> None:
        mark, style = _MARKS[step.state]
        texts = (Text(f"#{number} ") + short(step.text, MOST_CHARS), " ".join([step.model, *step.notes]))
        figures = (str(step.num_calls), usd(step.cost_usd))
        table.add_row(Text(mark, style=style), *texts, short(step.answer, MOST_CHARS), *figures)

    def _decided(self, event: Event) -> None:
        self._now = "the router plans" if event.action == "planned" else f"sent whole ({event.reason})"

    def _planned(self, event: Event) -> None:
        self._now = "the allocator chooses models"

    def _allocated(self, event: Event) -> None:
        self._now = "the steps run"
        for step, model in zip(self._steps.values(), event.models or (), strict=False):
            step.model = model

    def _step_started(self, event: Event) -> None:
        if step := self._steps.get(event.subtask or 0):
            step.state = "works"

    def _called(self, event: Event) -> None:
        if event.called is None:
            return
        step = self._steps.get(event.subtask or 0)
        if step is None:
            self._router_usd += event.called.cost_usd
            return
        step.num_calls += 1
        step.cost_usd += event.called.cost_usd
        if event.called.outcome != "ok":
            step.notes.append(f"({event.called.model}: {event.called.error})")

    def _asked(self, event: Event) -> None:
        step = self._steps.get(event.subtask or 0)
        if step is not None and event.asked is not None:
            step.notes.append(f"({event.asked.model} {event.asked.outcome})")

    def _step_done(self, event: Event) -> None:
        if step := self._steps.get(event.subtask or 0):
            step.state, step.answer = "done", event.answer or ""
            step.model = (event.models or (step.model,))[0]

    def _answered(self, event: Event) -> None:
        self._now = "answered"

    def _failed(self, event: Event) -> None:
        self.end(f"failed: {event.error}")

    def end(self, why: str = "no answer came") -> None:
        """Shows that the query has no answer; the reason of a failed query stays."""
        if not self._now.startswith("failed"):
            self._now = why
        for step in self._steps.values():
            step.state = "failed" if step.state == "works" else step.state


async def watched(http: httpx.AsyncClient, query: Query) -> client.ChatReply:
    """Asks `query` and draws it in the terminal while it is answered; the whole reply.

    Raises: RequestFailed.
    """
    seen, texts, extras = WatchedQuery(), list[str](), client.ReplyExtras()
    usage = None
    body = client.chat_body(query, is_streamed=True, has_events=True)
    with Live(seen.view(), console=Console(markup=False), refresh_per_second=8) as live:
        try:
            async for piece in client.ask_streamed(http, body):
                texts.append(piece.text)
                usage = piece.usage or usage
                if piece.r2 is not None and piece.r2.event is not None:
                    seen.take(piece.r2.event)
                    live.update(seen.view())
                elif piece.r2 is not None:
                    extras = piece.r2
        except client.RequestFailed:
            seen.end()
            live.update(seen.view())
            raise
    live.console.print()
    return client.ChatReply("".join(texts), usage, extras)
