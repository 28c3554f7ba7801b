"""The simulator's queues against queueing theory, and against sums done by hand."""

from __future__ import annotations

import math
import random

import pytest

from r2_serve.config import SpeedConfig
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment
from tests.support.simulated import FAST, Caller, one_model, open_loop

NUM_CALLS = 30_000


def mean_wait_s(num_servers: int, load: float, service_tokens: random.Random | None) -> float:
    """Mean queueing time of Poisson arrivals whose service takes 1 s on average: exponential, or always 1
    s."""
    clock, draw = Clock(), random.Random(num_servers)
    speed = SpeedConfig(prefill_tokens_per_s=FAST, decode_tokens_per_s=1.0, max_batch_size=num_servers)
    deployment, caller = one_model(clock, speed), Caller(clock)
    asked: list[tuple[float, float]] = []

    def send(number: int) -> None:
        tokens = service_tokens.expovariate(1.0) if service_tokens else 1.0
        asked.append((clock.now, tokens))
        caller.ask(deployment, number, 0, tokens)

    open_loop(clock, NUM_CALLS, lambda: draw.expovariate(load * num_servers), send)
    clock.run()
    assert len(caller.done_s) == NUM_CALLS
    return sum(caller.done_s[i] - at_s - tokens for i, (at_s, tokens) in enumerate(asked)) / NUM_CALLS


def erlang_c_wait_s(num_servers: int, load: float) -> float:
    """Mean wait of M/M/c with service time 1. Source: Erlang 1917."""
    offered = num_servers * load
    last = offered**num_servers / math.factorial(num_servers) / (1 - load)
    p_wait = last / (sum(offered**k / math.factorial(k) for k in range(num_servers)) + last)
    return p_wait / (num_servers * (1 - load))


@pytest.mark.parametrize("num_servers", [1, 4])
def test_waits_with_exponential_service_are_those_of_erlang(num_servers: int) -> None:
    assert mean_wait_s(num_servers, 0.6, random.Random(7)) == pytest.approx(
        erlang_c_wait_s(num_servers, 0.6), rel=0.08
    )


def test_waits_are_half_as_long_if_all_calls_take_the_same_time() -> None:
    """M/D/1 waits load / (2 (1 - load)) service times. Source: Pollaczek-Khinchine."""
    assert mean_wait_s(1, 0.6, None) == pytest.approx(0.6 / (2 * 0.4), rel=0.08)


def test_batch_with_full_slowdown_shares_its_replica_fairly() -> None:
    """A slowdown of 1 is processor sharing: M/M/1-PS takes 1 / (1 - load) service times."""
    clock, draw = Clock(), random.Random(3)
    speed = SpeedConfig(
        prefill_tokens_per_s=FAST, decode_tokens_per_s=1.0, max_batch_size=100_000, batch_slowdown=1.0
    )
    deployment, caller = one_model(clock, speed), Caller(clock)
    asked_s: list[float] = []

    def send(number: int) -> None:
        asked_s.append(clock.now)
        caller.ask(deployment, number, 0, draw.choice([0.5, 1.5]))

    open_loop(clock, NUM_CALLS, lambda: draw.expovariate(0.6), send)
    clock.run()
    mean_s = sum(caller.done_s[i] - at_s for i, at_s in enumerate(asked_s)) / NUM_CALLS
    assert mean_s == pytest.approx(1 / (1 - 0.6), rel=0.08)


def two_replicas(clock: Clock, **options: object) -> Deployment:
    speed = SpeedConfig(prefill_tokens_per_s=100, decode_tokens_per_s=10)
    return one_model(clock, speed, **{"initial_replicas": 2, "max_ongoing_requests": 1, **options})


def test_calls_go_to_the_less_busy_replica_and_a_full_queue_refuses() -> None:
    clock = Clock()
    deployment, caller = two_replicas(clock, max_queued_requests=1), Caller(clock)
    for number in range(4):
        caller.ask(deployment, number, 100, 10)
    clock.run()
    assert caller.failed == {3: "backpressure"}
    assert caller.done_s[0] == caller.done_s[1] == pytest.approx(2.0)  # 1 s of prefill, ten tokens in another
    assert 4.0 <= caller.done_s[2] <= 4.5, "after the end of one, found by asking again within half a second"


def test_cancelled_call_frees_its_place_in_every_state() -> None:
    clock = Clock()
    deployment, caller = two_replicas(clock, hop_s=0.5), Caller(clock)
    at_replica, on_its_way, in_queue = (caller.ask(deployment, number, 0, 10) for number in range(3))
    clock.after(0.25, deployment.cancel, on_its_way)
    clock.after(0.75, deployment.cancel, at_replica)
    clock.after(0.25, deployment.cancel, in_queue)
    clock.after(1.0, lambda n: caller.ask(deployment, n, 0, 10), 3)
    clock.run()
    assert caller.done_s == {3: pytest.approx(2.5)}
    assert (deployment.num_at_work, deployment.num_queued) == (0, 0)


def test_replica_that_stops_finishes_its_calls_and_takes_no_more() -> None:
    clock = Clock()
    deployment, caller = two_replicas(clock, start_s=5.0, max_ongoing_requests=10), Caller(clock)
    caller.ask(deployment, 0, 0, 100)
    caller.ask(deployment, 1, 0, 100)
    deployment.scale_to(0)
    assert (len(deployment.running), deployment.num_stopping) == (0, 2)
    deployment.scale_to(1)
    caller.ask(deployment, 2, 0, 10)
    clock.run()
    assert caller.done_s == {0: pytest.approx(10.0), 1: pytest.approx(10.0), 2: pytest.approx(6.0)}, (
        "the third waits for a new one"
    )
    assert deployment.num_stopping == 0
