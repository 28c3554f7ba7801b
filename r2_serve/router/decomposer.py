"""The first stage: sample plans of a query, reject the invalid ones, keep the one with the best score.

Samples come one after the other until one is good enough, as most first ones are; or all at once.

Source of the score: R2-Reasoner (arXiv 2506.05901), Eq. 1: conciseness, practicality, coherence, lower is
better. There, practicality is the tokens a baseline model uses to solve the subtasks and coherence is judged
by a model; at test time both would cost calls, so ours are estimates from the text (`docs/architecture.md`).
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from r2_serve.calls.caller import Caller, CallSpec
from r2_serve.calls.ledger import Ledger
from r2_serve.calls.pool import Pool
from r2_serve.config import DecomposerConfig, LimitsConfig, ModelConfig, ScoreWeights
from r2_serve.errors import BudgetExceeded, CodecError, EngineError, EngineRefused, counted
from r2_serve.prompts.conversation import conversation_text
from r2_serve.types import (
    BYTES_PER_TOKEN,
    Allocation,
    Json,
    Message,
    Plan,
    Record,
    Sampling,
    Subtask,
    references,
)

Messages = tuple[Message, ...]
_WORD = re.compile(r"[A-Za-z]{3,}")


class Decomposition(Record):
    """The plan that was kept, and how it was found."""

    plan: Plan
    allocation: Allocation | None = None
    """The models of the steps, if the decomposer gives them too and a sample was kept."""
    num_samples: int
    num_rejected: int
    fallback: str | None = None
    """Why the plan is the one-step plan; None if a sample was kept."""
    takes_choices: bool | None = None
    """Whether the decomposer's provider gave several plans to one prompt; None if it was not asked to."""


class Decomposes(Protocol):
    """What the pipeline needs of a decomposer: `Decomposer`, here or in another process."""

    async def decompose(
        self, messages: Messages, config: DecomposerConfig, limits: LimitsConfig, ledger: Ledger
    ) -> Decomposition:
        """The plan. When this returns or raises, every call it made is in `ledger`."""
        ...


@dataclass(frozen=True)
class Decomposer:
    """Asks the decomposer model. It keeps no state: each query says how to decompose."""

    pool: Pool

    async def decompose(
        self, messages: Messages, config: DecomposerConfig, limits: LimitsConfig, ledger: Ledger
    ) -> Decomposition:
        """A valid plan within `limits`: the best sample, or the one-step plan.

        Raises: BudgetExceeded if the budget allows no sample at all; PoisonousRequest.
        """
        asker = await self._sampled(messages, config, limits, ledger)
        samples = asker.samples
        plans = [sample for sample in samples if isinstance(sample, Plan)]
        kept = best_plan(plans, config.weights) if plans else Plan.single(conversation_text(messages))
        at = next((i for i, sample in enumerate(samples) if sample is kept), None)
        return Decomposition(
            plan=kept,
            allocation=None if at is None else asker.allocations.get(at),
            num_samples=len(samples),
            num_rejected=len(samples) - len(plans),
            fallback=None if plans else _why_none(samples),
            takes_choices=self.pool[config.model].choices.are_taken,
        )

    async def _sampled(
        self, messages: Messages, config: DecomposerConfig, limits: LimitsConfig, ledger: Ledger
    ) -> _Asker:
        """What the decomposer replied."""
        asker = _Asker(Caller(self.pool, ledger, limits), messages, config, limits)
        try:
            async with asyncio.timeout(config.timeout_s):
                await (asker.all_at_once() if config.good_enough is None else asker.until_good())
        except TimeoutError:
            pass  # those not back count as rejected, with the slug they began with
        except ExceptionGroup as e:  # a poisonous request: no other sample may kill a replica too
            raise e.exceptions[0] from e.exceptions[0].__cause__
        if asker.too_dear and len(asker.too_dear) == len(asker.samples):
            raise asker.too_dear[0]
        return asker


