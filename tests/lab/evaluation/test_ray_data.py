"""A run through Ray Data on a real local cluster ends as one on the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from r2_serve.client import new_client
from r2_serve.errors import EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.lab.evaluation.asker import HttpAsker
from r2_serve.lab.evaluation.manifest import setting_of
from r2_serve.lab.evaluation.ray_data import RayDataRows, check_cluster
from r2_serve.lab.evaluation.runner import Examiner, RowSource, Runner, RunOptions, Standing
from r2_serve.ops.local.cluster import free_port, local_cluster
from r2_serve.serve_config import ServeConfig, load
from tests.support.scripted_evaluation import lines_of, manifest_of, sums
from tests.support.scripted_pool import scripted_yaml

pytestmark = pytest.mark.ray
NAMES = ["r2", "single:large", "random"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServeConfig, str]]:
    path: Path = tmp_path_factory.mktemp("cluster") / "serve_config.yaml"
    path.write_text(scripted_yaml(replies={"large": ["6"]}))
    config = load(path)
    with local_cluster(config, port=free_port(), num_cpus=4) as url:
        yield config, url


async def run(
    directory: Path, served: tuple[ServeConfig, str], *, is_ray: bool, max_cost_usd: Decimal | None = None
) -> Standing:
    config, url = served
    setting, tasks = setting_of(config.router, config.routing, "r2"), sums(12)
    source: RowSource | None = RayDataRows(url, None, setting, num_at_once=8) if is_ray else None
    options = RunOptions(num_at_once=8, max_cost_usd=max_cost_usd)
    async with new_client(url) as client, Grader() as grader:
        manifest = manifest_of(tasks, NAMES)
        examiner = Examiner(HttpAsker(client), grader, setting)
        return await Runner(directory, manifest, tasks, examiner, options, source=source).run()


def test_ray_data_gives_the_rows_of_the_event_loop(tmp_path: Path, served: tuple[ServeConfig, str]) -> None:
    here = asyncio.run(run(tmp_path / "here", served, is_ray=False))
    there = asyncio.run(run(tmp_path / "there", served, is_ray=True))
    assert (
        (there.num_done, there.num_correct, there.num_failed)
        == (here.num_done, here.num_correct, here.num_failed)
        == (36, 2, 0)
    )
    assert there.cost_usd == here.cost_usd

    def verdicts(directory: Path) -> Counter[tuple[str, str, str]]:
        return Counter((line["policy"], line["task_id"], line["status"]) for line in lines_of(directory))

    assert verdicts(tmp_path / "there") == verdicts(tmp_path / "here")


def test_error_of_a_cluster_that_does_not_answer_says_what_to_do() -> None:
    with pytest.raises(
        EngineUnavailable,
        match=r"no answer within 0.01 s\. Start one with ray start --head; .*docs/evaluation.md",
    ):
        check_cluster(timeout_s=0.01)


def test_ray_data_run_continues_where_it_was_stopped(tmp_path: Path, served: tuple[ServeConfig, str]) -> None:
    part = asyncio.run(run(tmp_path, served, is_ray=True, max_cost_usd=Decimal("0.0001")))
    assert part.stopped_because is not None
    assert 0 < part.num_done < 36
    whole = asyncio.run(run(tmp_path, served, is_ray=True))
    assert whole.num_done == 36
    assert set(Counter((line["policy"], line["task_id"]) for line in lines_of(tmp_path)).values()) == {1}
