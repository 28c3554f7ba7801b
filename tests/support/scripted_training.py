"""A training pool of three models for the sums of `tests.support.scripted_evaluation`.

`tiny` recalls numbers but cannot add; `small` adds numbers below 100; `large` adds all numbers. Their prices
are 1, 2 and 10 USD per 1M tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    ModelConfig,
    RouterConfig,
    RoutingConfig,
    ScriptedEngineConfig,
    VirtualModelConfig,
)
from r2_serve.engines.scripted import Reply, ScriptedEngine
from r2_serve.types import Completion, Engine, Message, Sampling, Usage
from r2_train.rollouts.call_cache import CallCache, cached_engines
from r2_train.rollouts.served_pool import MadeOnce, ServedPool
from tests.support.in_process import plan_json
from tests.support.scripted_evaluation import numbers, question

PRICES = {"tiny": 1, "small": 2, "large": 10, "decomposer": 1, "allocator": 1}
GROUPS = {"tiny": "slm", "small": "mlm", "large": "llm"}
LIMITS = {"tiny": 0, "small": 100, "large": 10**9}


def worker(limit: int) -> Callable[[Sequence[Message], Sampling], Reply]:
    """Adds numbers below `limit`, or else answers 0 with a token probability of 0.5."""

    def reply(messages: Sequence[Message], sampling: Sampling) -> Reply:
        prompt = messages[-1].content
        step = prompt.rpartition("<step>\n")[2]
        if step.startswith("recall"):
            return completion_of(str(numbers(step)[0]), sampling, is_sure=True)
        inputs = [int(answer) for answer in re.findall(r"^=> (\d+)$", prompt, re.MULTILINE)]
        is_able = max(inputs) < limit
        return completion_of(str(sum(inputs)) if is_able else "0", sampling, is_sure=is_able)

    return reply


def completion_of(text: str, sampling: Sampling, *, is_sure: bool) -> Completion:
    logprobs = (-0.01 if is_sure else -0.7,) if sampling.logprobs else None
    return Completion(
        text=text, usage=Usage(prompt_tokens=10, completion_tokens=2), finish_reason="stop", logprobs=logprobs
    )


def plans(*options: Sequence[str]) -> Callable[[Sequence[Message], Sampling], Reply]:
    """Gives the i-th of these plans to the i-th sample, or the text if it is one."""

    def reply(messages: Sequence[Message], sampling: Sampling) -> Reply:
        steps = options[(sampling.seed or 0) % len(options)]
        return (
            steps
            if isinstance(steps, str)
            else plan_json(*(step.format(*numbers(question(messages))) for step in steps))
        )

    return reply


ADD = ("recall {0}", "recall {1}", "add #1 and #2")


def engines(**changed: Any) -> dict[str, Engine]:
    usual = {
        **{name: worker(limit) for name, limit in LIMITS.items()},
        "decomposer": plans(ADD),
        "allocator": ['{"models": []}'],
    }
    return {
        name: reply if hasattr(reply, "generate") else ScriptedEngine(reply)
        for name, reply in {**usual, **changed}.items()
    }


def pool_over(cache: CallCache, of: Mapping[str, Engine]) -> ServedPool:
    models = tuple(
        ModelConfig(
            name=name, group=GROUPS.get(name, "slm"),
            usd_per_mtok_in=Decimal(price), usd_per_mtok_out=Decimal(price),
            engine=ScriptedEngineConfig(kind="scripted"), timeout_s=5.0,
        )
        for name, price in PRICES.items()
    )  # fmt: skip
    virtual = VirtualModelConfig(
        pool=("tiny", "small", "large"),
        decomposer=DecomposerConfig(model="decomposer"),
        allocator=AllocatorConfig(model="allocator"),
    )
    routing = RoutingConfig.model_validate({"virtual_models": {"r2": virtual}, "limits": {"max_attempts": 1}})
    return ServedPool(
        RouterConfig(models=models),
        routing,
        "r2",
        cached_engines(lambda model: of[model.name], {}, cache),
        cache,
    )


def made_once(pool: ServedPool) -> ServedPool:
    """The pool with engines that are made once and closed together, as `open_pool` makes it."""
    return replace(pool, engine_for=MadeOnce(pool.engine_for))


def cache_in(tmp_path: Path, **fields: Any) -> CallCache:
    return CallCache(tmp_path / "calls.sqlite", **fields)


def num_calls(of: Mapping[str, Engine]) -> int:
    return sum(len(engine.calls) for engine in of.values())  # type: ignore[attr-defined]