@dataclass(frozen=True)
class _Asker:
    """Asks for the plans of one query."""

    caller: Caller
    messages: Messages
    config: DecomposerConfig
    limits: LimitsConfig
    samples: list[Plan | str] = field(default_factory=list)
    """The plan of each sample that was begun, or the reason why it has none."""
    allocations: dict[int, Allocation] = field(default_factory=dict)
    """The models of the samples that have a plan, by place, if the decomposer gives them."""
    too_dear: list[BudgetExceeded] = field(default_factory=list)

    async def until_good(self) -> None:
        """Samples until a plan is good enough. A decomposer that fails is not asked again."""
        assert self.config.good_enough is not None
        for i in range(self.config.num_samples):
            self.samples.append("timeout")
            may_go_on = await self._sample(i, temperature=self.config.temperature if i else 0.0)
            made = self.samples[i]
            is_good = isinstance(made, Plan) and faults_per_step(made) <= self.config.good_enough
            if is_good or not may_go_on:
                return

    async def all_at_once(self) -> None:
        self.samples.extend(["timeout"] * self.config.num_samples)
        temperature = self.config.temperature if self.config.num_samples > 1 else 0.0
        texts = await self._by_one_prompt(temperature)
        async with asyncio.TaskGroup() as group:
            for i in range(self.config.num_samples):
                group.create_task(self._sample(i, temperature, texts[i] if i < len(texts) else None))

    async def _sample(self, i: int, temperature: float, text: str | None = None) -> bool:
        """Enters sample `i`, from `text` if it is there already; whether the decomposer still answers."""
        try:
            model, reply = await self._one(temperature) if text is None else (self.config.model, text)
            self._enter(i, model, reply)
        except CodecError as e:
            self.samples[i] = e.reason
        except EngineError as e:
            self.samples[i] = f"decomposer_failed ({type(e).__name__}: {e.message[:120]})"
            return False
        except BudgetExceeded as e:
            self.samples[i] = "budget"
            self.too_dear.append(e)
            return False
        return True

    async def _one(self, temperature: float) -> tuple[str, str]:
        """The model that replied, and its reply. Raises: EngineError, BudgetExceeded."""
        ask = self.caller.call_uncut if self.config.retries_cut else self.caller.call
        result = await ask(self.config.model, self._spec(temperature))
        return result.model, result.completion.text

    async def _by_one_prompt(self, temperature: float) -> tuple[str, ...]:
        """The texts of all samples by one prompt, which is billed once; those that did not come are missing.

        Whether the provider takes such a call is remembered: if it does not, samples are asked one by one.
        """
        config, member = self.config, self.caller.pool[self.config.model]
        if config.num_samples == 1 or not member.may_take_choices:
            return ()
        try:
            spec = self._spec(temperature, {"n": config.num_samples})
            result = await self.caller.call(config.model, spec)
        except (EngineError, BudgetExceeded) as e:
            member.choices.are_taken = False if isinstance(e, EngineRefused) else member.choices.are_taken
            return ()
        texts = (result.completion.text, *result.completion.others)
        if result.model == config.model:
            member.choices.are_taken = len(texts) > 1
        return texts

    def _enter(self, i: int, model: str, text: str) -> None:
        """Enters what `model` wrote as sample `i`. Raises: CodecError if it is no valid plan."""
        codec, query = self.caller.pool[model].codec, conversation_text(self.messages)
        if self.config.allocates:
            plan, allocation = codec.parse_allocated(text, query, self._cards())
            self.allocations[i] = allocation
        else:
            plan = codec.parse_plan(text, query)
        check_plan(plan, self.limits)
        self.samples[i] = plan

    def _cards(self) -> list[ModelConfig]:
        """The models among which the decomposer chooses, if it does."""
        return [self.caller.pool[name].config for name in self.config.pool]

    def _spec(self, temperature: float, forwarded: Json | None = None) -> CallSpec:
        config, max_subtasks = self.config, self.limits.max_subtasks
        codec, cards = self.caller.pool[config.model].codec, self._cards()
        return CallSpec(
            render=lambda c: c.with_prompts(config.prompts).render_decompose(
                self.messages, max_subtasks, cards
            ),
            stage="decompose",
            sampling=Sampling(
                max_tokens=config.max_tokens,
                temperature=temperature,
                json_schema=codec.plan_schema(max_subtasks, cards),
                forwarded=forwarded or {},
            ),
            adapter=config.adapter,
        )


