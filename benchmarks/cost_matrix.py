"""What routed queries cost beside the direct call: sizes of queries x steps of plans x prices of steps.

    python -m benchmarks.cost_matrix
    python -m benchmarks.cost_matrix --write docs/cost_matrix.md

Each cell asks a real router with `plan: auto` over a scripted provider, and then the default model directly.
The provider counts tokens, keeps prompts in a cache as OpenAI does (from 1,024 tokens, in steps of 128, for
prompts of calls that have ended) and bills each call itself; the cell's figures are its bills. The scripted
decomposer always plans the cell's number of steps, the allocator gives all of them to the cell's model, inner
steps answer with 80 to 240 tokens, and the last step writes the answer that the direct call writes too.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    HostedEngineConfig,
    ModelConfig,
    RouterConfig,
    RoutingConfig,
    VirtualModelConfig,
)
from r2_serve.prompts import get_codec
from r2_serve.prompts.conversation import asked
from r2_serve.router.router import in_process
from r2_serve.types import (
    Answer,
    Completion,
    Delta,
    EngineCall,
    FinishReason,
    Plan,
    Query,
    Sampling,
    Subtask,
    Usage,
    references,
)

TIERS = {
    "cheap": ("0.15", "0.075", "0.60"),
    "mid": ("0.40", "0.10", "1.60"),
    "expensive": ("2.50", "1.25", "10.00"),
}
"""USD per 1M tokens: prompt, cached prompt, reply. They are those of GPT-4o mini, GPT-4.1 mini and GPT-4o."""
STEPS = range(1, 9)
DEFAULT = "expensive"
LEAST_CACHED, CACHE_UNIT = 1_024, 128
STATED = 2_000
"""Tokens of the long answer, which the card of the default model states."""
_TOKEN = re.compile(r"\d{1,3}|[A-Za-z]{1,7}|\s{2,}|[^\sA-Za-z\d]")

_SENTENCES = (
    "The supplier shall deliver the goods to the warehouse named in schedule two within thirty days.",
    "Either party may end this agreement with ninety days of written notice to the other.",
    "Revenue of the northern region grew by 4.2 percent, while costs of transport rose by 11 percent.",
    "The committee noted that three of the five pilots had missed their targets for the second quarter.",
    "Payments that are late by more than fourteen days bear interest at two percent above the base rate.",
    "The engineer reported a pressure of 310 kilopascal at the second valve before the line was closed.",
    "Liability for indirect damage is excluded unless it was caused by gross negligence.",
    "A sample of 250 households was asked about heating, insulation and the age of their boilers.",
)
_STEPS = (
    "List every obligation of the supplier with its deadline and the section that states it.",
    "List all figures about costs and revenue with their units and the period that they refer to.",
    "Check whether the deadlines in #1 contradict each other, and name each contradiction.",
    "Compute the change of margin that follows from #2 and show the calculation in one line.",
    "Find what the text says about liability, and say which of the obligations in #1 it limits.",
    "Name the three largest risks that follow from #3 and #5, each in one sentence.",
    "Propose for each risk in #6 one change of the agreement that would remove it.",
)
_LAST = "Write the final answer for the user from {refs}: clear, complete and in the order of the question."


@dataclass(frozen=True)
class Workload:
    """A query and the length of its answer."""

    name: str
    text: str
    answer_tokens: int
    stated: int | None = None
    """`expected_tokens` of the default model's card; None leaves it out."""


@dataclass(frozen=True)
class Outcome:
    """One cell of the matrix."""

    workload: str
    num_steps: int
    tier: str
    direct_usd: Decimal
    routed_usd: Decimal
    booked_usd: Decimal
    """What the router's own ledger says of the routed query."""
    num_calls: int
    is_planned: bool
    reason: str

    @property
    def ratio(self) -> Decimal:
        """The routed bill as a share of the direct one."""
        return self.routed_usd / self.direct_usd


@lru_cache(maxsize=4_096)
def num_tokens(text: str) -> int:
    """Tokens of `text`: words of up to seven letters, groups of three digits, marks and wide gaps."""
    return len(_TOKEN.findall(text))


def text_of(tokens: int, seed: int = 0) -> str:
    """English sentences of exactly `tokens` tokens."""
    draw, sentences, total = random.Random(seed), [], 0
    while total < tokens:
        sentences.append(draw.choice(_SENTENCES))
        total += num_tokens(sentences[-1])
    found = list(_TOKEN.finditer(" ".join(sentences)))
    return " ".join(sentences)[: found[tokens - 1].end()]


