"""VllmEngine, really running vLLM on the CPU (about a minute for each of the two engines, most of it
start-up)."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import EMBEDDED
from tests.support.engine_calls import engine_call

pytest.importorskip("torch")
if find_spec("vllm") is None or find_spec("peft") is None:
    pytest.skip("needs vllm and peft", allow_module_level=True)
pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.usage.usage_lib import UsageContext  # noqa: E402

from r2_serve.config import TransformersEngineConfig, VllmEngineConfig  # noqa: E402
from r2_serve.engines.transformers import TransformersEngine  # noqa: E402
from r2_serve.engines.vllm import VllmEngine  # noqa: E402
from r2_serve.errors import ConfigError, EngineRefused, EngineUnavailable  # noqa: E402
from r2_serve.types import Message, Priority, Sampling  # noqa: E402
from tests.support.tiny_checkpoint import (  # noqa: E402
    CONTEXT_TOKENS,
    character_checkpoint,
    random_adapter,
    word_checkpoint,
)

PROMPTS = ["one plus two", "three", "four five six seven eight", "nine is", "zero"]
SHIPPED = EMBEDDED / "words-280k"
SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "steps": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    },
    "required": ["ok", "steps"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return word_checkpoint(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def adapters(words: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        name: random_adapter(words, tmp_path_factory.mktemp(name), seed=i)
        for i, name in enumerate(("first", "second", "late"), 1)
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(words: str, adapters: dict[str, str]) -> AsyncIterator[VllmEngine]:
    known = {name: adapters[name] for name in ("first", "second")}
    engine = VllmEngine(
        VllmEngineConfig(kind="vllm", model=words, adapters=known, engine_kwargs={"max_num_seqs": 16})
    )
    yield engine
    await engine.aclose()


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


async def reply_text(engine: VllmEngine, prompt: str = PROMPTS[0], adapter: str | None = None) -> str:
    return (
        await engine.generate(engine_call(user(prompt), Sampling(max_tokens=16), adapter=adapter))
    ).text.strip()


async def until(is_true: Callable[[], bool]) -> None:
    """vLLM has no event for it."""
    for _ in range(5_000):
        if is_true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never came true")


async def test_replies_equal_those_of_the_transformers_engine(engine: VllmEngine, words: str) -> None:
    other = await asyncio.to_thread(
        TransformersEngine, TransformersEngineConfig(kind="transformers", path=words)
    )
    sampling = Sampling(max_tokens=16, logprobs=True)
    for prompt in PROMPTS:
        ours, theirs = (
            await engine.generate(engine_call(user(prompt), sampling)),
            await other.generate(engine_call(user(prompt), sampling)),
        )
        assert (ours.text.strip(), ours.usage, ours.finish_reason) == (
            theirs.text,
            theirs.usage,
            theirs.finish_reason,
        )
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
    await other.aclose()


async def test_stream_equals_the_plain_reply(engine: VllmEngine) -> None:
    whole = await engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=16)))
    deltas = [d async for d in engine.stream(engine_call(user(PROMPTS[0]), Sampling(max_tokens=16)))]
    assert "".join(d.text for d in deltas) == whole.text
    assert (deltas[-1].finish_reason, deltas[-1].usage) == (whole.finish_reason, whole.usage)
    assert len(deltas) > 5
    assert all(d.finish_reason is None and d.usage is None for d in deltas[:-1])


async def test_engine_decodes_as_many_at_once_as_vllm_serve_would_on_the_machine(
    engine: VllmEngine,
) -> None:
    """The module's engine names `max_num_seqs`, so the other size shows where the defaults are from."""
    scheduler = engine._engine.vllm_config.scheduler_config
    tokens, _ = AsyncEngineArgs.get_batch_defaults(world_size=1)
    assert scheduler.max_num_batched_tokens == min(
        tokens[UsageContext.OPENAI_API_SERVER], 16 * CONTEXT_TOKENS
    )
    assert scheduler.policy == "priority"


@pytest.mark.parametrize("forwarded", [{}, {"top_k": 1}])
async def test_calls_of_users_are_answered_before_batches_and_training(
    engine: VllmEngine, forwarded: dict[str, object]
) -> None:
    """All 48 calls wait in a paused engine that runs 16 at once; the first to come are answered last."""
    await engine._engine.pause_generation(mode="keep")
    ended: list[Priority] = []

    async def ask(priority: Priority) -> None:
        sampling = Sampling(max_tokens=40, forwarded=forwarded)
        await engine.generate(engine_call(user("two"), sampling).model_copy(update={"priority": priority}))
        ended.append(priority)

    order: tuple[Priority, ...] = ("training", "batch", "user")
    waiting = [asyncio.create_task(ask(priority)) for priority in order for _ in range(16)]
    await until(lambda: engine._engine.get_num_unfinished_requests() == len(waiting))
    await engine._engine.resume_generation()
    await asyncio.gather(*waiting)
    ranks = [order[::-1].index(priority) for priority in ended]
    assert sum(ranks[:16]) < sum(ranks[16:32]) < sum(ranks[32:])


