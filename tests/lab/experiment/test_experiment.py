"""Experiments: deployed variants, finished cells, compared results. The runs' figures are given; no Ray
runs."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import ConfigError, ServeApiError
from r2_serve.lab.experiment.cells import Cell, ExperimentPlan, plan
from r2_serve.lab.experiment.clusters import ClusterSite, LocalSite, command, is_at_rest
from r2_serve.lab.experiment.config import LoadedExperiment, Variant, load_experiment
from r2_serve.lab.experiment.report import DIFFERENCE, ROW, print_results
from r2_serve.lab.experiment.runner import CellFailed, run_cell, run_cells, to_run
from r2_serve.lab.experiment.session import run_experiment, write_results
from r2_serve.lab.experiment.variants import merged, scaled_deployments, varied
from r2_serve.lab.load.records import ReplicaCount, TimelineSample
from r2_serve.lab.load.session import write_summary
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.workload import SCRIPTED_POOL
from r2_serve.serve_config.document import Document, read_yaml
from tests.lab.load.test_load_summary import info, record, sample
from tests.support.load_endpoint import serving, sse_app, whole

AHEAD = {
    "policy": {
        "policy_function": "r2_serve.scaling.serve_policy:PlanAhead",
        "policy_kwargs": {"cold_start_s": 5},
    }
}

NO_NODES = httpx.Response(200, json={"data": {"result": {"result": []}}})


def base() -> dict[str, Any]:
    document = read_yaml(SCRIPTED_POOL)
    assert isinstance(document, Document)
    return document.raw


def scaling(raw: dict[str, Any], app: str) -> dict[str, Any]:
    (found,) = (
        d["autoscaling_config"] for a in raw["applications"] if a["name"] == app for d in a["deployments"]
    )
    return dict(found)


def experiment(directory: Path, **changes: Any) -> LoadedExperiment:
    fields = {
        "name": "e", "config": "scripted", "workloads": ["on-off"], "seeds": [0, 1], "gpus": 4,
        "variants": {"stock": {}, "ahead": {"autoscaling_config": AHEAD}}, **changes,
    }  # fmt: skip
    (directory / "e.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    return load_experiment(directory / "e.yaml")


def done(cell: Cell, *, latency_s: float = 1.0, replicas: int = 2) -> None:
    """Writes a finished run of ten requests, with a number of replicas of each model for ten seconds."""
    cell.directory.mkdir(parents=True)
    records = [record(i, float(i), latency_s, ttft_s=0.5) for i in range(10)]
    (cell.directory / "requests.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records))
    counts = {"m-small/Model": (replicas, 0), "m-large/Model": (replicas, 0), "r2/Router": (1, 0)}
    timeline: list[TimelineSample] = [sample(t, counts) for t in (0.0, 10.0)]
    (cell.directory / "timeline.jsonl").write_text("".join(s.model_dump_json() + "\n" for s in timeline))
    write_summary(cell.directory, info(workload=cell.workload.name, seed=cell.seed))
    cell.mark()


# -- variants --------------------------------------------------------------------------------------------


def test_variant_is_merged_into_every_deployment_that_scales_and_into_no_other() -> None:
    patch = {
        "autoscaling_config": {**AHEAD, "look_back_period_s": None},
        "applications": {"m-large": {"autoscaling_config": {"max_replicas": 9}}},
    }
    raw = varied(base(), "ahead", Variant.model_validate(patch))
    small, large = scaling(raw, "m-small"), scaling(raw, "m-large")
    assert small["policy"] == large["policy"] == AHEAD["policy"]
    assert (small["max_replicas"], large["max_replicas"]) == (4, 9)
    assert "look_back_period_s" not in small and "look_back_period_s" in scaling(base(), "m-small")
    others = [app for app in raw["applications"] if app["name"] not in ("m-small", "m-large")]
    assert others == [app for app in base()["applications"] if app["name"] not in ("m-small", "m-large")]
    assert list(scaled_deployments(raw).items()) == [("m-small/Model", 0), ("m-large/Model", 0)]


def test_variant_may_change_the_routing() -> None:
    patch = {"routing": {"virtual_models": {"r2": {"spill": {"calls_per_replica": 8}}}}}
    raw = varied(base(), "spill", Variant.model_validate(patch))
    virtual = raw["applications"][-1]["deployments"][0]["user_config"]["virtual_models"]["r2"]
    assert virtual["spill"] == {"calls_per_replica": 8} and virtual["pool"] == ["small", "large"]


def test_merging_leaves_its_inputs_alone() -> None:
    value = {"a": {"b": 1, "c": 2}}
    assert merged(value, {"a": {"b": None, "d": 3}}) == {"a": {"c": 2, "d": 3}}
    assert value == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"applications": {"m-smal": {}}}, "did you mean 'm-small'?"),
        ({"applications": {"m-picker": {}}}, "no deployment of m-picker has an autoscaling_config"),
        ({"autoscaling_config": {"max_replica": 3}}, "did you mean 'max_replicas'?"),
        (
            {"autoscaling_config": {"policy": {"policy_function": "no_such:policy"}}},
            "importing 'no_such' failed",
        ),
        ({"autoscaling_config": {"policy": {"policy_function": "math:sine"}}}, "module 'math' has no 'sine'"),
        (
            {"routing": {"virtual_models": {"r2": {"pool": ["tiny"]}}}},
            "variant 'wrong' makes no valid config",
        ),
    ],
)
def test_variant_that_makes_no_valid_config_is_refused_before_anything_runs(
    tmp_path: Path, variant: dict[str, Any], told: str
) -> None:
    loaded = experiment(tmp_path, variants={"stock": {}, "wrong": variant})
    with pytest.raises(ConfigError) as e:
        plan(loaded, tmp_path / "out", "local")
    assert told in e.value.message


def test_wrong_keys_of_an_experiment_are_named_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as e:
        experiment(tmp_path, seed=3, variants={"stock": {"autoscaling": {}}})
    assert "seed: unknown key; did you mean 'seeds'?" in e.value.message
    assert "variants.stock.autoscaling: unknown key; did you mean 'autoscaling_config'?" in e.value.message


# -- cells -----------------------------------------------------------------------------------------------


def test_variants_take_turns_seed_by_seed_and_get_the_same_requests(tmp_path: Path) -> None:
    loaded = experiment(tmp_path)
    planned = plan(loaded, tmp_path / "out", "local")
    assert [(cell.variant, cell.seed) for cell in planned.cells] == [
        ("stock", 0),
        ("ahead", 0),
        ("stock", 1),
        ("ahead", 1),
    ]
    arguments = command(planned.cells[1], LocalSite(loaded.experiment), loaded.experiment)
    assert arguments[arguments.index("--seed") + 1] == "0" and arguments[arguments.index("--gpus") + 1] == "4"
    assert arguments[arguments.index("--config") + 1].endswith("configs/ahead.yaml")


def test_finished_cells_are_not_repeated_and_new_seeds_are_added(tmp_path: Path) -> None:
    planned = plan(experiment(tmp_path), tmp_path / "out", "local")
    done(planned.cells[0])
    assert to_run(planned.cells, set_aside=False) == list(planned.cells[1:])
    more = plan(experiment(tmp_path, seeds=[0, 1, 2]), tmp_path / "out", "local")
    assert len(to_run(more.cells, set_aside=False)) == 5


def test_interrupted_run_is_run_again(tmp_path: Path) -> None:
    planned = plan(experiment(tmp_path), tmp_path / "out", "local")
    done(planned.cells[0])
    write_summary(planned.cells[0].directory, info(is_interrupted=True))
    assert to_run(planned.cells, set_aside=False) == list(planned.cells)


def test_run_of_another_config_is_never_used_for_this_one(tmp_path: Path) -> None:
    done(plan(experiment(tmp_path), tmp_path / "out", "local").cells[1])
    changed = {"stock": {}, "ahead": {"autoscaling_config": {**AHEAD, "max_replicas": 2}}}
    planned = plan(experiment(tmp_path, variants=changed), tmp_path / "out", "local")
    with pytest.raises(ConfigError, match="--set-aside"):
        to_run(planned.cells, set_aside=False)
    assert len(to_run(planned.cells, set_aside=True)) == 4
    elsewhere = plan(experiment(tmp_path), tmp_path / "out", "http://head:8000/v1")
    with pytest.raises(ConfigError, match=r"ahead.* of another config"):
        to_run(elsewhere.cells, set_aside=False)


def test_run_without_figures_ends_the_experiment_with_its_output(tmp_path: Path) -> None:
    """The command fails at once, as its workload is missing, and does not count as done."""
    loaded = experiment(tmp_path)
    planned = plan(loaded, tmp_path / "out", "local")
    planned.cells[0].workload_path.unlink()
    with pytest.raises(CellFailed) as e:
        run_cell(planned.cells[0], LocalSite(loaded.experiment), loaded.experiment, lambda said, t_s: None)
    assert "cannot read" in e.value.message and "on-off.yaml" in e.value.message
    assert len(to_run(planned.cells, set_aside=False)) == 4


def test_failed_run_is_not_replaced_by_an_earlier_one(tmp_path: Path) -> None:
    done(plan(experiment(tmp_path), tmp_path / "out", "local").cells[1])
    changed = {"stock": {}, "ahead": {"autoscaling_config": {**AHEAD, "max_replicas": 2}}}
    loaded = experiment(tmp_path, variants=changed)
    planned = plan(loaded, tmp_path / "out", "local")
    cell = planned.cells[1]
    cell.workload_path.unlink()
    with pytest.raises(CellFailed):
        run_cell(cell, LocalSite(loaded.experiment), loaded.experiment, lambda said, t_s: None)
    assert cell.summary() is None
    assert (cell.directory.with_name("seed-0.1") / "summary.json").exists()
    assert len(to_run(planned.cells, set_aside=False)) == 4


# -- simulated cells -------------------------------------------------------------------------------------


def test_simulated_experiment_needs_no_cluster_and_keeps_its_finished_cells(tmp_path: Path) -> None:
    """One variant is simulated on other hardware, and with a share of a GPU for each small replica."""
    (tmp_path / "hw.yaml").write_text("cluster: {nodes: {gpus_per_node: 1, max_nodes: 8, boot_s: 2}}")
    shared = {
        "hardware": {"cluster": {"nodes": {"min_nodes": 2}}},
        "forecast": "calls",
        "autoscaling_config": AHEAD,
        "applications": {"m-small": {"options": {"ray_actor_options": {"num_gpus": 0.5}}}},
    }
    loaded = experiment(tmp_path, hardware="hw.yaml", variants={"stock": {}, "shared": shared})
    assert loaded.hardware["shared"].cluster.nodes.min_nodes == 2  # type: ignore[union-attr]
    console = Console(file=io.StringIO(), width=200)
    results = run_experiment(loaded, tmp_path / "out", console, is_simulated=True)
    assert (results.target, len(results.cells)) == ("simulated", 4)
    assert all(cell.node_s and cell.gpu_s for cell in results.cells)
    assert "node-s, %" in console.file.getvalue()  # type: ignore[attr-defined]
    planned = plan(loaded, tmp_path / "out", "simulated")
    assert to_run(planned.cells, set_aside=False) == []
    with pytest.raises(ConfigError, match="variant 'shared' changes hardware or forecast: only --simulate"):
        run_experiment(loaded, tmp_path / "real", console)


def test_hardware_of_a_variant_is_checked_before_any_run(tmp_path: Path) -> None:
    cluster = {"gpus": 2, "nodes": {"gpus_per_node": 1, "max_nodes": 2}}
    with pytest.raises(ConfigError, match=r"variant 'wrong': its hardware is not valid: cluster: .*give one"):
        experiment(tmp_path, variants={"wrong": {"hardware": {"cluster": cluster}}})


# -- a running cluster -----------------------------------------------------------------------------------


def counted(running: int, starting: int = 0, stopping: int = 0, target: int | None = None) -> ReplicaCount:
    return ReplicaCount(
        running=running, starting=starting, stopping=stopping, target=running if target is None else target
    )


def test_cluster_is_at_rest_when_every_scaled_deployment_is_back_at_its_least() -> None:
    least = {"m-small/Model": 0, "m-large/Model": 1}
    rest = {"m-small/Model": counted(0), "m-large/Model": counted(1), "r2/Router": counted(3)}
    assert is_at_rest(rest, least)
    for other in (counted(2), counted(1, starting=1), counted(1, stopping=1), counted(1, target=2)):
        assert not is_at_rest({**rest, "m-large/Model": other}, least)


def test_each_variant_is_deployed_to_a_running_cluster_before_its_load(tmp_path: Path) -> None:
    deployed: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            deployed.append(json.loads(request.content))
            return httpx.Response(200)
        if "nodes" in request.url.path:
            return NO_NODES
        names = [app["name"] for app in base()["applications"]]
        idle = {"replicas": [], "target_num_replicas": 0}
        return httpx.Response(
            200,
            json={
                "applications": {
                    name: {"status": "RUNNING", "deployments": {"Model": idle}} for name in names
                }
            },
        )

    loaded = experiment(tmp_path)
    planned: ExperimentPlan = plan(loaded, tmp_path / "out", "http://head:8000/v1")
    dashboard = Dashboard(
        "http://head:8265", transport=httpx.MockTransport(answer), environ={"RAY_AUTH_MODE": "disabled"}
    )
    site = ClusterSite(loaded.experiment, planned, "http://head:8000/v1", dashboard)
    site.prepare(planned.cells[1])
    assert deployed == [planned.configs["ahead"]]
    assert site.options(planned.cells[1]) == [
        "--url",
        "http://head:8000/v1",
        "--dashboard",
        "http://head:8265",
    ]


def test_load_begins_when_the_replicas_are_at_the_least_of_its_own_variant(tmp_path: Path) -> None:
    loaded = experiment(
        tmp_path, settle_s=0.01, variants={"stock": {}, "warm": {"autoscaling_config": {"min_replicas": 1}}}
    )
    planned = plan(loaded, tmp_path / "out", "http://head:8000/v1")
    scaled = {name.split("/")[0] for name in planned.scaled}

    def answer(request: httpx.Request) -> httpx.Response:
        warm = {"replicas": [{"state": "RUNNING"}], "target_num_replicas": 1}
        apps = {
            app["name"]: {
                "status": "RUNNING",
                "deployments": {"Model": warm} if app["name"] in scaled else {},
            }
            for app in base()["applications"]
        }
        return NO_NODES if "nodes" in request.url.path else httpx.Response(200, json={"applications": apps})

    dashboard = Dashboard(
        "http://head:8265", transport=httpx.MockTransport(answer), environ={"RAY_AUTH_MODE": "disabled"}
    )
    site = ClusterSite(loaded.experiment, planned, "http://head:8000/v1", dashboard)
    site.prepare(planned.cells[1])
    with pytest.raises(ServeApiError, match=r"not at their least number: .*1 running"):
        site.prepare(planned.cells[0])


# -- results ---------------------------------------------------------------------------------------------


def test_results_are_means_over_seeds_and_differences_are_paired(tmp_path: Path) -> None:
    loaded, out = experiment(tmp_path, gpu_usd_per_hour=3.6), tmp_path / "out"
    planned = plan(loaded, out, "local")
    took = {("stock", 0): (1.0, 2), ("ahead", 0): (1.0, 1), ("stock", 1): (3.0, 4), ("ahead", 1): (1.0, 4)}
    for cell in planned.cells:
        latency_s, replicas = took[cell.variant, cell.seed]
        done(cell, latency_s=latency_s, replicas=replicas)  # the objective is 2 s
    results = write_results(loaded, planned, out, "local")
    stock, ahead = results.rows
    assert (stock.slo_attainment.mean, stock.slo_attainment.low, ahead.slo_attainment.mean) == (0.5, 0.0, 1.0)
    assert (stock.replica_s.mean, ahead.replica_s.mean) == (
        60.0,
        50.0,
    )  # two models for 10 s; the router does not scale
    (difference,) = results.differences
    assert (difference.variant, difference.against, difference.num_seeds) == ("ahead", "stock", 2)
    assert (difference.slo_attainment.low, difference.slo_attainment.high) == (0.0, 1.0)
    assert (difference.replica_s.low, difference.replica_s.high) == (-0.5, 0.0)
    text = (out / "report.html").read_text()
    for told in (
        "Experiment: e",
        "4 of 4 runs done",
        "60 [40, 80]",
        "50 [20, 80]",
        "m-small/Model",
        "on-off/ahead/seed-1/report.html",
        "-25.0 [-50.0, +0.0]",
    ):
        assert told in text
    assert "<script" not in text


def test_finished_cells_are_reported_while_others_are_missing(tmp_path: Path) -> None:
    loaded, out = experiment(tmp_path), tmp_path / "out"
    planned = plan(loaded, out, "local")
    done(planned.cells[0])
    results = write_results(loaded, planned, out, "local")
    assert [row.variant for row in results.rows] == ["stock"] and results.differences == ()
    assert "1 of 4 runs done" in (out / "report.html").read_text()


def test_missing_figures_are_not_reported_as_zero(tmp_path: Path) -> None:
    """Without answered requests and scaled deployments there is no latency, share or picture, but a
    report."""
    pool = base()
    for deployment in (
        deployment for application in pool["applications"] for deployment in application["deployments"]
    ):
        deployment.pop("autoscaling_config", None)
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(pool))
    spill = {"routing": {"virtual_models": {"r2": {"spill": {"calls_per_replica": 8}}}}}
    loaded, out = (
        experiment(tmp_path, config="pool.yaml", seeds=[0], variants={"stock": {}, "spill": spill}),
        tmp_path / "out",
    )
    planned = plan(loaded, out, "local")
    for cell in planned.cells:
        done(cell)
    (planned.cells[1].directory / "requests.jsonl").write_text(
        record(0, 0.0, 1.0, outcome="failed", status=503).model_dump_json() + "\n"
    )
    write_summary(planned.cells[1].directory, info(workload=planned.cells[1].workload.name))
    results = write_results(loaded, planned, out, "local")
    assert results.scaled == () and results.rows[1].p95_s is None
    (difference,) = results.differences
    assert (difference.p95_s, difference.replica_s) == (None, None)
    text = (out / "report.html").read_text()
    assert "2 of 2 runs done" in text and "Replicas over time" not in text
    told = io.StringIO()
    print_results(results, Console(file=told, width=200))
    assert " - " in told.getvalue()


def test_nothing_to_run_starts_nothing(tmp_path: Path) -> None:
    loaded = experiment(tmp_path)
    run_cells([], 4, LocalSite(loaded.experiment), loaded.experiment, Console(quiet=True))


# -- the command -----------------------------------------------------------------------------------------


def test_running_cluster_needs_both_addresses(tmp_path: Path) -> None:
    experiment(tmp_path)
    ended = CliRunner().invoke(app, ["experiment", str(tmp_path / "e.yaml"), "--url", "http://head:8000/v1"])
    assert ended.exit_code == 1 and "--dashboard" in ended.output


def test_shipped_experiments_make_valid_configs(tmp_path: Path) -> None:
    from r2_serve.lab.experiment.cli import EXAMPLES

    paths = sorted(EXAMPLES.glob("*.yaml"))
    assert paths
    for path in paths:
        loaded = load_experiment(path)
        assert loaded.experiment.name == path.stem
        assert plan(loaded, tmp_path / path.stem, "local").cells


def test_repeated_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds: \[1\] stand there more than once"):
        experiment(tmp_path, seeds=[0, 1, 1])


def test_tables_are_whole_in_a_narrow_terminal(tmp_path: Path) -> None:
    loaded = experiment(tmp_path)
    planned = plan(loaded, tmp_path / "out", "local")
    for cell in planned.cells:
        done(cell)
        cell.mark()
    told = io.StringIO()
    print_results(write_results(loaded, planned, tmp_path / "out", "local"), Console(file=told, width=40))
    assert (
        all(column in told.getvalue() for column in (*ROW, *DIFFERENCE)) and "\u2026" not in told.getvalue()
    )


def test_interrupted_experiment_ends_its_run_in_order(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(slow_workload()))
    loaded = experiment(tmp_path, workloads=["w.yaml"])
    planned = plan(loaded, tmp_path / "out", "local")
    cell = planned.cells[0]

    def interrupt(said: str, t_s: float) -> None:
        raise KeyboardInterrupt

    with scripted_endpoint() as url, pytest.raises(KeyboardInterrupt):
        run_cell(cell, Endpoint(url), loaded.experiment, interrupt)
    summary = LoadSummary.model_validate_json((cell.directory / "summary.json").read_text())
    assert summary.info.is_interrupted and cell.summary() is None
    write_summary(cell.directory, summary.info.model_copy(update={"is_interrupted": False}))
    assert cell not in to_run(planned.cells, set_aside=False), (
        "killed after its run had ended, it is known whose run it was"
    )


def slow_workload() -> dict[str, Any]:
    shapes = [{"waves": [{"model": "small", "words": 5}]}]
    return {
        "name": "slow", "duration_s": 120, "arrivals": {"kind": "constant", "rate_per_s": 5},
        "tasks": {"kind": "synthetic", "shapes": shapes},
    }  # fmt: skip


class Endpoint(LocalSite):
    """An endpoint that is running already."""

    target = "endpoint"

    def __init__(self, url: str) -> None:
        self._url = url

    def options(self, cell: Cell) -> list[str]:
        return ["--url", self._url]

    def environment(self, cell: Cell) -> dict[str, str]:
        return dict(os.environ)


@contextmanager
def scripted_endpoint() -> Iterator[str]:
    """Serves in a thread of its own."""

    async def answer(number: int) -> list[bytes]:
        return whole()

    ready, ended, urls = threading.Event(), threading.Event(), list[str]()

    async def serve() -> None:
        async with serving(sse_app(answer)) as url:
            urls.append(url)
            ready.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield urls[0]
    finally:
        ended.set()
        thread.join()
