"""What `r2-serve validate` says of autoscaling by our own policy."""

from __future__ import annotations

from typing import Any

import yaml

from r2_serve import serve_config
from r2_serve.serve_config.document import Document, Problem, parse_yaml
from tests.support.scripted_pool import scripted_config

PLAN_AHEAD = "r2_serve.scaling.serve_policy:PlanAhead"


def problems(*, policy: dict[str, Any], **scaling: Any) -> list[Problem]:
    """Problems of a config whose models scale like this."""
    options = {"min_replicas": 0, "max_replicas": 4, "upscale_delay_s": 0, **scaling, "policy": policy}
    document = parse_yaml(
        yaml.safe_dump(scripted_config(model_options={"autoscaling_config": options}), sort_keys=False)
    )
    assert isinstance(document, Document)
    found = [
        problem
        for problem in serve_config.own_problems(document, {})[1]
        if "autoscaling_config" in problem.where
    ]
    return found[:1]  # the four models are alike


def test_plan_ahead_policy_with_its_settings_is_accepted() -> None:
    assert problems(policy={"policy_function": PLAN_AHEAD}) == []
    assert (
        problems(
            policy={
                "policy_function": PLAN_AHEAD,
                "policy_kwargs": {"cold_start_s": 40, "drain_s": 2.5, "trend": 0},
            }
        )
        == []
    )


def test_wrong_setting_or_policy_name_is_an_error_with_a_suggestion() -> None:
    (misspelt,) = problems(policy={"policy_function": PLAN_AHEAD, "policy_kwargs": {"cold_starts_s": 40}})
    assert misspelt.severity == "error" and "did you mean 'cold_start_s'?" in misspelt.message
    (negative,) = problems(policy={"policy_function": PLAN_AHEAD, "policy_kwargs": {"cold_start_s": -1}})
    assert negative.severity == "error" and negative.where.endswith("cold_start_s")
    (unknown,) = problems(policy={"policy_function": "r2_serve.scaling.serve_policy:PlanAheads"})
    assert unknown.severity == "error" and f"did you mean '{PLAN_AHEAD}'?" in unknown.message


def test_delay_that_defeats_the_plans_is_a_warning() -> None:
    (default,) = problems(policy={"policy_function": PLAN_AHEAD}, upscale_delay_s=30)
    assert default.severity == "warning" and "upscale_delay_s: 0" in default.message


def test_settings_of_other_policies_are_not_checked() -> None:
    assert problems(policy={"policy_function": "my.module:policy"}, upscale_delay_s=30) == []


def test_plan_ahead_policy_on_the_router_is_an_error() -> None:
    config = scripted_config()
    (router,) = [d for d in config["applications"][-1]["deployments"] if d["name"] == "Router"]
    router["autoscaling_config"] = {"max_replicas": 2, "policy": {"policy_function": PLAN_AHEAD}}
    document = parse_yaml(yaml.safe_dump(config, sort_keys=False))
    assert isinstance(document, Document)
    (problem,) = [
        found for found in serve_config.own_problems(document, {})[1] if "autoscaling_config" in found.where
    ]
    assert problem.severity == "error" and "'Router'" in problem.message
