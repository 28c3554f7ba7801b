"""A fitted gate is published into the running router and rolled back, without a cluster."""

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
from r2_serve.ops.publishing.gates import CHECK_IMPORT_PATH, plan_gate, plan_gate_rollback, route_gate
from r2_serve.ops.publishing.steps import ConfigFile
from tests.ops.test_publishing import FakeServe, application, dashboard, text_of
from tests.support.scripted_pool import LARGE, PICKER, PLANNER, SMALL


def fitted(path: Path, reference: str = LARGE) -> Path:
    """A fitted file whose reference answers alone."""
    policy = FittedPolicy(reference=reference, expected_difference=0.0, expected_cost_ratio=1.0)
    write_policy(path, PolicyFile(made="now", book="b", tasks=1, grader="number", policy=policy))
    return path


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
        text = plan_gate(text, path).routed
    assert gate_in(text) == {"file": str(files[3]), "earlier": [str(files[1]), str(files[2])]}
    assert text.startswith("# the pool\n")


def test_rollback_goes_to_the_file_before_and_further_back(files: list[Path]) -> None:
    text = plan_gate(plan_gate(text_with(files[0]), files[1]).routed, files[2]).routed
    once = plan_gate_rollback(text, "g")
    assert (once.file, once.moves) == (str(files[1]), {"gated": str(files[2])})
    assert gate_in(once.routed) == {"file": str(files[1]), "earlier": [str(files[0])]}
    assert gate_in(plan_gate_rollback(once.routed, "g").routed) == {"file": str(files[0])}
    assert plan_gate_rollback(text, "g", to=str(files[0])).file == str(files[0])


def test_file_that_does_not_fit_is_refused_before_anything_changes(tmp_path: Path, files: list[Path]) -> None:
    text = text_with(files[0])
    with pytest.raises(ConfigError, match=r"asks \['gpt-9'\], which the pool"):
        plan_gate(text, fitted(tmp_path / "other.json", "gpt-9"))
    with pytest.raises(ConfigError, match=r"uses .* already: a new fit needs a new path"):
        plan_gate(text, files[0])
    with pytest.raises(ConfigError, match="no virtual model has a fitted gate 'h'"):
        plan_gate(text, files[1], gate="h")
    with pytest.raises(ConfigError, match=r"name the gate with --gate: the fitted gates are none"):
        plan_gate(text_of(), files[1])
    with pytest.raises(ConfigError, match="has no such earlier file"):
        plan_gate_rollback(text, "g")


def test_every_router_reads_the_file_before_it_is_routed_to(tmp_path: Path, files: list[Path]) -> None:
    path, told = tmp_path / "serve_config.yaml", list[str]()
    path.write_text(text_with(files[0]))
    serve, file = FakeServe(path.read_text()), ConfigFile(path)
    route_gate(plan_gate(file.original, files[1]), file, dashboard(serve), told.append)
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
    with pytest.raises(PublishError, match=r"gate 'g' was not published, .*1 of 2"):
        route_gate(plan_gate(before, files[1]), file, dashboard(serve), lambda _: None)
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
    path.write_text(plan_gate(path.read_text(), files[1]).routed)
    assert f"gate g of gated: {files[1]} -> {files[0]}" in shown("rollback", "--gate", "g")
    result = runner.invoke(r2_serve_command, ["rollback", "--config", str(path)])
    assert result.exit_code != 0 and "name what to roll back" in result.output
