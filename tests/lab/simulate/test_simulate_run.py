"""Simulated runs: exact against sums by hand, the same as the real pipeline, and complete under overload."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from r2_serve.config import ModelConfig, RouterConfig, RoutingConfig
from r2_serve.engines import make_engine
from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.results import SimulatedRun
from r2_serve.lab.simulate.simulation import SimulationOptions, simulate
from r2_serve.lab.workload import Workload
from r2_serve.router.router import in_process
from r2_serve.serve_config import ServeConfig
from r2_serve.types import Engine, Message, Query
from tests.router.test_fitted_plan import fit_of, written
from tests.support.simulated import scripted_pool, workload
from tests.support.virtual_time import now_s
from tests.support.virtual_time import run as run_in_virtual_time

SCALING = {
    "min_replicas": 0,
    "max_replicas": 3,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 5,
    "look_back_period_s": 4,
}


def latencies_s(run: SimulatedRun) -> dict[int, float]:
    return {record.index: record.latency_s for record in run.queries.records() if record.outcome == "ok"}


def statuses(run: SimulatedRun) -> dict[int, int | None]:
    return {record.index: record.status for record in run.queries.records()}


def test_one_query_takes_its_stages_and_its_longest_chain(tmp_path: Path) -> None:
    """Planner and picker take 0.1 s each, two steps write 20 words at 10/1.5 a second, one writes 10
    alone."""
    hardware = Hardware.model_validate({"overheads": {"http_s": 0.05, "hop_s": 0.01}})
    run = simulate(scripted_pool(tmp_path), workload(duration_s=5), hardware)
    assert latencies_s(run) == {0: pytest.approx(0.05 + 0.2 + 3.0 + 1.0 + 6 * 0.01)}
    (record,) = run.queries.records()
    assert record.ttft_s == pytest.approx(record.latency_s - 0.9), (
        "the last step's first word comes nine words before its last"
    )
    assert record.num_subtasks == 3


def test_query_waits_for_the_cold_start_of_each_model_it_needs(tmp_path: Path) -> None:
    """Serve starts a replica in the round after a call that finds none: 1 s of process and 3 s of loading."""
    config = scripted_pool(
        tmp_path, small={"autoscaling_config": SCALING}, large={"autoscaling_config": SCALING}
    )
    hardware = Hardware.model_validate(
        {"overheads": {"replica_start_s": 1.0}, "cluster": {"gpu_usd_per_hour": 3600}}
    )
    run = simulate(config, workload(duration_s=5), hardware)
    assert latencies_s(run)[0] == pytest.approx(
        0.2 + 4.0 + 3.0 + 4.0 + 1.0, abs=0.25
    )  # 0.1 s between rounds, twice
    most = max(sample.deployments["m-small/Model"].starting for sample in run.timeline)
    assert most == 1, "from zero, Serve starts one whatever waits"


class _AsInRouter:
    """The engines of the scripted pool in the router's own process."""

    def __init__(self, config: ServeConfig) -> None:
        engines = {app.removeprefix("m-"): server.engine for app, server in config.model_apps.items()}
        cards = tuple(card.model_copy(update={"engine": engines[card.name]}) for card in config.router.models)
        self.router: RouterConfig = config.router.model_copy(update={"models": cards})
        self.routing: RoutingConfig = config.routing

    def engine(self, card: ModelConfig) -> Engine:
        return make_engine(card.engine)


async def real_latencies_s(config: ServeConfig, asked: Workload) -> dict[int, float]:
    """Latencies of the router's own pipeline; to be run in virtual time."""
    setting = _AsInRouter(config)
    router = in_process(setting.router, setting.routing, setting.engine)
    began_s = now_s()
    ended: dict[int, float] = {}

    async def one(index: int, start_s: float, text: str) -> None:
        await asyncio.sleep(began_s + start_s - now_s())
        await router.answer(
            Query(request_id=str(index), model="r2", messages=(Message(role="user", content=text),))
        )
        ended[index] = now_s() - began_s - start_s

    async with asyncio.TaskGroup() as group:
        for request in asked.requests():
            group.create_task(one(request.index, request.start_s, request.text))
    return ended


