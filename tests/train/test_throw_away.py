"""LoRA checkpoints in training are measured as adapters of the served base, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from r2_serve.config import (
    ModelConfig,
    ModelServerConfig,
    ServedEngineConfig,
    TransformersEngineConfig,
    VllmEngineConfig,
)
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineRefused
from r2_serve.types import EngineCall, Message, Sampling
from r2_train.config import PoolConfig
from r2_train.rollouts.served_pool import Checkpoint, open_engines, open_pool
from r2_train.rollouts.throw_away import AdaptedEngine, can_serve
from tests.support.scripted_training import cache_in
from tests.support.serve_apps import model_app, router_app, served_card


class Host:
    """Loads adapters and writes down which."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.said: list[str] = []

    async def load_adapter(self, name: str, path: str) -> None:
        self.loaded[name] = path
        self.said.append("load")

    async def unload_adapter(self, name: str) -> None:
        del self.loaded[name]
        self.said.append("unload")


def call(adapter: str | None) -> EngineCall:
    return EngineCall(messages=(Message(role="user", content="plan"),), sampling=Sampling(), adapter=adapter)


async def test_adapter_is_loaded_once_at_its_first_call_and_dropped_at_the_end(tmp_path: Path) -> None:
    host, engine = Host(), ScriptedEngine("fine")
    adapted = AdaptedEngine(engine, host, {"decomposer-1": tmp_path})
    await adapted.generate(call(None))
    assert host.said == [], "nothing is loaded for the base"
    for _ in range(2):
        await adapted.generate(call("decomposer-1"))
    assert list(host.loaded.values()) == [str(tmp_path)] and host.said == ["load"]
    assert [each.adapter for each in engine.calls[1:]] == [next(iter(host.loaded))] * 2
    await adapted.aclose()
    assert host.said == ["load", "unload"]


async def test_two_ranks_load_the_same_weights_under_different_names(tmp_path: Path) -> None:
    host = Host()
    for _ in range(2):
        await AdaptedEngine(ScriptedEngine("fine"), host, {"a": tmp_path}).generate(call("a"))
    assert len(host.loaded) == 2


async def test_replica_that_started_later_gets_the_adapter_too(tmp_path: Path) -> None:
    host = Host()
    refusal = EngineRefused("no adapter 'a-1'; this engine has []")
    adapted = AdaptedEngine(ScriptedEngine([refusal, "fine"]), host, {"a": tmp_path})
    assert (await adapted.generate(call("a"))).text == "fine"
    assert host.said == ["load", "load"]


@pytest.mark.parametrize(
    ("engine", "trained_on", "expected"),
    [
        (TransformersEngineConfig(kind="transformers", path="a/base"), "a/base", True),
        (TransformersEngineConfig(kind="transformers", path="a/base"), "another", False),
        (VllmEngineConfig(kind="vllm", model="a/base", engine_kwargs={"enable_lora": True}), "a/base", True),
        (VllmEngineConfig(kind="vllm", model="a/base"), "a/base", False),
    ],
    ids=["transformers", "another base", "vllm with lora", "vllm without"],
)
def test_served_base_takes_the_checkpoints_that_were_trained_on_it(
    tmp_path: Path, engine: TransformersEngineConfig, trained_on: str, expected: bool
) -> None:
    served = ServedEngineConfig(kind="served", app="m")
    model = ModelConfig(name="base", engine=served, usd_per_mtok_in=1, usd_per_mtok_out=1)
    apps = {"m": ModelServerConfig(engine=engine)}
    assert not can_serve(tmp_path, model, apps), "a whole checkpoint is no adapter"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": trained_on}))
    assert can_serve(tmp_path, model, apps) == expected


def served_config(tmp_path: Path, base: str) -> Path:
    """One model that is decomposer, allocator and worker."""
    virtual = {"pool": ["base"], "decomposer": {"model": "base"}, "allocator": {"model": "base"}}
    card = served_card("base", usd_per_mtok_out="1", context_tokens=2048)
    apps = [
        model_app("base", {"kind": "transformers", "path": base}),
        router_app({"models": [card]}, {"virtual_models": {"r2": virtual}}),
    ]
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": apps}))
    return path


@pytest.mark.engine
@pytest.mark.smoke
async def test_two_checkpoints_of_one_served_base_run_on_one_engine(tmp_path: Path) -> None:
    """Each answers as itself: both were measured as the last one given."""
    pytest.importorskip("peft")
    from r2_serve.engines.transformers import TransformersEngine
    from tests.support.tiny_checkpoint import random_adapter, tool_checkpoint

    base = tool_checkpoint(tmp_path / "base")
    first, second = (Path(random_adapter(base, tmp_path / f"lora-{i}", seed=i)) for i in (1, 2))
    config = PoolConfig(serve_config=served_config(tmp_path, base), virtual_model="r2")
    shared = open_engines(config)
    with cache_in(tmp_path) as cache:
        modules = {"decomposer": Checkpoint(path=first), "allocator": Checkpoint(path=second)}
        pool = open_pool(config, cache, modules, shared)  # type: ignore[arg-type]
        sections = (pool.virtual.decomposer, pool.virtual.allocator)
        assert {section.model for section in sections} == {"base"}
        names = [None, *(section.adapter for section in sections)]
        sampling = Sampling(max_tokens=12)
        texts = [(await pool.ask("base", call(None).messages, sampling, name)).text for name in names]
        (engine,) = shared.made.values()
        assert len(set(texts)) == 3 and isinstance(engine, TransformersEngine)
        assert len(engine._adapters) == 2
        await pool.aclose()
    assert len(engine._adapters) == 0
    await engine.check_health()
    await shared.aclose()
