"""Deployments without an entry in the file get what checks and counts of a config assume of them."""

from __future__ import annotations

import pytest

from r2_serve import app
from r2_serve.config import LimitsConfig, ModelServerConfig, RouterConfig
from r2_serve.serve_config.applications import ALLOCATOR, DECOMPOSER, MODEL, ROUTER
from r2_serve.serve_config.defaults import LIGHT_CPUS, SERVE_CPUS, SHUTDOWN_S, cpus_of, filled

VLLM, NUMPY = {"kind": "vllm", "model": "some/model"}, {"kind": "numpy", "path": "embedded:words-5k"}


@pytest.mark.parametrize("deployment", [ROUTER, DECOMPOSER, ALLOCATOR])
def test_stages_of_the_router_take_a_small_share(deployment: str) -> None:
    assert router_parts(max_replicas=1)[deployment].ray_actor_options == {"num_cpus": LIGHT_CPUS}


def router_parts(**fields: object) -> dict[str, app.Deployment]:
    card = {"name": "a", "usd_per_mtok_in": 1, "usd_per_mtok_out": 1}
    router = app.build(RouterConfig.model_validate({"models": [card], **fields}))._bound_deployment
    parts = [router, *(part._bound_deployment for part in router.init_args[1:])]
    return {part.name: part for part in parts}


def test_max_replicas_scales_the_router_by_its_places_and_the_stages_by_their_calls() -> None:
    for name, target in ((ROUTER, 30), (DECOMPOSER, 128), (ALLOCATOR, 128)):
        config = router_parts(max_replicas=3, server={"max_running": 40})[name]._deployment_config
        scaling = config.autoscaling_config
        assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, target)
        assert router_parts()[name]._deployment_config.autoscaling_config is None


@pytest.mark.parametrize(
    ("kwargs", "num_gpus", "target"),
    [({}, 1, 64), ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "max_num_seqs": 32}, 4, 8)],
)
def test_three_lines_give_a_model_on_vllm_its_gpus_and_scaling(
    kwargs: dict[str, int], num_gpus: int, target: int
) -> None:
    engine = {**VLLM, "engine_kwargs": kwargs}
    server = ModelServerConfig.model_validate({"engine": engine, "max_replicas": 2})
    bound = app.build_model(server)._bound_deployment
    assert bound.ray_actor_options == {"num_cpus": 1, "num_gpus": num_gpus}
    scaling = bound._deployment_config.autoscaling_config
    assert (scaling.max_replicas, scaling.target_ongoing_requests) == (2, target)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (10, 300)
    (counted,) = filled([], server)
    assert counted["ray_actor_options"] == bound.ray_actor_options
    assert counted["autoscaling_config"]["max_replicas"] == 2


def test_entry_of_a_deployment_replaces_what_its_args_imply() -> None:
    server = ModelServerConfig.model_validate({"engine": VLLM, "max_replicas": 2})
    entry = {"name": MODEL, "autoscaling_config": {"max_replicas": 5}, "ray_actor_options": {"num_gpus": 0.5}}
    assert filled([entry], server) == [entry]


@pytest.mark.parametrize("deployment", [app.Router, app.Decomposer, app.Allocator, app.Model])
def test_requests_may_finish_within_the_default_deadline(deployment: app.Deployment) -> None:
    default = deployment._deployment_config.graceful_shutdown_timeout_s
    assert default == SHUTDOWN_S >= LimitsConfig().deadline_s


@pytest.mark.parametrize(
    ("engine", "options", "num_cpus"),
    [
        (NUMPY, None, LIGHT_CPUS),
        (VLLM, None, SERVE_CPUS),
        (NUMPY, {"num_gpus": 1}, SERVE_CPUS),
        (VLLM, {"num_cpus": 3}, 3),
    ],
)
def test_share_of_a_model_depends_on_its_engine_and_its_entry(
    engine: dict[str, str], options: dict[str, object] | None, num_cpus: float
) -> None:
    """Ray Serve counts 1 CPU for options that name none."""
    server = ModelServerConfig.model_validate({"engine": engine})
    application = app.bind_model(server, {} if options is None else {MODEL: {"ray_actor_options": options}})
    bound = application._bound_deployment.ray_actor_options
    assert bound.get("num_cpus", SERVE_CPUS) == cpus_of(options, server) == num_cpus


@pytest.mark.parametrize(
    ("engine", "at_once"),
    [(NUMPY, 64), (VLLM, 256), ({**VLLM, "engine_kwargs": {"max_num_seqs": 32}}, 32)],
)
def test_replica_of_a_model_lets_in_what_its_engine_works_on_at_once(
    engine: dict[str, object], at_once: int
) -> None:
    server = ModelServerConfig.model_validate({"engine": engine})
    assert app.bind_model(server, {})._bound_deployment.max_ongoing_requests == at_once
    given = app.bind_model(server, {MODEL: {"max_ongoing_requests": 7}})
    assert given._bound_deployment.max_ongoing_requests == 7


def test_dead_replica_of_a_model_is_found_within_seconds() -> None:
    assert app.Model._deployment_config.health_check_period_s == 2
