"""Models behind an API in a simulation: their limits hold, and the router handles a refusal."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from r2_serve.config import CooldownConfig
from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.calls import SimulatedCall
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.hardware import Hardware, HostedSpeed
from r2_serve.lab.simulate.hosted import HostedModel
from r2_serve.lab.simulate.simulation import simulate
from r2_serve.serve_config import ServeConfig, load
from tests.support.simulated import Caller, open_loop, scripted_pool, workload

NO_REST = CooldownConfig(first_s=0)


def hosted(clock: Clock, **speed: Any) -> HostedModel:
    return HostedModel(
        clock,
        "api",
        HostedSpeed.model_validate({"ttft_s": 0.5, "tokens_per_s": 50, **speed}),
        random.Random(0),
        NO_REST,
    )


@pytest.mark.parametrize(
    ("limit", "expected"), [({"requests_per_minute": 120}, 120), ({"tokens_per_minute": 6000}, 60)]
)
def test_calls_beyond_the_limit_are_refused(limit: dict[str, int], expected: int) -> None:
    """Ten calls of a hundred tokens come each second for ten minutes."""
    clock = Clock()
    api, caller = hosted(clock, **limit), Caller(clock)

    def send(number: int) -> None:
        api.submit(SimulatedCall(caller, number, 60, 40, clock.now))

    open_loop(clock, 6000, lambda: 0.1, send)
    clock.run()
    assert len(caller.done_s) / 10 == pytest.approx(expected, rel=0.03)
    assert len(caller.done_s) + len(caller.failed) == 6000
    assert set(caller.failed.values()) == {"rate_limited"}


def test_call_takes_the_time_of_its_reply_and_the_spread_keeps_the_median() -> None:
    clock = Clock()
    api, caller = hosted(clock), Caller(clock)
    api.submit(SimulatedCall(caller, 0, 10, 100, 0.0))
    clock.run()
    assert caller.done_s == {0: pytest.approx(0.5 + 2.0)}
    clock = Clock()
    api, caller = hosted(clock, spread=0.5), Caller(clock)
    for number in range(2001):
        api.submit(SimulatedCall(caller, number, 10, 100, 0.0))
    clock.run()
    assert sorted(caller.done_s.values())[1000] == pytest.approx(2.5, rel=0.05)


def pool_with_api(tmp_path: Path, **large: Any) -> ServeConfig:
    """`large` is behind an API, and only the fallbacks of its card take its place."""
    import yaml

    scripted_pool(tmp_path, routing={"fallbacks": "typed"})
    raw = yaml.safe_load((tmp_path / "serve_config.yaml").read_text())
    raw["applications"] = [app for app in raw["applications"] if app["name"] != "m-large"]
    card = next(card for card in raw["applications"][-1]["args"]["models"] if card["name"] == "large")
    card.update({"engine": {"kind": "openai", "model": "gpt-x"}, **large})
    path = tmp_path / "with_api.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load(path)


def api_of(**speed: Any) -> Hardware:
    return Hardware.model_validate(
        {"models": {"large": {"hosted": {"ttft_s": 0.5, "tokens_per_s": 10, **speed}}}}
    )


def test_hosted_model_needs_its_speed_and_then_takes_part(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.large\.hosted"):
        simulate(pool_with_api(tmp_path), workload(), Hardware())
    (record,) = simulate(pool_with_api(tmp_path), workload(duration_s=5), api_of()).queries.records()
    assert record.latency_s == pytest.approx(0.2 + 3.0 + 0.5 + 1.0)


def test_refused_calls_rest_the_model_and_go_to_its_fallback(tmp_path: Path) -> None:
    """One call a minute passes; the others go to the fallback, and each query is answered."""
    config, few = pool_with_api(tmp_path, fallbacks=["small"]), api_of(requests_per_minute=1, burst_s=60)
    run = simulate(config, workload(arrivals={"kind": "constant", "rate_per_s": 0.2}), few)
    assert {record.status for record in run.queries.records()} == {200}
    alone = simulate(pool_with_api(tmp_path), workload(arrivals={"kind": "constant", "rate_per_s": 0.2}), few)
    assert {record.status for record in alone.queries.records()} == {200, 502}