async def test_stop_strings_and_seeds_are_honoured(engine: VllmEngine) -> None:
    whole = await reply_text(engine)
    stop = whole.split()[3]
    cut = await engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=16, stop=(stop,))))
    assert (cut.text.split(), cut.finish_reason) == (whole.split()[: whole.split().index(stop)], "stop")
    drawn = [
        await engine.generate(engine_call(user("one"), Sampling(max_tokens=12, temperature=1.0, seed=seed)))
        for seed in (1, 1, 2, 3, 4)
    ]
    assert drawn[0] == drawn[1]
    assert len({reply.text for reply in drawn}) > 1


async def test_adapters_are_chosen_by_name(engine: VllmEngine, adapters: dict[str, str]) -> None:
    plain, first, second = [await reply_text(engine, adapter=name) for name in (None, "first", "second")]
    assert len({plain, first, second}) == 3
    both = await asyncio.gather(
        reply_text(engine, adapter="first"), reply_text(engine, adapter="second"), reply_text(engine)
    )
    assert both == [first, second, plain]


async def test_extras_are_read_with_an_adapter_too(engine: VllmEngine) -> None:
    async def extra(adapter: str | None) -> str:
        sampling = Sampling(max_tokens=16, forwarded={"top_k": 1})
        return (await engine.generate(engine_call(user(PROMPTS[0]), sampling, adapter=adapter))).text.strip()

    replies = [await extra(name) for name in (None, "first", "second")]
    assert replies == [await reply_text(engine, adapter=name) for name in (None, "first", "second")]
    with pytest.raises(EngineRefused, match="no adapter 'unknown'"):
        await extra("unknown")


