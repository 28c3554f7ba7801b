"""Parts of a simulation for tests: a Serve config of scripted models, and callers that record their calls'
ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from r2_serve.config import SpeedConfig
from r2_serve.lab.simulate.calls import SimulatedCall
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment, DeploymentOptions
from r2_serve.lab.simulate.hardware import Cluster
from r2_serve.lab.simulate.machines import Machines, Need
from r2_serve.lab.simulate.replicas import EngineReplica
from r2_serve.lab.workload import Workload
from r2_serve.serve_config import ServeConfig, load
from tests.support.serve_apps import model_app, router_app, served_card

FAST = 1e12
"""Tokens per second of a prefill that takes no time."""


@dataclass
class Caller:
    """Makes calls and remembers their ends."""

    clock: Clock
    done_s: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def ask(
        self, deployment: Deployment, number: int, prompt_tokens: float, reply_tokens: float
    ) -> SimulatedCall:
        call = SimulatedCall(self, number, prompt_tokens, reply_tokens, self.clock.now)
        deployment.submit(call)
        return call

    def call_admitted(self, call: SimulatedCall) -> None:
        raise AssertionError("no stage is called here")

    def call_done(self, call: SimulatedCall) -> None:
        self.done_s[call.position] = self.clock.now

    def call_failed(self, call: SimulatedCall, reason: str, retry_after_s: float | None) -> None:
        self.failed[call.position] = reason


def one_model(clock: Clock, speed: SpeedConfig, **options: Any) -> Deployment:
    """A deployment of one replica; `options` change it."""
    fields: dict[str, Any] = {
        "name": "m/Model",
        "max_ongoing_requests": 1_000_000,
        "max_queued_requests": -1,
        "need": Need((1.0,)),
        "stop_s": 0.0,
        "hop_s": 0.0,
        "initial_replicas": 1,
    }
    machines = Machines(clock, Cluster())
    fields["start_s"] = lambda: options.get("start_s", 0.0)
    settings = DeploymentOptions(**{**fields, **{k: v for k, v in options.items() if k != "start_s"}})
    return Deployment(
        clock,
        settings,
        lambda deployment: EngineReplica(clock, speed, deployment.done),
        machines,
        random.Random(0),
    )


def open_loop(
    clock: Clock, num_calls: int, gap_s: Callable[[], float], send: Callable[[int], object]
) -> None:
    """Calls `send(0)`, `send(1)`, ... with gaps between them."""

    def next_one(number: int) -> None:
        send(number)
        if number + 1 < num_calls:
            clock.after(gap_s(), next_one, number + 1)

    clock.after(gap_s(), next_one, 0)


def scripted_pool(tmp_path: Path, **changes: Any) -> ServeConfig:
    """Workers `small` and `large`, a planner and a picker of 0.1 s each, as applications.

    `changes` update, by name: `small` and `large` their deployments, `speed` that of both, `routing` the
    virtual model, `limits`, `server`, and `models` the fields of every card.
    """
    speed = {
        "start_s": 3,
        "prefill_tokens_per_s": FAST,
        "decode_tokens_per_s": 10,
        "max_batch_size": 4,
        "batch_slowdown": 0.5,
        **changes.get("speed", {}),
    }
    usual = {"max_ongoing_requests": 100}
    workers = {name: {**usual, **changes.get(name, {})} for name in ("small", "large")}
    engines: dict[str, Any] = {
        **{name: {"kind": "scripted", "replies": ["{words}"], "speed": speed} for name in workers},
        "planner": {"kind": "scripted", "replies": ["{json:plan}"], "delay_s": 0.1},
        "picker": {"kind": "scripted", "replies": ["{json:allocation}"], "delay_s": 0.1},
    }
    cards = [served_card(name, **changes.get("models", {})) for name in engines]
    virtual = {
        "pool": ["small", "large"],
        "plan": "always",
        "decomposer": {"model": "planner", "num_samples": 1, "max_tokens": 4096},
        "allocator": {"model": "picker"},
    }
    routing = {
        "virtual_models": {"r2": {**virtual, **changes.get("routing", {})}},
        "limits": changes.get("limits", {}),
    }
    apps = [model_app(name, engine, **workers.get(name, usual)) for name, engine in engines.items()]
    apps.append(router_app({"models": cards, "server": changes.get("server", {})}, routing))
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": apps}))
    return load(path)


def workload(**fields: Any) -> Workload:
    """Two small steps at once, then a large one, a query every ten seconds; `fields` change it."""
    waves = [{"model": "small", "count": 2, "words": 20}, {"model": "large", "words": 10}]
    tasks = {"kind": "synthetic", "shapes": [{"waves": waves}]}
    given = {
        "name": "test",
        "duration_s": 100,
        "arrivals": {"kind": "constant", "rate_per_s": 0.1},
        "tasks": tasks,
    }
    return Workload.model_validate({**given, **fields})


def failing_policy(context: object) -> tuple[int, dict[str, object]]:
    """An autoscaling policy that raises."""
    raise RuntimeError("no decision today")
