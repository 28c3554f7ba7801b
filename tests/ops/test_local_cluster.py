"""Configs that a local cluster refuses before it starts Ray."""

from __future__ import annotations

import sys

import pytest

from r2_serve.errors import ConfigError
from r2_serve.ops.local.cluster import free_port, local_cluster
from tests.serve_config.test_serve_config import SMALL
from tests.support.config_of import config_of


def test_policy_that_cannot_be_imported_is_refused_before_ray_starts() -> None:
    policy = "max_replicas: 2\n      policy: {policy_function: 'no_such_module:by_hour'}"
    config = config_of(f"proxy_location: HeadOnly\n{SMALL}".replace("max_replicas: 2", policy))
    with pytest.raises(ConfigError) as caught, local_cluster(config, port=free_port()):
        pass
    assert (
        "autoscaling_config.policy.policy_function: importing 'no_such_module' failed" in caught.value.message
    )
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()