def test_simulated_latencies_are_those_of_the_real_pipeline_in_virtual_time(tmp_path: Path) -> None:
    """A hundred overlapping queries of three forms agree in every prompt, batch and queue."""
    config = scripted_pool(
        tmp_path, speed={"start_s": 0, "prefill_tokens_per_s": 500}, limits={"max_parallel": 3}
    )
    shapes = [
        {
            "waves": [
                {"model": "small", "count": [1, 5], "words": [5, 40]},
                {"model": "large", "count": [1, 2], "words": [5, 30]},
            ]
        },
        {
            "waves": [
                {"model": "large", "words": 30},
                {"model": "small", "count": 3, "words": [1, 9]},
                {"model": "small", "words": 12},
            ]
        },
        {"waves": [{"model": "small", "words": [5, 20]}]},
    ]
    asked = workload(
        duration_s=200,
        arrivals={"kind": "gamma", "rate_per_s": 0.5, "cv": 2},
        tasks={"kind": "synthetic", "shapes": shapes, "prompt_words": [0, 300]},
    )
    real = run_in_virtual_time(real_latencies_s(config, asked))
    simulated = latencies_s(simulate(config, asked, Hardware()))
    assert len(real) > 80
    assert simulated == pytest.approx(real, abs=0.02, rel=0.01)


OVERLOAD = {"kind": "poisson", "rate_per_s": 5.0}


def test_every_query_ends_exactly_once_under_overload(tmp_path: Path) -> None:
    """The load fills queues and causes timeouts, fallbacks, cold starts and missed deadlines."""
    config = scripted_pool(
        tmp_path,
        small={"max_ongoing_requests": 6, "max_queued_requests": 20, "autoscaling_config": SCALING},
        large={"max_ongoing_requests": 4, "autoscaling_config": SCALING},
        models={"timeout_s": 9, "fallbacks": []},
        limits={"deadline_s": 25},
        server={"max_running": 20, "max_queued": 10},
    )
    run = simulate(config, workload(arrivals=OVERLOAD), Hardware())
    num_requests = len(list(workload(arrivals=OVERLOAD).requests()))
    assert sorted(record.index for record in run.queries.records()) == list(range(num_requests))
    assert set(statuses(run).values()) >= {200, 429, 502}
    last = run.timeline[-1]
    assert (last.num_open, last.queue.running if last.queue else None) == (0, 0)


def test_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    config = scripted_pool(tmp_path, small={"autoscaling_config": SCALING, "max_ongoing_requests": 8})
    asked = workload(arrivals={"kind": "poisson", "rate_per_s": 0.5})
    first, again, other = (
        simulate(config, asked, Hardware(), SimulationOptions(seed=seed)) for seed in (1, 1, 2)
    )
    assert list(first.queries.records()) == list(again.queries.records())
    assert first.timeline == again.timeline
    assert list(first.queries.records()) != list(other.queries.records())


def test_too_slow_model_is_replaced_by_its_fallback_or_fails_the_query(
    tmp_path: Path,
) -> None:
    slow: dict[str, Any] = {"kind": "synthetic", "shapes": [{"waves": [{"model": "small", "words": 100}]}]}
    hardware = Hardware.model_validate(
        {"models": {"large": {"speed": {"prefill_tokens_per_s": 1e9, "decode_tokens_per_s": 1000}}}}
    )
    own: dict[str, Any] = {"models": {"timeout_s": 4}, "routing": {"fallbacks": "typed"}}
    config = scripted_pool(tmp_path, **own)
    assert set(statuses(simulate(config, workload(tasks=slow), hardware)).values()) == {502}
    by_pool = scripted_pool(tmp_path, models={"timeout_s": 4})
    assert set(statuses(simulate(by_pool, workload(tasks=slow), hardware)).values()) == {200}
    config = scripted_pool(tmp_path, **own)
    cards = tuple(
        card.model_copy(update={"fallbacks": ("large",)}) if card.name == "small" else card
        for card in config.router.models
    )
    with_fallback = simulate(_with_models(config, cards), workload(tasks=slow, duration_s=5), hardware)
    assert latencies_s(with_fallback)[0] == pytest.approx(0.2 + 4.0 + 0.1, abs=0.06)


