"""Cards, nodes and failures of a simulated cluster against sums made by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from r2_serve.config import SpeedConfig
from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import REPLACED_AFTER_S, Deployment, DeploymentOptions
from r2_serve.lab.simulate.hardware import Cluster, Hardware
from r2_serve.lab.simulate.machines import Machines, Need
from r2_serve.lab.simulate.replicas import EngineReplica
from r2_serve.lab.simulate.simulation import simulate
from tests.support.simulated import Caller, scripted_pool, workload

SPEED = SpeedConfig(prefill_tokens_per_s=1e12, decode_tokens_per_s=10, max_batch_size=4)
NODES = {"gpus_per_node": 2, "max_nodes": 4, "boot_s": 60, "idle_timeout_s": 100}


def deployment_on(clock: Clock, machines: Machines, need: Need, **options: Any) -> Deployment:
    """A deployment without replicas, each of which starts in 5 s."""
    settings = DeploymentOptions(
        **{"name": "m/Model", "max_ongoing_requests": 10, "start_s": lambda: 5.0, "initial_replicas": 0}
        | {"need": need, **options}
    )
    return Deployment(
        clock, settings, lambda d: EngineReplica(clock, SPEED, d.done), machines, random.Random(0)
    )


def machines_of(clock: Clock, **cluster: Any) -> Machines:
    return Machines(clock, Cluster.model_validate(cluster))


@pytest.mark.parametrize(("share", "num_nodes"), [(0.5, 1), (0.6, 2), (0.3, 1), (1.0, 2)])
def test_shares_of_a_gpu_stand_on_one_card_as_far_as_they_fit(share: float, num_nodes: int) -> None:
    """Four replicas on nodes of two cards: two of 0.5 fit a card, two of 0.6 do not."""
    clock = Clock()
    machines = machines_of(clock, nodes=NODES)
    deployment_on(clock, machines, Need((share,))).scale_to(4)
    clock.run(until=70)
    used = [gpus for gpus in machines.in_use().values() if gpus]
    assert len(used) == num_nodes and sum(used) == pytest.approx(4 * share)


def test_bundles_of_a_placement_group_spread_over_nodes_unless_they_must_stay_together() -> None:
    clock = Clock()
    machines = machines_of(clock, nodes=NODES)
    four = deployment_on(clock, machines, Need((1.0,) * 4))
    four.scale_to(1)
    clock.run(until=70)
    assert len(four.running) == 1 and machines.in_use() == {"node-1": 2.0, "node-2": 2.0}
    assert not machines.could_hold(Need((1.0,) * 4, is_on_one_node=True))
    assert machines.could_hold(Need((1.0,) * 2, is_on_one_node=True))


def test_replica_larger_than_a_node_is_refused_before_the_run(tmp_path: Any) -> None:
    group = {"placement_group_bundles": [{"GPU": 1}] * 4, "placement_group_strategy": "STRICT_PACK"}
    config = scripted_pool(tmp_path, large=group)
    with pytest.raises(ConfigError, match=r"m-large/Model asks for GPU 1 \+ 1 \+ 1 \+ 1 on one node, more"):
        simulate(config, workload(), Hardware.model_validate({"cluster": {"gpus": 2}}))


def test_node_seconds_run_from_the_boot_to_the_idle_timeout() -> None:
    clock = Clock()
    machines = machines_of(clock, nodes=NODES)
    deployment = deployment_on(clock, machines, Need((1.0,)))
    deployment.scale_to(2)
    clock.run(until=30)
    assert machines.in_use() == {"boots-1": 0.0} and deployment.num_waiting == 2
    clock.run(until=100)
    deployment.scale_to(0)
    clock.run(until=1000)
    machines.cost_usd()  # counts until now
    assert machines.in_use() == {}
    assert machines.node_seconds == pytest.approx(100 + 100)
    assert machines.paid_gpu_seconds == pytest.approx(2 * machines.node_seconds)


def test_replicas_of_the_beginning_stand_on_nodes_that_are_up_then() -> None:
    clock = Clock()
    machines = machines_of(clock, nodes=NODES)
    deployment_on(clock, machines, Need((1.0,)), initial_replicas=3)
    assert machines.in_use() == {"node-1": 2.0, "node-2": 1.0}


def test_replicas_at_work_on_one_card_share_its_time() -> None:
    """A reply of 10 tokens takes 1 s alone. Two on one card take 2 s together, and the third has its own."""
    clock, caller = Clock(), None
    machines = machines_of(clock, gpus=2)
    shared = [deployment_on(clock, machines, Need((0.5,)), initial_replicas=1) for _ in range(3)]
    caller = Caller(clock)
    for number, deployment in enumerate(shared):
        caller.ask(deployment, number, 0, 10)
    clock.run(until=10)
    assert caller.done_s == pytest.approx({0: 2.0, 1: 2.0, 2: 1.0})
    caller.ask(shared[0], 3, 0, 10)
    clock.run(until=20)
    assert caller.done_s[3] == pytest.approx(11.0), "the other one is idle and takes nothing"


def test_dead_replica_fails_its_calls_and_another_starts_in_its_place() -> None:
    clock = Clock()
    machines = machines_of(clock, nodes=NODES)
    deployment, caller = deployment_on(clock, machines, Need((1.0,)), initial_replicas=1), Caller(clock)
    caller.ask(deployment, 0, 0, 100)
    clock.run(until=4)
    deployment.kill_one()
    assert caller.failed == {0: "died"} and not deployment.running
    clock.run(until=4 + REPLACED_AFTER_S + 4.9)
    assert deployment.num_starting == 1 and machines.num_nodes == 1
    clock.run(until=4 + REPLACED_AFTER_S + 5.1)
    assert len(deployment.running) == 1
    caller.ask(deployment, 1, 0, 10)
    clock.run(until=100)
    assert caller.done_s == {1: pytest.approx(11.1)}


def test_dead_node_takes_its_replicas_and_another_one_boots() -> None:
    clock = Clock()
    machines = machines_of(clock, nodes=NODES)
    deployment, caller = deployment_on(clock, machines, Need((1.0,)), initial_replicas=3), Caller(clock)
    for number in range(3):
        caller.ask(deployment, number, 0, 500)
    clock.run(until=10)
    machines.kill_node()
    assert len(caller.failed) == 2 and machines.in_use() == {"node-2": 1.0}
    clock.run(until=10 + REPLACED_AFTER_S + 6)
    assert machines.in_use() == {"node-2": 2.0, "boots-1": 0.0}, "one finds room, the other waits for a node"
    clock.run(until=10 + REPLACED_AFTER_S + 60 + 6)
    assert len(deployment.running) == 3
