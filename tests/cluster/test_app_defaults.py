"""Deployments without an entry in the file get what checks and counts of a config assume of them."""

from __future__ import annotations

import pytest

from r2_serve import app
from r2_serve.config import LimitsConfig, ModelServerConfig
from r2_serve.serve_config.applications import MODEL
from r2_serve.serve_config.defaults import LIGHT_CPUS, SERVE_CPUS, SHUTDOWN_S, cpus_of

VLLM, NUMPY = {"kind": "vllm", "model": "some/model"}, {"kind": "numpy", "path": "embedded:words-5k"}


@pytest.mark.parametrize("deployment", [app.Router, app.Decomposer, app.Allocator])
def test_stages_of_the_router_take_a_small_share(deployment: app.Deployment) -> None:
    assert deployment.ray_actor_options == {"num_cpus": LIGHT_CPUS}


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
