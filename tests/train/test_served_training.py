"""Served queries with feedback are collected, searched and trained on: SFT, GRPO, and a decomposer that
allocates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from r2_serve.config import ServerConfig
from r2_serve.feedback import FeedbackStore, Rating
from r2_serve.lab.domains import scan
from r2_serve.traces import TraceWriter
from r2_serve.types import Trace
from r2_train.stages.examples import read_examples
from r2_train.stages.run_log import METRICS, read_metrics
from tests import EMBEDDED
from tests.train.test_own_tasks import called

pytestmark = [pytest.mark.train]

SHORT = {"max_steps": 2, "per_device_train_batch_size": 8}
CONFIG = {
    "pool": {"virtual_model": "r2-scan", "reference": "whole-query"},
    "data": {"benchmark": "scan", "num_train": 14, "num_validation": 4},
    "collect": {"num_candidates": 1, "executor": "scan-22k"},
    "decomposer": {"sft": {"trainer": SHORT}},
    "allocator": {
        "sft": {"trainer": SHORT},
        "grpo": {"trainer": {**SHORT, "max_completion_length": 9, "save_steps": 2}},
    },
    "alternate": {"num_rounds": 1, "order": ["allocator"]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has collected and searched plans for 60 served queries that were rated as right."""
    folder = tmp_path_factory.mktemp("served")
    server = ServerConfig(trace_dir=str(folder / "traces"))
    writer, store = TraceWriter.of(server), FeedbackStore(server)
    for number, task in enumerate(scan.tasks("train", 60)):
        trace = Trace(request_id=f"q{number}", model="r2-scan", query=task.query, answer=task.gold)
        writer(trace)
        store.note(trace)
        store.rate("", Rating(request_id=trace.request_id, score=1))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    source = "--from-traces", folder / "traces", "--grader", "text"
    for command in (
        ("collect", "-c", folder / "config.yaml", *source, "-o", folder / "run"),
        ("search", "-o", folder / "run"),
    ):
        code, said = called(*command)
        assert code == 0, said
    return folder / "run"


def test_sft_and_grpo_go_on_with_served_queries(run: Path) -> None:
    assert json.loads((run / "search" / "summary.json").read_text())["num_solved"] >= 5
    for command in (
        ("sft", "--module", "decomposer"),
        ("sft", "--module", "allocator"),
        ("grpo", "--module", "allocator"),
    ):
        code, said = called(*command, "-o", run)
        assert code == 0, said
    rewards = [row for row in read_metrics(run / "rounds" / "01-allocator" / METRICS) if "reward" in row]
    assert len(rewards) == 2


def test_decomposer_that_allocates_is_trained_on_plans_with_their_models(run: Path) -> None:
    text = (EMBEDDED / "serve_config.yaml").read_text().replace("EMBEDDED", str(EMBEDDED))
    served = yaml.safe_load(text)
    (router,) = (app for app in served["applications"] if app["name"] == "r2")
    virtual = router["deployments"][0]["user_config"]["virtual_models"]["r2-scan"]
    virtual["decomposer"]["allocates"] = True
    config = run.parent / "serve_config.yaml"
    config.write_text(yaml.safe_dump(served))
    changed = yaml.safe_load((run / "config.yaml").read_text())
    changed["pool"]["serve_config"] = str(config)
    (run.parent / "allocates.yaml").write_text(yaml.safe_dump(changed))
    out = run.parent / "allocates"
    for command in (
        ("collect", "-c", run.parent / "allocates.yaml"),
        ("search", "-c", run.parent / "allocates.yaml"),
        ("sft", "--module", "decomposer", "-c", run.parent / "allocates.yaml"),
    ):
        code, said = called(*command, "-o", out)
        assert code == 0, said
    targets = [example.target for example in read_examples(out / "decomposer" / "sft" / "examples.jsonl")]
    assert all(target is not None and "@" in target for target in targets)
    code, said = called("grpo", "--module", "decomposer", "-c", run.parent / "allocates.yaml", "-o", out)
    assert code != 0 and "this decomposer allocates" in " ".join(said.split())
    adapter = "adapter", "--module", "decomposer", "--name", "dec-1", "--parent", run.parent, "-o", out
    code, said = called(*adapter, "-c", run.parent / "allocates.yaml")
    assert code == 0 and (run.parent / "dec-1").is_dir(), said