def document(chars: int) -> str:
    """A document of `chars` characters with a question at its end."""
    question = "\n\nWhich obligations of the supplier are affected by the rise of costs, and how?"
    room = chars - len(question)
    return text_of(chars // 4, seed=chars)[:room].ljust(room, ".") + question


def workloads() -> tuple[Workload, ...]:
    return (
        Workload("hi", "hi", 10),
        Workload("1k question", text_of(1_000), 300),
        Workload("1k question, 2,000 tokens expected", text_of(1_000), STATED, STATED),
        Workload("50k document", document(50_000), 300),
        Workload("50k document, 2,000 tokens expected", document(50_000), STATED, STATED),
        Workload("150k document", document(150_000), 300),
        Workload("150k document, 2,000 tokens expected", document(150_000), STATED, STATED),
    )


def plan_of(num_steps: int) -> Plan:
    """A plan of `num_steps` steps, whose last one uses every answer that no other step uses."""
    texts = list(_STEPS[: num_steps - 1])
    unused = set(range(1, num_steps)) - set().union(*map(references, texts))
    refs = " and ".join(f"#{i}" for i in sorted(unused)) or "the text"
    texts.append(_LAST.format(refs=refs))
    steps = (Subtask(id=i, text=t, depends_on=tuple(sorted(references(t)))) for i, t in enumerate(texts, 1))
    return Plan(subtasks=tuple(steps))


@dataclass
class Provider:
    """The scripted provider of all models: it answers, caches prompts and writes the bill."""

    plan: Plan
    tier: str
    answer_tokens: int
    bills: list[Decimal] = field(default_factory=list)
    cached: dict[str, list[str]] = field(default_factory=dict)
    """Prompts in the cache, by model."""

    async def answer(self, model: str, call: EngineCall) -> Completion:
        prompt = "\n".join(f"{message.role}: {message.text}" for message in call.messages)
        warm = self._warm_tokens(model, prompt)
        await asyncio.sleep(0.001)  # calls at the same time do not find each other in the cache
        self.cached.setdefault(model, []).append(prompt)
        text = self._text(call.messages[-1].text)
        limit, num = call.sampling.max_tokens, call.sampling.num_choices
        reason: FinishReason = "stop"
        if limit is not None and num_tokens(text) > limit:
            text, reason = text[: list(_TOKEN.finditer(text))[limit - 1].end()], "length"
        schema = call.sampling.format_sent
        prompt_tokens = num_tokens(prompt) + (num_tokens(json.dumps(schema)) if schema else 0)
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=num * num_tokens(text),
            cached_read_tokens=warm,
        )
        self.bills.append(_price(model, usage))
        return Completion(text=text, others=(text,) * (num - 1), usage=usage, finish_reason=reason)

    def _warm_tokens(self, model: str, prompt: str) -> int:
        shared = max((_num_equal(prompt, other) for other in self.cached.get(model, ())), default=0)
        longest = num_tokens(prompt[:shared])
        return longest // CACHE_UNIT * CACHE_UNIT if longest >= LEAST_CACHED else 0

    def _text(self, prompt: str) -> str:
        codec = get_codec("instruct")
        if "Do not answer yet. Split" in prompt:
            return codec.format_plan(self.plan, "")
        if "Give each subtask of the plan" in prompt:
            return json.dumps({"models": [self.tier] * len(self.plan.subtasks)})
        if "Reply with the result of this step only" in prompt:
            return text_of(80 + 40 * (num_tokens(prompt) % 5))
        return text_of(self.answer_tokens)


def _num_equal(one: str, other: str) -> int:
    """Characters with which both texts begin."""
    return bisect_left(
        range(min(len(one), len(other))), True, key=lambda end: one[: end + 1] != other[: end + 1]
    )


@dataclass(frozen=True)
class ProviderEngine:
    """One model of the provider."""

    provider: Provider
    model: str

    async def generate(self, call: EngineCall) -> Completion:
        return await self.provider.answer(self.model, call)

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        done = await self.generate(call)
        yield Delta(text=done.text)
        yield Delta(finish_reason=done.finish_reason, usage=done.usage)