def check_plan(plan: Plan, limits: LimitsConfig) -> None:
    """Raises: CodecError if a well-formed plan breaks a limit."""
    if len(plan.subtasks) > limits.max_subtasks:
        raise CodecError(
            f"the plan has {counted(len(plan.subtasks), 'subtask')}; the limit is {limits.max_subtasks}",
            "too_many_subtasks",
        )
    longest = max(len(subtask.text) for subtask in plan.subtasks)
    if longest > limits.max_subtask_chars:
        raise CodecError(
            f"a subtask has {longest} characters; the limit is {limits.max_subtask_chars}", "subtask_too_long"
        )
    if len(plan.answer or "") > limits.max_subtask_chars:
        got = f"{len(plan.answer or '')} characters; the limit is {limits.max_subtask_chars}"
        raise CodecError(f"the answer's template has {got}", "answer_too_long")
    if plan.depth > limits.max_depth:
        raise CodecError(
            f"the plan is {plan.depth} subtasks deep; the limit is {limits.max_depth}", "too_deep"
        )


def best_plan(plans: Sequence[Plan], weights: ScoreWeights) -> Plan:
    """The plan with the lowest score; the first of equals."""
    scores = score_plans(plans, weights)
    return plans[scores.index(min(scores))]


def score_plans(plans: Sequence[Plan], weights: ScoreWeights) -> list[float]:
    """Scores with all terms read off the texts; lower is better."""
    return weighted_scores(
        plans,
        weights,
        practicality=[_estimated_tokens(p) for p in plans],
        incoherence=[incoherence(p) for p in plans],
    )


def weighted_scores(
    plans: Sequence[Plan],
    weights: ScoreWeights,
    *,
    practicality: Sequence[float],
    incoherence: Sequence[float],
) -> list[float]:
    """Weighted sums of conciseness (number of subtasks) and the two given terms, each divided by its mean."""
    terms = (
        (weights.conciseness, [float(len(plan.subtasks)) for plan in plans]),
        (weights.practicality, practicality),
        (weights.coherence, incoherence),
    )
    scores = [0.0] * len(plans)
    for weight, values in terms:
        mean = sum(values) / len(values)
        for i, value in enumerate(values):
            scores[i] += weight * value / mean if mean else 0.0
    return scores


def _estimated_tokens(plan: Plan) -> float:
    """Prompt tokens of all subtasks: each reads its own text and those it depends on."""
    length = {subtask.id: len(subtask.text.encode()) / BYTES_PER_TOKEN for subtask in plan.subtasks}
    return sum(length[s.id] + sum(length[d] for d in s.depends_on) for s in plan.subtasks)


def incoherence(plan: Plan) -> float:
    """Sum over dependent pairs of 1 - coherence, plus 1 for each subtask whose answer nothing uses."""
    by_id = {subtask.id: subtask for subtask in plan.subtasks}
    pairs = sum(1 - _coherence(by_id[d], s) for s in plan.subtasks for d in s.depends_on)
    return pairs + num_unused(plan)


def faults_per_step(plan: Plan) -> float:
    """The incoherence of a plan by its number of steps, so that it says something without other plans."""
    return incoherence(plan) / len(plan.subtasks)


def num_unused(plan: Plan) -> int:
    """Subtasks whose answer neither a later subtask nor the plan's answer uses."""
    used = {d for s in plan.subtasks for d in s.depends_on} | references(plan.answer or "")
    return sum(s.id not in used and s.id != plan.final_id for s in plan.subtasks)


def _coherence(earlier: Subtask, later: Subtask) -> float:
    """1 if the later text names the earlier answer, else the share of common words, in [0, 1]."""
    if earlier.id in references(later.text):
        return 1.0
    a, b = (set(_WORD.findall(s.text.lower())) for s in (earlier, later))
    return len(a & b) / len(a | b) if a | b else 0.0


def _why_none(samples: Sequence[Plan | str]) -> str:
    counts = Counter(sample for sample in samples if isinstance(sample, str))
    reasons = ", ".join(f"{reason} x{n}" if n > 1 else reason for reason, n in counts.items())
    return f"no valid plan: {reasons}"