async def test_adapters_are_loaded_and_unloaded_live(
    engine: VllmEngine, adapters: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(EngineRefused, match=r"no adapter 'late'; this engine has \['first', 'second'\]"):
        await reply_text(engine, adapter="late")
    await engine.load_adapter("late", adapters["late"])
    assert await reply_text(engine, adapter="late") not in {
        await reply_text(engine),
        await reply_text(engine, adapter="first"),
    }
    with pytest.raises(ConfigError, match="new name"):
        await engine.load_adapter("late", adapters["late"])
    await engine.unload_adapter("late")
    with pytest.raises(EngineRefused, match="no adapter 'late'"):
        await reply_text(engine, adapter="late")
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        await engine.load_adapter("empty", str(tmp_path))


async def test_broken_adapter_is_refused_and_the_engine_still_answers(
    engine: VllmEngine, adapters: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(
        (Path(adapters["late"]) / "adapter_config.json").read_text()
    )
    with pytest.raises(ConfigError, match="cannot be loaded"):
        await engine.load_adapter("broken", str(tmp_path))
    with pytest.raises(EngineRefused, match="no adapter 'broken'"):
        await reply_text(engine, adapter="broken")
    await engine.check_health()
    assert await reply_text(engine)


async def test_bad_prompts_are_refused(engine: VllmEngine) -> None:
    with pytest.raises(EngineRefused, match="does not have 'hello'"):
        await engine.generate(engine_call(user("hello one"), Sampling()))
    with pytest.raises(EngineRefused, match=f"context of {CONTEXT_TOKENS}"):
        await engine.generate(engine_call(user("one " * CONTEXT_TOKENS), Sampling()))


async def test_abandoned_requests_are_aborted(engine: VllmEngine) -> None:
    long = Sampling(max_tokens=120, frequency_penalty=2.0)
    async with aclosing(engine.stream(engine_call(user("one plus two"), long))) as deltas:
        await anext(deltas)
        task = asyncio.create_task(engine.generate(engine_call(user("three four"), long)))
        await until(lambda: engine._engine.get_num_unfinished_requests() == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(EngineUnavailable, match="in time"):
        await engine.generate(engine_call(user("one"), long, timeout_s=0.002))
    assert engine._engine.get_num_unfinished_requests() == 0


@pytest.mark.skipif(
    not SHIPPED.is_dir(), reason="no embedded model has a head size that vLLM's CPU attention takes"
)
async def test_embedded_model_answers_as_with_transformers() -> None:
    path, sampling = f"embedded:{SHIPPED.name}", Sampling(max_tokens=12)
    prompts = ["3 + 4", "5 4 6 + 2 1", "7 - 2", "9 9 + 1", "8 * 7"]
    other = await asyncio.to_thread(
        TransformersEngine, TransformersEngineConfig(kind="transformers", path=path)
    )
    theirs = [(await other.generate(engine_call(user(p), sampling))).text for p in prompts]
    await other.aclose()
    engine = VllmEngine(VllmEngineConfig(kind="vllm", model=path))
    ours = [(await engine.generate(engine_call(user(p), sampling))).text.strip() for p in prompts]
    await engine.aclose()
    assert ours == theirs
    assert ours[0].split()[0] == "7"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def characters(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """An engine with few slots for adapters. Its last test closes it."""
    path = character_checkpoint(tmp_path_factory.mktemp("characters"))
    kwargs = {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 3, "max_lora_rank": 8, "block_size": 32}
    engine = VllmEngine(VllmEngineConfig(kind="vllm", model=path, engine_kwargs=kwargs))
    yield engine
    await engine.aclose()


async def test_replies_satisfy_a_json_schema(characters: VllmEngine) -> None:
    sampling = Sampling(max_tokens=100, temperature=1.0, json_schema=SCHEMA)
    replies = [
        await characters.generate(engine_call(user("json"), sampling.model_copy(update={"seed": seed})))
        for seed in range(8)
    ]
    finished: list[Any] = [json.loads(reply.text) for reply in replies if reply.finish_reason == "stop"]
    assert finished
    for value in finished:
        assert set(value) == {"ok", "steps"}
        assert isinstance(value["ok"], bool)
        assert 2 <= len(value["steps"]) <= 3
        assert all(math.floor(step) == step for step in value["steps"])
    wanted = {"type": "json_schema", "json_schema": {"name": "steps", "schema": SCHEMA}}
    named = await characters.generate(
        engine_call(
            user("json"),
            sampling.model_copy(update={"seed": 0, "json_schema": None, "response_format": wanted}),
        )
    )
    assert named.text == replies[0].text
    anything = await characters.generate(
        engine_call(user("json"), Sampling(max_tokens=5, response_format={"type": "json_object"}))
    )
    assert anything.text.lstrip().startswith("{")


async def test_each_of_more_adapters_than_slots_answers_as_it_does_alone(
    characters: VllmEngine, tmp_path: Path
) -> None:
    """Two have slots and three are in memory. The limit that protects calls without an adapter on CPUs is
    lifted, as these calls all have one."""
    characters._max_adapters = None
    base = characters._config.model
    paths = {f"a{i}": random_adapter(base, tmp_path / f"a{i}", seed=i) for i in range(6)}
    other = await asyncio.to_thread(
        TransformersEngine, TransformersEngineConfig(kind="transformers", path=base, adapters=paths)
    )
    text = "the same words for all, as many as a block of the cache holds"

    async def reply(engine: VllmEngine | TransformersEngine, name: str) -> str:
        call = engine_call(user(text), Sampling(max_tokens=20), adapter=name)
        return (await engine.generate(call)).text.strip()

    alone = {name: await reply(other, name) for name in paths}
    await other.aclose()
    assert len(set(alone.values())) == len(paths)
    for name, path in paths.items():
        await characters.load_adapter(name, path)
    for order in (list(paths), [*reversed(paths)], [*paths, *paths]):
        assert [await reply(characters, name) for name in order] == [alone[name] for name in order]
    at_once = [*paths] * 3
    assert await asyncio.gather(*(reply(characters, name) for name in at_once)) == [
        alone[name] for name in at_once
    ]
    await characters.unload_adapter("a0")
    await characters.load_adapter("a0", paths["a5"])
    assert await reply(characters, "a0") == alone["a5"], "no reply of the weights that had this name before"
    for name in ("a3", "a4", "a5"):
        await reply(characters, name)
    shutil.rmtree(paths["a1"])
    with pytest.raises(EngineRefused, match="'a1' cannot be loaded"):
        await reply(characters, "a1")
    assert await reply(characters, "a2") == alone["a2"], "the engine lives on"


async def test_closed_engine_gives_up_its_calls_and_is_unhealthy(characters: VllmEngine) -> None:
    sampling = Sampling(max_tokens=110, temperature=1.0, json_schema=SCHEMA)
    call = asyncio.create_task(characters.generate(engine_call(user("json"), sampling)))
    await until(lambda: characters._engine.get_num_unfinished_requests() == 1)
    await characters.aclose()
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(call, 10)
    with pytest.raises(EngineUnavailable, match="closed"):
        await characters.generate(engine_call(user("json"), Sampling()))