async def run_cell(
    workload: Workload,
    num_steps: int,
    tier: str,
    router_tier: str = "cheap",
    direct_usd: Decimal | None = None,
) -> Outcome:
    """Asks the virtual model, and the default model directly unless `direct_usd` is known already.

    `router_tier` plans and allocates.
    """
    routed, routed_usd = await _ask("r2", workload, num_steps, tier, router_tier)
    if direct_usd is None:
        _, direct_usd = await _ask(DEFAULT, workload, num_steps, tier, router_tier)
    decision = routed.trace.decision
    assert decision is not None
    return Outcome(
        workload.name,
        num_steps,
        tier,
        direct_usd,
        routed_usd,
        booked_usd=routed.cost_usd,
        num_calls=len(routed.trace.calls),
        is_planned=decision.action == "planned",
        reason=decision.reason,
    )


async def _ask(
    model: str, workload: Workload, num_steps: int, tier: str, router_tier: str
) -> tuple[Answer, Decimal]:
    provider = Provider(plan_of(num_steps), tier, workload.answer_tokens)
    config, routing = configs(workload, router_tier)
    router = in_process(config, routing, lambda card: ProviderEngine(provider, card.name))
    query = Query(request_id="cell", model=model, messages=asked(workload.text), sampling=Sampling())
    return await router.answer(query), sum(provider.bills, Decimal(0))


def configs(workload: Workload, router_tier: str) -> tuple[RouterConfig, RoutingConfig]:
    """Three hosted models at the prices of `TIERS`, and `r2` over them with `plan: auto`."""
    virtual = VirtualModelConfig(
        pool=tuple(TIERS),
        decomposer=DecomposerConfig(model=router_tier),
        allocator=AllocatorConfig(model=router_tier),
        default_model=DEFAULT,
    )
    models = tuple(_card(name, workload.stated if name == DEFAULT else None) for name in TIERS)
    return RouterConfig(models=models), RoutingConfig(virtual_models={"r2": virtual})


def _card(name: str, stated: int | None) -> ModelConfig:
    price, cached, reply = map(Decimal, TIERS[name])
    fields: dict[str, int] = {"context_tokens": 128_000}
    if stated is not None:
        fields["expected_tokens"] = stated
    return ModelConfig(
        name=name,
        engine=HostedEngineConfig(kind="openai", model=name, base_url="http://127.0.0.1:9/v1"),
        usd_per_mtok_in=price,
        usd_per_mtok_out=reply,
        usd_per_mtok_cached_read=cached,
        **fields,
    )


def _price(model: str, usage: Usage) -> Decimal:
    price, cached, reply = map(Decimal, TIERS[model])
    cold = usage.prompt_tokens - usage.cached_read_tokens
    total = cold * price + usage.cached_read_tokens * cached + usage.completion_tokens * reply
    return total / 1_000_000


async def run_matrix(router_tier: str = "cheap") -> list[Outcome]:
    """Every cell, in the order of the table."""
    outcomes = []
    for workload in workloads():
        _, direct_usd = await _ask(DEFAULT, workload, 1, DEFAULT, router_tier)
        for tier, num_steps in product(TIERS, STEPS):
            outcomes.append(await run_cell(workload, num_steps, tier, router_tier, direct_usd))
    return outcomes


def markdown(outcomes: Iterable[Outcome]) -> str:
    """The matrix as a table; routed cells are bold."""
    lines = [
        "| query | steps on | " + " | ".join(map(str, STEPS)) + " |",
        "|---|---|" + "---|" * len(STEPS),
    ]
    rows: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        share = f"{100 * outcome.ratio:.0f}"
        rows.setdefault((outcome.workload, outcome.tier), []).append(
            f"**{share}**" if outcome.is_planned else share
        )
    lines += [f"| {query} | {tier} | {' | '.join(cells)} |" for (query, tier), cells in rows.items()]
    return "\n".join(lines)


BEGIN, END = "<!-- matrix: python -m benchmarks.cost_matrix --write -->", "<!-- end of the matrix -->"


def main(
    write: Annotated[Path | None, typer.Option(help="Page whose table to replace.")] = None,
    router: Annotated[str, typer.Option(help="The models' tier that plans and allocates.")] = "cheap",
) -> None:
    """Prints the cost of each cell in percent of the direct call."""
    table = markdown(asyncio.run(run_matrix(router)))
    typer.echo(table)
    if write is not None:
        before, _, rest = write.read_text().partition(BEGIN)
        write.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    typer.run(main)
