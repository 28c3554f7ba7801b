"""Training runs plans through the router's own pipeline, however it reaches the pool."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from r2_serve import EMBEDDED_CONFIG
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import ConfigError, EngineError, EngineRefused, EngineUnavailable, OperatorFault
from r2_train.config import MODULES, PoolConfig
from r2_train.rollouts.call_cache import CallCache
from r2_train.rollouts.described_pool import described
from r2_train.rollouts.served_pool import Checkpoint, open_pool
from tests import DATA
from tests.support.in_process import plan_of
from tests.support.scripted_training import cache_in, engines, made_once, pool_over
from tests.support.upstream import Script, completion, running_upstream

SMALL_CONFIG = DATA / "small_serve_config.yaml"


def config_without_keys(tmp_path: Path) -> Path:
    """The small config, its hosted model without a key: the endpoint has that."""
    raw = yaml.safe_load(SMALL_CONFIG.read_text())
    del raw["applications"][-1]["args"]["models"][1]["engine"]["api_key_env"]
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


async def test_over_http_every_model_is_asked_by_its_name_and_priced_by_its_card(tmp_path: Path) -> None:
    plan = plan_of("say one", "say two", answer="#1 #2")
    async with running_upstream() as upstream:
        upstream.script = Script(
            [json.dumps(completion(message={"role": "assistant", "content": "fine"})).encode()]
        )
        config = PoolConfig(
            serve_config=config_without_keys(tmp_path),
            virtual_model="r2",
            reach="http",
            url=upstream.base_url,
        )
        with CallCache(tmp_path / "calls.sqlite") as cache:
            rollout = await open_pool(config, cache).run("q", "count", plan=plan, models=("small", "large"))
    assert rollout.answer == "fine fine"
    assert sorted(request["model"] for request in upstream.requests) == ["large", "small"]
    assert rollout.cost_usd == rollout.worker_cost_usd > 0


def test_compact_models_are_not_trained_on_over_http(tmp_path: Path) -> None:
    config = PoolConfig(virtual_model="r2-scan", reach="http", url="http://127.0.0.1:9/v1")
    with CallCache(tmp_path / "calls.sqlite") as cache:
        pool = open_pool(config, cache)
        with pytest.raises(ConfigError, match="compact dialect"):
            pool.engine_for(pool.config.model("scan-3k"))


def test_experiments_change_prices_and_pool_and_refuse_unknown_names() -> None:
    changed = PoolConfig(virtual_model="r2", prices={"words-22k": Decimal("0.4")}, without=("words-5k",))
    pool = described(changed)
    assert pool.config.model("words-22k").usd_per_mtok_in == Decimal("0.4")
    assert pool.pool == ("words-22k", "words-48k", "words-280k")
    with pytest.raises(ConfigError, match="words-9k"):
        described(PoolConfig(virtual_model="r2", without=("words-9k",)))


async def test_the_critical_path_is_the_longest_chain_not_the_sum(tmp_path: Path) -> None:
    wide, deep = (
        plan_of("recall 1", "recall 2", "add #1 and #2"),
        plan_of("recall 1", "recall 2 as #1", "add #1 and #2"),
    )
    with cache_in(tmp_path) as cache:
        pool = pool_over(cache, engines())
        rollouts = [
            await pool.run("q", "Add 1 and 2.", plan=plan, models=("small",) * 3) for plan in (wide, deep)
        ]
    assert [rollout.critical_path_tokens for rollout in rollouts] == [4, 6], "two tokens a step"


def one_base(tmp_path: Path) -> Path:
    """The embedded config, whose SCAN decomposer and allocator name one model, a worker of the pool."""
    raw = yaml.safe_load(EMBEDDED_CONFIG.read_text())
    router = next(app for app in raw["applications"] if "models" in app["args"])
    virtual = router["deployments"][0]["user_config"]["virtual_models"]["r2-scan"]
    virtual["decomposer"]["model"] = virtual["allocator"]["model"] = virtual["pool"][0]
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_two_checkpoints_of_one_model_are_two_models_beside_it(tmp_path: Path) -> None:
    config = PoolConfig(serve_config=one_base(tmp_path), virtual_model="r2-scan")
    plain = described(config)
    name = plain.module_model("decomposer").name
    assert name == plain.module_model("allocator").name == plain.pool[0]
    with cache_in(tmp_path) as cache:
        pool = open_pool(
            config,
            cache,
            {"decomposer": Checkpoint(Path("of-decomposer")), "allocator": Checkpoint(Path("of-allocator"))},
        )
    paths = [getattr(pool.module_model(module).engine, "path", None) for module in MODULES]
    assert paths == ["of-decomposer", "of-allocator"]
    assert pool.config.model(name).engine == plain.config.model(name).engine, "the worker is left alone"


async def test_closing_a_pool_ends_each_of_its_engines_once(tmp_path: Path) -> None:
    closed: list[str] = []

    class Closing(ScriptedEngine):
        async def aclose(self) -> None:
            closed.append("closed")

    plan = plan_of("recall 1", "recall 2", "add #1 and #2")
    of = {name: Closing("1") for name in ("tiny", "small")}
    with cache_in(tmp_path) as cache:
        pool = made_once(pool_over(cache, engines(**of)))
        sampled = pool.sampled(0.5, seed=1)
        for one in (pool, sampled):
            await one.run("q", "Add 1 and 2.", plan=plan, models=("tiny", "small", "small"))
        await pool.aclose()
        await pool.aclose()
    assert closed == ["closed"] * 2


@pytest.mark.parametrize(
    ("error", "is_outage"),
    [(EngineUnavailable("down"), True), (OperatorFault("401"), True), (EngineRefused("a word"), False)],
    ids=lambda value: type(value).__name__,
)
async def test_wrong_key_is_an_outage_and_no_verdict_on_a_plan(
    tmp_path: Path, error: EngineError, is_outage: bool
) -> None:
    plan = plan_of("recall 1", "recall 2", "add #1 and #2")
    with cache_in(tmp_path) as cache:
        pool = pool_over(cache, engines(small=[error]))
        rollout = await pool.run("q", "Add 1 and 2.", plan=plan, models=("small",) * 3)
    assert rollout.has_failed == is_outage


async def test_plan_of_one_step_sends_the_query_itself_as_serving_does(tmp_path: Path) -> None:
    large = ScriptedEngine("3")
    with cache_in(tmp_path) as cache:
        pool = pool_over(cache, engines(large=large))
        await pool.run("q", "Add 1 and 2.", plan=plan_of("no instruction"), models=("large",))
    assert [message.text for message in large.calls[0].messages] == ["Add 1 and 2."]
