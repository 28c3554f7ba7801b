"""A fitted gate or `plan_file` is published into the running router, tried and rolled back, without a
cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from r2_serve.cli import app as r2_serve_command
from r2_serve.errors import ConfigError, PublishError
from r2_serve.gates.fitted import FittedPolicy
from r2_serve.gates.stored import PolicyFile, write_policy
from r2_serve.ops.publishing.fitted import (
    CHECK_IMPORT_PATH,
    candidate_name,
    plan_file_change,
    plan_file_rollback,
    route_file,
)
from r2_serve.ops.publishing.plan import Pool
from r2_serve.ops.publishing.steps import ConfigFile, end_trial
from r2_serve.ops.publishing.trial import TrialShares, plan_end
from tests.ops.test_publishing import FakeServe, application, dashboard, text_of
from tests.router.test_fitted_plan import fit_of, written
from tests.support.scripted_pool import LARGE, PICKER, PLANNER, SMALL


def fitted(path: Path, reference: str = LARGE) -> Path:
    """A fitted file whose reference answers alone."""
    policy = FittedPolicy(reference=reference, expected_difference=0.0, expected_cost_ratio=1.0)
    write_policy(path, PolicyFile(made="now", book="b", tasks=1, grader="number", policy=policy))
    return path


def fitted_plan(path: Path) -> Path:
    """A fitted choice of `plan: auto`."""
    return Path(written(path, fit_of()))


def text_with(path: Path, **virtual: Any) -> str:
    """A config in which the virtual model `gated` has the fitted gate `g`."""
    gated = {
        "pool": [SMALL, LARGE],
        "decomposer": {"model": PLANNER},
        "allocator": {"model": PICKER},
        "gates": {"g": {"file": str(path)}},
        **virtual,
    }
    return text_of(more_virtual={"gated": gated})


def gate_in(text: str, virtual_model: str = "gated") -> dict[str, Any]:
    router = application(text, "r2")["deployments"][0]
    return dict(router["user_config"]["virtual_models"][virtual_model]["gates"]["g"])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [fitted(tmp_path / f"g{i}.json") for i in range(4)]


def test_new_file_takes_the_place_of_the_old_one_which_stays_named(files: list[Path]) -> None:
    text = text_with(files[0])
    for path in files[1:]:
        text = plan_file_change(text, path).routed
    assert gate_in(text) == {"file": str(files[3]), "earlier": [str(files[1]), str(files[2])]}
    assert text.startswith("# the pool\n")


def test_rollback_goes_to_the_file_before_and_further_back(files: list[Path]) -> None:
    text = plan_file_change(plan_file_change(text_with(files[0]), files[1]).routed, files[2]).routed
    once = plan_file_rollback(text, gate="g")
    assert (once.file, once.moves) == (str(files[1]), {"gated": str(files[2])})
    assert gate_in(once.routed) == {"file": str(files[1]), "earlier": [str(files[0])]}
    assert gate_in(plan_file_rollback(once.routed, gate="g").routed) == {"file": str(files[0])}
    assert plan_file_rollback(text, gate="g", to=str(files[0])).file == str(files[0])


def test_file_that_does_not_fit_is_refused_before_anything_changes(tmp_path: Path, files: list[Path]) -> None:
    text = text_with(files[0])
    with pytest.raises(ConfigError, match=r"asks \['gpt-9'\], which the pool"):
        plan_file_change(text, fitted(tmp_path / "other.json", "gpt-9"))
    with pytest.raises(ConfigError, match=r"uses .* already: a new fit needs a new path"):
        plan_file_change(text, files[0])
    with pytest.raises(ConfigError, match="no virtual model has a fitted gate 'h'"):
        plan_file_change(text, files[1], gate="h")
    with pytest.raises(ConfigError, match=r"name the gate with --gate: the fitted gates are none"):
        plan_file_change(text_of(), files[1])
    with pytest.raises(ConfigError, match="has no such earlier file"):
        plan_file_rollback(text, gate="g")


def test_every_router_reads_the_file_before_it_is_routed_to(tmp_path: Path, files: list[Path]) -> None:
    path, told = tmp_path / "serve_config.yaml", list[str]()
    path.write_text(text_with(files[0]))
    serve, file = FakeServe(path.read_text()), ConfigFile(path)
    route_file(plan_file_change(file.original, files[1]), file, dashboard(serve), told.append)
    first, last = serve.deployed
    (checker,) = (app for app in first["applications"] if app["import_path"] == CHECK_IMPORT_PATH)
    assert (checker["args"]["gate"], checker["args"]["file"]) == ("g", str(files[1]))
    assert sorted(checker["args"]["pool"]) == [LARGE, SMALL]
    assert last == yaml.safe_load(path.read_text())
    assert gate_in(path.read_text())["file"] == str(files[1])
    assert len(told) == 2


def test_replica_that_cannot_read_the_file_stops_the_publication(tmp_path: Path, files: list[Path]) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(text_with(files[0]))
    before = path.read_text()
    serve, file = (
        FakeServe(before, failing={"publish-gate-g": "1 of 2 replicas cannot load it"}),
        ConfigFile(path),
    )
    with pytest.raises(PublishError, match=r"gate g was not published, .*1 of 2"):
        route_file(plan_file_change(before, files[1]), file, dashboard(serve), lambda _: None)
    assert path.read_text() == before
    assert serve.deployed[-1] == yaml.safe_load(before)


def test_commands_show_the_change_of_a_gate(tmp_path: Path, files: list[Path]) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(text_with(files[0]))
    runner = CliRunner()

    def shown(*arguments: str) -> str:
        result = runner.invoke(r2_serve_command, [*arguments, "--config", str(path), "--dry-run"])
        assert result.exit_code == 0, result.output
        return result.output.replace("\n", "")

    assert f"gate g of gated: {files[0]} -> {files[1]}" in shown("publish", str(files[1]))
    path.write_text(plan_file_change(path.read_text(), files[1]).routed)
    assert f"gate g of gated: {files[1]} -> {files[0]}" in shown("rollback", "--gate", "g")
    result = runner.invoke(r2_serve_command, ["rollback", "--config", str(path)])
    assert result.exit_code != 0 and "name what to roll back" in result.output


# -- trials --

SHARES = TrialShares(shadow=0.05, canary=0.1)


def rollout_in(text: str) -> dict[str, Any]:
    router = application(text, "r2")["deployments"][0]
    return dict(router["user_config"].get("rollouts", {}))


def ended(text: str, action: Any) -> str:
    pool = Pool(text)
    return plan_end(text, action, pool.router_app, pool.rollouts).routed


def test_gate_goes_on_trial_and_the_present_one_stays(files: list[Path]) -> None:
    after = plan_file_change(text_with(files[0]), files[1], shares=SHARES)
    assert after.candidate == "g1"
    assert gate_in(after.routed) == {"file": str(files[0])}
    (rollout,) = rollout_in(after.routed).values()
    change = {"gates": {"g": {"file": str(files[1]), "earlier": [str(files[0])]}}}
    assert rollout == {"candidate": "g1", "change": change, "shadow": 0.05, "canary": 0.1}
    other_shares = plan_file_change(after.routed, files[1], shares=TrialShares(canary=0.5)).routed
    assert rollout_in(other_shares)["gated"]["canary"] == 0.5


def test_promoted_gate_is_used_and_rolled_back_as_a_published_one(files: list[Path]) -> None:
    tried = plan_file_change(text_with(files[0]), files[1], shares=SHARES).routed
    promoted = ended(tried, "promoted")
    assert gate_in(promoted) == {"file": str(files[1]), "earlier": [str(files[0])]}
    assert gate_in(plan_file_rollback(promoted, gate="g").routed) == {"file": str(files[0])}
    withdrawn = ended(tried, "withdrawn")
    assert (gate_in(withdrawn), rollout_in(withdrawn)) == ({"file": str(files[0])}, {})


def test_second_candidate_has_to_wait(files: list[Path]) -> None:
    tried = plan_file_change(text_with(files[0]), files[1], shares=SHARES).routed
    for shares in (None, SHARES):
        with pytest.raises(ConfigError, match=r"candidate 'g1' is on trial for 'gated': end that first"):
            plan_file_change(tried, files[2], shares=shares)


def test_every_router_reads_a_gate_before_it_is_tried(tmp_path: Path, files: list[Path]) -> None:
    path, told = tmp_path / "serve_config.yaml", list[str]()
    path.write_text(text_with(files[0]))
    serve, file = FakeServe(path.read_text()), ConfigFile(path)
    change = plan_file_change(file.original, files[1], shares=SHARES)
    route_file(change, file, dashboard(serve), told.append)
    assert CHECK_IMPORT_PATH in {app["import_path"] for app in serve.deployed[0]["applications"]}
    assert told[-1].endswith(f"gate g of gated tries {files[1]}")
    file, pool = ConfigFile(path), Pool(path.read_text())
    plan = plan_end(file.original, "promoted", pool.router_app, pool.rollouts)
    end_trial(plan, file, dashboard(serve), told.append)
    assert gate_in(path.read_text())["file"] == str(files[1])


@pytest.mark.parametrize(
    ("name", "candidate"), [("gsm-0002.json", "gsm-0002"), ("a b+c.json", "a-b-c"), ("..json", "fit")]
)
def test_candidate_has_the_name_of_its_file(name: str, candidate: str) -> None:
    assert candidate_name(Path(name)) == candidate


# -- plan_file --


def virtual_in(text: str) -> dict[str, Any]:
    router = application(text, "r2")["deployments"][0]
    return dict(router["user_config"]["virtual_models"]["gated"])


def test_plan_file_is_published_tried_and_rolled_back(tmp_path: Path, files: list[Path]) -> None:
    plans = [fitted_plan(tmp_path / f"plan-{i}.json") for i in range(3)]
    text = text_with(files[0], plan="auto")
    with pytest.raises(ConfigError, match=r"name one of .* with --virtual-model"):
        plan_file_change(text, plans[0])
    one = plan_file_change(text, plans[0], virtual_models=["gated"]).routed
    assert virtual_in(one)["plan_file"] == str(plans[0])
    two = plan_file_change(one, plans[1]).routed
    assert virtual_in(two)["earlier_plan_files"] == [str(plans[0])]
    back = plan_file_rollback(two).routed
    assert (virtual_in(back)["plan_file"], "earlier_plan_files" in virtual_in(back)) == (str(plans[0]), False)
    tried = plan_file_change(two, plans[2], shares=SHARES)
    assert (tried.candidate, virtual_in(tried.routed)["plan_file"]) == ("plan-2", str(plans[1]))
    promoted = virtual_in(ended(tried.routed, "promoted"))
    assert promoted["plan_file"] == str(plans[2])
    assert promoted["earlier_plan_files"] == [str(plans[0]), str(plans[1])]


def test_plan_file_without_effect_is_refused(tmp_path: Path, files: list[Path]) -> None:
    text = text_with(files[0], plan="never")
    with pytest.raises(ConfigError, match=r"no effect with `plan: never`"):
        plan_file_change(text, fitted_plan(tmp_path / "plan.json"), virtual_models=["gated"])