def _with_models(config: ServeConfig, cards: tuple[ModelConfig, ...]) -> ServeConfig:
    from dataclasses import replace

    return replace(config, router=config.router.model_copy(update={"models": cards}))


def test_query_without_a_plan_in_time_goes_to_one_model_in_one_step(tmp_path: Path) -> None:
    config = scripted_pool(
        tmp_path, routing={"decomposer": {"model": "planner", "num_samples": 1, "timeout_s": 0.05}}
    )
    run = simulate(config, workload(duration_s=5), Hardware())
    (record,) = run.queries.records()
    assert record.num_subtasks == 1
    assert record.latency_s == pytest.approx(
        0.05 + 1.0, abs=0.01
    )  # the fallback model is `large`, which writes the last step's words


@pytest.mark.parametrize(
    ("routing", "large_usd", "num_subtasks"),
    [
        ({"plan": "always"}, 1, 3),
        ({"plan": "never"}, 1, 1),
        ({"plan": "auto"}, 100, 1),
        ({"plan": "auto", "plan_file": "plan.json", "planning_share": 1}, 100, 3),
        ({"plan": "auto", "plan_file": "plan.json", "planning_share": "0.01"}, 100, 1),
    ],
    ids=["always", "never", "too short", "a plan saves", "planning is too dear"],
)
def test_query_goes_whole_where_the_router_would_send_it_so(
    tmp_path: Path, routing: dict[str, Any], large_usd: int, num_subtasks: int
) -> None:
    """The steps are on the small model, and the direct call asks the large one."""
    if "plan_file" in routing:
        routing = {**routing, "plan_file": written(tmp_path / "plan.json", fit_of())}
    config = scripted_pool(tmp_path, routing=routing)
    dear = {"usd_per_mtok_in": large_usd, "usd_per_mtok_out": 2 * large_usd}
    cards = tuple(
        card.model_copy(update=dear) if card.name == "large" else card for card in config.router.models
    )
    config = _with_models(config, cards)
    waves = [{"model": "small", "count": 2, "words": 20}, {"model": "small", "count": 1, "words": 40}]
    asked = workload(duration_s=5, tasks={"kind": "synthetic", "shapes": [{"waves": waves}]})
    (record,) = simulate(config, asked, Hardware()).queries.records()
    assert (record.outcome, record.num_subtasks) == ("ok", num_subtasks)


def test_decomposer_that_allocates_takes_the_time_of_one_stage(tmp_path: Path) -> None:
    planner = {"model": "planner", "num_samples": 1, "max_tokens": 4096, "allocates": True}
    run = simulate(
        scripted_pool(tmp_path, routing={"decomposer": planner}), workload(duration_s=5), Hardware()
    )
    assert latencies_s(run)[0] == pytest.approx(0.1 + 3.0 + 1.0)


def test_model_without_room_gives_its_subtasks_to_the_next_cheapest(tmp_path: Path) -> None:
    spilling = scripted_pool(tmp_path, routing={"spill": {"calls_per_replica": 1}})
    waves = [{"model": "small", "count": 2, "words": 20}]
    asked = workload(duration_s=5, tasks={"kind": "synthetic", "shapes": [{"waves": waves}]})
    assert latencies_s(simulate(spilling, asked, Hardware()))[0] == pytest.approx(0.2 + 2.0), (
        "one on each model, alone"
    )


def test_query_to_a_pool_model_has_no_plan(tmp_path: Path) -> None:
    asked = workload(duration_s=5, tasks={**workload().tasks.model_dump(), "model": "small"})
    assert latencies_s(simulate(scripted_pool(tmp_path), asked, Hardware()))[0] == pytest.approx(1.0)


def test_missing_speed_or_model_is_an_error_with_the_key_to_give(tmp_path: Path) -> None:
    config = scripted_pool(tmp_path)
    with pytest.raises(ConfigError, match=r"asks for model 'r3'; the config has \['r2', 'small'"):
        simulate(config, workload(tasks={**workload().tasks.model_dump(), "model": "r3"}), Hardware())
    words = {"kind": "benchmark", "name": "words", "dataset": "test"}
    with pytest.raises(ConfigError, match="bring no plans"):
        simulate(config, workload(tasks=words), Hardware())
