"""A config that asks for more than the nodes have is refused, with the deployment, numbers and remedy."""

from __future__ import annotations

import pytest

from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.needs import named_resources, replicas_of
from r2_serve.ops.local.progress import HEAVY_START_S, LIGHT_START_S, start_limit_s
from r2_serve.ops.local.room import check_room, room_at_start
from r2_serve.serve_config import ServeConfig
from tests.serve_config.test_serve_config import REFERENCE, SMALL
from tests.support.config_of import config_of

TWO_CORES = [{"CPU": 2.0, "memory": 4 * 2**30}]


def small(**model_options: object) -> ServeConfig:
    """The small config, whose one local model asks for `model_options`."""
    config = config_of(f"proxy_location: HeadOnly\n{SMALL}")
    config.raw["applications"][0]["deployments"][0] |= model_options
    return config


def refusal_of(config: ServeConfig, nodes: list[dict[str, float]]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_room(config, nodes)
    return caught.value.message


def test_default_shares_of_router_decomposer_and_allocator_fit_two_cores() -> None:
    check_room(small(), TWO_CORES)


def test_one_machine_has_the_custom_resources_that_a_config_names() -> None:
    """A `router` says where routers may run; on one machine that is here."""
    stages = [entry for entry in replicas_of(config_of(REFERENCE.read_text())) if not entry.has_gpu]
    assert named_resources(stages) == {"router": 4 + 4 + 4}
    assert named_resources(replicas_of(small())) == {}


def test_replica_without_a_gpu_names_the_deployment_and_the_numbers() -> None:
    message = refusal_of(small(ray_actor_options={"num_gpus": 2}), [{"CPU": 8.0, "GPU": 1.0}])
    assert "deployment Model of application 'm-small': a replica asks for 2 GPU, and 1 GPU" in message
    assert "num_gpus" in message and "Ray counts the GPUs that the NVIDIA driver shows" in message


def test_config_that_asks_for_gpus_is_refused_on_a_machine_without_any() -> None:
    message = refusal_of(small(ray_actor_options={"num_gpus": 1}), TWO_CORES)
    assert "a replica asks for 1 GPU, and 0 GPU is the most that a node here has" in message


def test_replicas_that_fit_only_one_by_one_are_summed_up() -> None:
    message = refusal_of(small(num_replicas=3, autoscaling_config=None), TWO_CORES)
    assert "application 'm-small' finds no room: there are 2 CPU for the 3.3 CPU of all replicas" in message
    assert "m-small/Model 3 x 1" in message and "r2/Allocator 1 x 0.1" in message
    assert "{name: Model, ray_actor_options: {num_cpus: 0.1}}" in message


def test_initial_replicas_count_at_the_start_and_most_replicas_do_not() -> None:
    scaling = {"min_replicas": 1, "max_replicas": 9}
    check_room(small(autoscaling_config=scaling), TWO_CORES)
    message = refusal_of(small(autoscaling_config={**scaling, "initial_replicas": 5}), TWO_CORES)
    assert "m-small/Model 5 x 1" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 8 * 2**30}, "asks for 8.00 GiB of memory, and 4.00 GiB of memory is the most"),
        ({"resources": {"serve_gpu": 1}}, "{resources: {serve_gpu: ...}}"),
    ],
)
def test_memory_and_custom_resources_are_checked_too(options: dict[str, object], message: str) -> None:
    assert message in refusal_of(small(ray_actor_options=options), TWO_CORES)


def test_options_without_num_cpus_count_a_whole_cpu_as_ray_serve_does() -> None:
    config = small(ray_actor_options={"num_gpus": 0}, num_replicas=2, autoscaling_config=None)
    assert "there are 2 CPU for the 2.3 CPU" in refusal_of(config, TWO_CORES)


def test_each_node_is_filled_by_itself() -> None:
    config = small(num_replicas=2, max_replicas_per_node=1, autoscaling_config=None)
    check_room(config, [*TWO_CORES, *TWO_CORES])
    assert "of at most 1 of its replicas each" in refusal_of(config, [{"CPU": 16.0}])


def test_models_on_gpus_have_longer_to_start() -> None:
    assert start_limit_s(small()) == LIGHT_START_S
    assert start_limit_s(config_of(REFERENCE.read_text())) == HEAVY_START_S


def test_room_at_start_sums_up_and_names_shares_by_default() -> None:
    text = room_at_start(small())
    assert text.startswith("asks at its start for 1.3 CPU; CPU shares by default")
    assert text.endswith(": r2/Router 0.1, r2/Decomposer 0.1, r2/Allocator 0.1")
