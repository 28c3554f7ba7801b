"""A simulation gives steps the models that the config's policy and `explore` give, and refuses the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.simulation import simulate
from r2_serve.serve_config import ServeConfig
from tests.support.simulated import scripted_pool, workload

FROM_ZERO = {
    "autoscaling_config": {
        "min_replicas": 0,
        "max_replicas": 3,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 5,
        "look_back_period_s": 4,
    }
}
GATE = {"ask": ["small", "large"], "accept": [{"kind": "confidence", "at_least": 0.9}]}


def pool(tmp_path: Path, **routing: Any) -> ServeConfig:
    return scripted_pool(tmp_path, small=FROM_ZERO, large=FROM_ZERO, routing=routing)


def called(config: ServeConfig) -> set[str]:
    """The models that were started, as a call asked for them. The workload names both."""
    run = simulate(config, workload(), Hardware())
    assert {record.outcome for record in run.queries.records()} == {"ok"}
    return {
        name
        for name in ("small", "large")
        if any(sample.deployments[f"m-{name}/Model"].running for sample in run.timeline)
    }


@pytest.mark.parametrize(
    ("policy", "models"),
    [
        ("learned", {"small", "large"}),
        ("all:large", {"large"}),
        ("cheapest", {"small"}),
        ("final-only:large,small", {"small", "large"}),
        ("random:small=1,large=0", {"small"}),
        ("one:small", {"small"}),
        ("one:auto", {"large"}),
    ],
)
def test_policy_of_the_config_gives_the_models(tmp_path: Path, policy: str, models: set[str]) -> None:
    assert called(pool(tmp_path, policy=policy)) == models


@pytest.mark.parametrize("policy", ["all:large", "one:large"])
def test_share_of_steps_explores_another_model(tmp_path: Path, policy: str) -> None:
    assert called(pool(tmp_path, policy=policy)) == {"large"}
    assert called(pool(tmp_path, policy=policy, explore=0.5)) == {"small", "large"}


@pytest.mark.parametrize("use", [{"policy": "all:two"}, {"policy": "one:two"}, {"whole": "two"}])
def test_gate_in_use_is_refused_by_name(tmp_path: Path, use: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"'r2' uses gates \['two'\].*simulate knows no gates"):
        called(pool(tmp_path, gates={"two": GATE}, **use))


def test_gate_that_only_requests_name_is_no_obstacle(tmp_path: Path) -> None:
    assert called(pool(tmp_path, gates={"two": GATE})) == {"small", "large"}


def test_candidate_on_trial_is_refused(tmp_path: Path) -> None:
    config = pool(tmp_path)
    trial = {"change": {"policy": "all:small"}, "shadow": 0.5}
    routing = config.routing.model_copy(update={"rollouts": {"r2": trial}})
    with pytest.raises(ConfigError, match="candidate on trial"):
        called(ServeConfig(**{**vars(config), "routing": routing}))
