"""Publishing without a cluster: what changes in the file, what is refused, what is undone. Serve's REST side
is a small fake."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from r2_serve.adapters import write_adapter
from r2_serve.cli import app as r2_serve_command
from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import ConfigError, PublishError, ServeApiError
from r2_serve.files import whole_file
from r2_serve.ops.publishing.config_file import changed, with_adapter
from r2_serve.ops.publishing.plan import plan_publication, plan_rollback
from r2_serve.ops.publishing.steps import ConfigFile, publish, roll_back
from tests import ROOT
from tests.support.scripted_pool import scripted_config
from tests.support.small_adapters import adapter, manifest

REFERENCE = (ROOT / "serve_config.yaml").read_text()
EMBEDDED = (ROOT / "r2_serve/embedded/serve_config.yaml").read_text()


def text_of(**changes: Any) -> str:
    return "# the pool\n" + yaml.safe_dump(scripted_config(**changes), sort_keys=False)


def application(text: str, name: str) -> dict[str, Any]:
    (found,) = (app for app in yaml.safe_load(text)["applications"] if app["name"] == name)
    return dict(found)


def loaded_in(text: str, app: str) -> list[str]:
    return list(application(text, app)["deployments"][0].get("user_config", {}).get("adapters", {}))


def routed_to(text: str, virtual_model: str = "r2", module: str = "decomposer") -> str | None:
    router = application(text, "r2")["deployments"][0]
    adapter: str | None = router["user_config"]["virtual_models"][virtual_model][module].get("adapter")
    return adapter


def published(text: str, parent: Path, *names: str, **options: Any) -> str:
    for name in names:
        text = plan_publication(text, adapter(parent, name), **options).routed
    return text


# -- the file --------------------------------------------------------------------------------------------


def removed_and_added(before: str, after: str) -> tuple[list[str], list[str]]:
    lines = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    return [line[2:] for line in lines if line[0] == "-"], [
        line[2:].strip() for line in lines if line[0] == "+"
    ]


def test_change_of_the_reference_adds_four_lines_and_changes_no_other(tmp_path: Path) -> None:
    directory = adapter(tmp_path, "dec-0001", base="router-base")
    plan = plan_publication(REFERENCE, directory)
    removed, added = removed_and_added(REFERENCE, plan.routed)
    assert removed == []
    assert sorted(added) == sorted(
        ["user_config:", "adapters:", f"dec-0001: {directory}", "adapter: dec-0001"]
    )
    assert (plan.virtual_models, loaded_in(plan.routed, plan.app)) == (("r2",), ["dec-0001"])
    assert (routed_to(plan.loaded), routed_to(plan.routed)) == (None, "dec-0001")


def test_new_keys_stand_above_the_heading_of_the_next_section() -> None:
    text = (
        "applications:\n- name: a\n  deployments:\n  - name: Model\n    num_replicas: 1\n\n"
        "# -- the router --\n- name: r2\n"
    )
    after = changed(text, with_adapter("a", "d1", "/adapters/d1"))
    assert after.index("/adapters/d1") < after.index("# -- the router --")
    assert after.endswith("\n\n# -- the router --\n- name: r2\n")


def test_change_of_the_embedded_file_rewrites_one_line_and_keeps_the_other_domain(tmp_path: Path) -> None:
    plan = plan_publication(EMBEDDED, whole(tmp_path, "words-0002", "words-decomposer", "compact"))
    removed, added = removed_and_added(EMBEDDED, plan.routed)
    assert (
        len(removed) == 1
        and removed[0]
        .strip()
        .replace("model: words-decomposer", "model: words-decomposer, adapter: words-0002")
        in added
    )
    assert len(added) == 4
    assert (plan.app, plan.virtual_models, routed_to(plan.routed, "r2-scan")) == (
        "m-words-decomposer",
        ("r2",),
        None,
    )


def whole(parent: Path, name: str, base: str, codec: str) -> Path:
    source = parent / "whole"
    source.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (source / file).write_text(file)
    return write_adapter(source, parent, manifest(name, kind="full", base=base, codec=codec))


def test_shared_part_of_the_file_is_refused() -> None:
    text = "applications:\n" + "".join(
        f"- name: {name}\n  deployments: [{{name: Model, user_config: {value}}}]\n"
        for name, value in (("a", "&x {}"), ("b", "*x"))
    )
    with pytest.raises(ConfigError, match="YAML anchor"):
        changed(text, with_adapter("a", "dec-0001", "/adapters/dec-0001"))


def test_previous_text_is_kept_and_changes_by_others_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text("first")
    path.chmod(0o640)
    file = ConfigFile(path)
    file.write("second")
    file.write("third")
    assert (path.read_text(), file.previous.read_text(), path.stat().st_mode & 0o777) == (
        "third",
        "first",
        0o640,
    )
    path.write_text("somebody else's")
    with pytest.raises(PublishError, match="changed by somebody else"):
        file.write("fourth")
    assert path.read_text() == "somebody else's"
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, file.previous.name}


def test_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("first")
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    with whole_file(tmp_path / "link.yaml") as file:
        file.write("second")
    assert (tmp_path / "link.yaml").is_symlink() and (tmp_path / "real.yaml").read_text() == "second"


# -- planning --------------------------------------------------------------------------------------------


def test_two_earlier_adapters_stay_loaded_and_rollback_uses_the_previous_one(tmp_path: Path) -> None:
    text = published(text_of(), tmp_path, "d1", "d2", "d3")
    assert (loaded_in(text, "m-planner"), routed_to(text)) == (["d1", "d2", "d3"], "d3")
    text = published(text, tmp_path, "d4")
    assert loaded_in(text, "m-planner") == ["d2", "d3", "d4"]
    text = plan_rollback(text, "decomposer").routed
    assert routed_to(text) == "d3"
    text = published(text, tmp_path, "d5")
    assert loaded_in(text, "m-planner") == ["d4", "d3", "d5"]
    assert plan_rollback(text, "decomposer").moves == {"r2": ("d5", "d3")}
    assert loaded_in(published(text, tmp_path, "d6", keep=1), "m-planner") == ["d5", "d6"]


def test_decomposer_and_allocator_on_one_base_keep_each_others_adapters(tmp_path: Path) -> None:
    text = text_of(virtual={"allocator": {"model": "planner"}})
    for name in ("d1", "d2", "d3"):
        text = plan_publication(text, adapter(tmp_path, name), keep=1).routed
        text = plan_publication(
            text, adapter(tmp_path, name.replace("d", "a"), module="allocator"), keep=1
        ).routed
    assert set(loaded_in(text, "m-planner")) == {"d2", "a2", "d3", "a3"}
    assert (routed_to(text), routed_to(text, module="allocator")) == ("d3", "a3")
    assert plan_rollback(text, "allocator").moves == {"r2": ("a3", "a2")}
    with pytest.raises(ConfigError, match="'a2' was trained as allocator, not as decomposer"):
        plan_rollback(text, "decomposer", to="a2")


def test_error_for_a_missing_earlier_adapter_names_the_way_to_the_base(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="nothing to roll back: no virtual model uses an adapter for its decomposer"
    ):
        plan_rollback(text_of(), "decomposer")
    text = published(text_of(), tmp_path, "d1")
    with pytest.raises(ConfigError, match=r"'d1' is the earliest decomposer adapter.*`--to base`"):
        plan_rollback(text, "decomposer")
    back = plan_rollback(text, "decomposer", to="base").routed
    assert routed_to(back) is None and loaded_in(back, "m-planner") == ["d1"]
    assert routed_to(plan_rollback(back, "decomposer", to="d1").routed) == "d1"
    with pytest.raises(
        ConfigError, match=r"no adapter 'd11' is loaded for any decomposer; did you mean 'd1'\?"
    ):
        plan_rollback(text, "decomposer", to="d11")
    with pytest.raises(ConfigError, match="is 'd1' already"):
        plan_rollback(text, "decomposer", to="d1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec_version": 99}, "version 99 of codec 'instruct'; this software has version"),
        ({"codec": "compact"}, "'planner' speaks 'instruct'"),
        ({"base": "plannr"}, r"'plannr', which the file does not have; did you mean 'planner'\?"),
        ({"base": "small"}, "no virtual model has 'small' as its decomposer"),
        ({"module": "allocator"}, "no virtual model has 'planner' as its allocator"),
    ],
)
def test_adapter_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_publication(text_of(), adapter(tmp_path, "d1", **changes))


def test_loaded_name_and_unknown_virtual_model_are_refused(tmp_path: Path) -> None:
    text = published(text_of(), tmp_path, "d1")
    with pytest.raises(
        ConfigError, match=r"'d1' is loaded in 'm-planner' already.*rollback --module decomposer --to d1"
    ):
        plan_publication(text, tmp_path / "d1")
    with pytest.raises(ConfigError, match="no virtual model 'r3' in the file; known: r2"):
        plan_publication(text, adapter(tmp_path, "d2"), virtual_models=["r3"])


def test_vllm_without_lora_is_refused_before_loading(tmp_path: Path) -> None:
    without = REFERENCE.replace("enable_lora: true, max_loras: 4, max_lora_rank: 64", "max_num_seqs: 64")
    with pytest.raises(ConfigError, match="runs vLLM without LoRA"):
        plan_publication(without, adapter(tmp_path, "d1", base="router-base"))
    with pytest.raises(ConfigError, match="is hosted"):
        plan_publication(REFERENCE, adapter(tmp_path, "d2", base="gpt-4o"))


# -- carrying it out -------------------------------------------------------------------------------------


@dataclass
class FakeServe:
    """Takes configs as Serve does; `failing` maps an application's name to the message with which its deploy
    fails."""

    text: str
    failing: dict[str, str] = field(default_factory=dict)
    status: int = 200
    deployed: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._config = yaml.safe_load(self.text)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.status != 200:
            return httpx.Response(self.status, text="Unauthorized")
        if request.method == "PUT":
            self._config = json.loads(request.content)
            self.deployed.append(self._config)
        return httpx.Response(
            200,
            json={"applications": {app["name"]: self._details(app) for app in self._config["applications"]}},
        )

    def _details(self, app: dict[str, Any]) -> dict[str, Any]:
        fails = app["name"] in self.failing and bool(self.deployed)
        return {
            "status": "DEPLOY_FAILED" if fails else "RUNNING",
            "message": self.failing.get(app["name"], "") if fails else "",
            "source": "declarative",
            "deployed_app_config": app,
        }


def dashboard(serve: FakeServe, **environ: str) -> Dashboard:
    return Dashboard(
        "http://head:8265", transport=httpx.MockTransport(serve), sleep=lambda _: None, environ=environ
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "serve_config.yaml"
    path.write_text(text_of())
    return path


def run_publish(path: Path, serve: FakeServe, directory: Path) -> list[str]:
    file, reported = ConfigFile(path), []
    publish(plan_publication(file.original, directory), file, dashboard(serve), reported.append)
    return reported


def names(config: dict[str, Any]) -> list[str]:
    return [app["name"] for app in config["applications"]]


def test_adapter_is_loaded_then_named_then_used(path: Path, tmp_path: Path) -> None:
    serve = FakeServe(path.read_text())
    reported = run_publish(path, serve, adapter(tmp_path, "d1"))
    loading, named, used = serve.deployed
    assert loading["applications"][-1]["import_path"] == "r2_serve.app:build_adapter_load"
    assert loading["applications"][-1]["args"] == {
        "app": "m-planner",
        "name": "d1",
        "path": str(tmp_path / "d1"),
        "timeout_s": 600.0,
    }
    texts = [yaml.safe_dump(config) for config in (loading, named, used)]
    assert [loaded_in(text, "m-planner") for text in texts] == [[], ["d1"], ["d1"]]
    assert [routed_to(text) for text in texts] == [None, None, "d1"]
    assert used == yaml.safe_load(path.read_text())
    assert [line.split("  ")[-1] for line in reported] == [
        "loaded on every replica of m-planner",
        "named in user_config of m-planner",
        "decomposer of r2 routed to d1",
    ]


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ("publish-d1", "file and routing are as before.*2 of 2 replicas cannot load it"),
        ("m-planner", "nothing was published.*put back and deployed"),
        ("r2", "loaded but not used.*put back and deployed"),
    ],
)
def test_failed_step_is_undone_and_the_error_names_the_adapter_in_force(
    path: Path, tmp_path: Path, failing: str, message: str
) -> None:
    before = path.read_text()
    serve = FakeServe(
        before,
        failing={failing: "Traceback:\n  line\nr2_serve.errors.ConfigError: 2 of 2 replicas cannot load it"},
    )
    with pytest.raises(PublishError, match=message):
        run_publish(path, serve, adapter(tmp_path, "d1"))
    assert serve.deployed[-1] == yaml.safe_load(path.read_text())
    assert routed_to(path.read_text()) is None
    assert failing == "r2" or path.read_text() == before


def test_rolling_back_is_one_deploy(path: Path, tmp_path: Path) -> None:
    path.write_text(published(path.read_text(), tmp_path, "d1", "d2"))
    file, serve = ConfigFile(path), FakeServe(path.read_text())
    roll_back(plan_rollback(file.original, "decomposer"), file, dashboard(serve), lambda _: None)
    assert [routed_to(yaml.safe_dump(config)) for config in serve.deployed] == ["d1"]
    assert (routed_to(path.read_text()), routed_to(file.previous.read_text())) == ("d1", "d2")


def test_cluster_that_runs_another_config_is_not_changed(path: Path, tmp_path: Path) -> None:
    directory = adapter(tmp_path, "d1")
    for change, message in (
        (lambda config: config["applications"].pop(0), "does not run on this cluster: `serve deploy`"),
        (
            lambda config: config["applications"][0]["args"]["engine"].update(delay_s=1.0),
            r"would restart, as its \['args'\]",
        ),
    ):
        running = yaml.safe_load(path.read_text())
        change(running)
        serve = FakeServe(yaml.safe_dump(running))
        with pytest.raises(PublishError, match=message):
            run_publish(path, serve, directory)
        assert serve.deployed == []


def test_rays_token_is_sent_and_its_refusal_is_reported(path: Path, tmp_path: Path) -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json={"applications": {}})

    (tmp_path / "token").write_text("from a file\n")
    for environ in (
        {"RAY_AUTH_TOKEN": "abc"},
        {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        {"RAY_AUTH_MODE": "disabled"},
    ):
        Dashboard("http://head:8265", transport=httpx.MockTransport(answer), environ=environ).applications()
    assert seen == ["Bearer abc", "Bearer from a file", None]
    for status in (401, 403):
        with pytest.raises(ServeApiError, match=r"refuses the token.*RAY_AUTH_TOKEN"):
            run_publish(path, FakeServe(path.read_text(), status=status), adapter(tmp_path, f"d{status}"))


# -- the command line ------------------------------------------------------------------------------------


def run(words: Iterable[str]) -> tuple[int, str]:
    done = CliRunner().invoke(r2_serve_command, list(words))
    return done.exit_code, done.output


def test_dry_run_shows_the_change_and_writes_nothing(path: Path, tmp_path: Path) -> None:
    before = path.read_text()
    code, output = run(
        [
            "publish",
            str(adapter(tmp_path, "d1")),
            "--config",
            str(path),
            "--dry-run",
            "--dashboard",
            "http://127.0.0.1:1",
        ]
    )
    assert code == 0, output
    assert (
        "decomposer of r2: base -> d1" in output
        and "+            adapter: d1" in output
        and "nothing was written" in output
    )
    assert path.read_text() == before and not list(tmp_path.glob("*.previous"))


def test_errors_end_with_status_1_and_say_what_to_do(path: Path, tmp_path: Path) -> None:
    ready = str(adapter(tmp_path, "d1"))
    for words, message in (
        (
            ["publish", ready, "--config", str(path), "--dashboard", "http://127.0.0.1:1"],
            "no Ray dashboard answers",
        ),
        (["publish", str(tmp_path / "nothing"), "--config", str(path)], "no adapter in"),
        (["publish", ready, "--config", str(tmp_path / "none.yaml")], "cannot read"),
        (["rollback", "--module", "decomposer", "--config", str(path)], "nothing to roll back"),
    ):
        code, output = run(words)
        assert (code, message in output) == (1, True), output
