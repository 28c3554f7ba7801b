"""The router in the test's own process, over scripted models."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from r2_serve.calls.pool import PoolMember
from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    LimitsConfig,
    ModelConfig,
    RoutingConfig,
    ScriptedEngineConfig,
    VirtualModelConfig,
)
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.router.allocator import Allocator
from r2_serve.router.decomposer import Decomposer
from r2_serve.router.pipeline import Pipeline
from r2_serve.types import Engine, Message, Plan, Query, Subtask, Trace, references


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def model(name: str, **fields: Any) -> ModelConfig:
    """A pool model at 1 USD per 1M tokens in and 2 out."""
    usual = {
        "engine": ScriptedEngineConfig(kind="scripted"),
        "usd_per_mtok_in": Decimal(1),
        "usd_per_mtok_out": Decimal(2),
    }
    return ModelConfig(name=name, **{**usual, **fields})


def pool_of(*members: tuple[ModelConfig, Engine]) -> dict[str, PoolMember]:
    return {config.name: PoolMember(config, engine) for config, engine in members}


def plan_of(*texts: str, answer: str | None = None) -> Plan:
    """Each step depends on those its text names."""
    steps = tuple(
        Subtask(id=i, text=text, depends_on=tuple(sorted(references(text))))
        for i, text in enumerate(texts, 1)
    )
    return Plan(subtasks=steps, answer=answer)


def plan_json(*texts: str, **fields: Any) -> str:
    """What an instruct decomposer replies for `plan_of(*texts)`."""
    steps = [
        {"id": i, "text": text, "depends_on": sorted(references(text))} for i, text in enumerate(texts, 1)
    ]
    return json.dumps({"subtasks": steps, **fields})


def allocation_json(*models: str) -> str:
    return json.dumps({"models": models})


def routing(
    *, limits: LimitsConfig | None = None, decomposer: dict[str, Any] | None = None, **virtual: Any
) -> RoutingConfig:
    """One virtual model, `r2`, which splits every query; `decomposer` and `allocator` are its modules."""
    allocator = AllocatorConfig(model="allocator")
    usual = {"pool": ("small", "large"), "allocator": allocator, "plan": "always"}
    fields = {**usual, **virtual}
    sampler = DecomposerConfig(**{"model": "decomposer", "num_samples": 1, **(decomposer or {})})
    return RoutingConfig(
        virtual_models={"r2": VirtualModelConfig(decomposer=sampler, **fields)},
        limits=limits or LimitsConfig(),
    )


class Router:
    """A pipeline with its traces at hand. Engines by name: an engine, or the replies of a scripted one."""

    def __init__(
        self,
        *,
        routed: RoutingConfig | None = None,
        cards: dict[str, dict[str, Any]] | None = None,
        **engines: Any,
    ) -> None:
        self.engines = {
            name: e if hasattr(e, "generate") else ScriptedEngine(e) for name, e in engines.items()
        }
        self.traces: list[Trace] = []
        self.pool = pool_of(
            *((model(name, **(cards or {}).get(name, {})), engine) for name, engine in self.engines.items())
        )
        self.pipeline = Pipeline(
            self.pool, routed or routing(), Decomposer(self.pool), Allocator(self.pool), [self.traces.append]
        )

    @property
    def trace(self) -> Trace:
        return self.traces[-1]

    def prompts(self, name: str) -> list[str]:
        """Last message of each call made to an engine."""
        return [call.messages[-1].content for call in self.engines[name].calls]


def query(text: str = "How high is Mont Blanc?", **fields: Any) -> Query:
    return Query(**{"request_id": "req-1", "model": "r2", "messages": user(text), **fields})
