"""ScriptedEngine, the shipped fake, and `make_engine`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from r2_serve.config import ScriptedEngineConfig, ServedEngineConfig
from r2_serve.engines import make_engine, resolve_checkpoint
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import ConfigError, EngineRefused, EngineUnavailable
from r2_serve.types import Completion, Delta, Engine, Message, Sampling, Usage
from tests.support.engine_calls import engine_call

MESSAGES = [Message(role="system", content="be brief"), Message(role="user", content="two plus two")]


class Clock:
    """A sleep that takes no time and remembers what it was asked for."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)


async def texts(engine: Engine, num_calls: int) -> list[str]:
    return [(await engine.generate(engine_call(MESSAGES, Sampling()))).text for _ in range(num_calls)]


async def deltas(engine: Engine, sampling: Sampling, timeout_s: float | None = None) -> list[Delta]:
    return [delta async for delta in engine.stream(engine_call(MESSAGES, sampling, timeout_s=timeout_s))]


async def test_replies_repeat_in_their_order() -> None:
    engine = make_engine(ScriptedEngineConfig(kind="scripted", replies=("a", "{prompt}?")))
    assert await texts(engine, 3) == ["a", "two plus two?", "a"]


async def test_function_gets_the_call() -> None:
    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        return f"{len(messages)} {sampling.seed}"

    assert (await ScriptedEngine(reply).generate(engine_call(MESSAGES, Sampling(seed=4)))).text == "2 4"


async def test_usage_counts_words() -> None:
    reply = await ScriptedEngine(["it is four"]).generate(engine_call(MESSAGES, Sampling()))
    assert reply.usage == Usage(prompt_tokens=5, completion_tokens=3)
    assert reply.finish_reason == "stop"


@pytest.mark.parametrize(
    ("text", "sampling", "expected", "finish_reason"),
    [
        ("a b  c", Sampling(max_tokens=2), "a b", "length"),
        ("a b  c ", Sampling(max_tokens=3), "a b  c ", "stop"),
        ("a b c", Sampling(stop=("c", "b")), "a ", "stop"),
        ("", Sampling(max_tokens=1), "", "stop"),
        (" \n", Sampling(), " \n", "stop"),
    ],
)
async def test_stream_equals_the_plain_reply(
    text: str, sampling: Sampling, expected: str, finish_reason: str
) -> None:
    reply = await ScriptedEngine([text]).generate(engine_call(MESSAGES, sampling))
    pieces = await deltas(ScriptedEngine([text]), sampling)
    assert (reply.text, reply.finish_reason) == (expected, finish_reason)
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1] == Delta(finish_reason=reply.finish_reason, usage=reply.usage)
    assert all(piece.finish_reason is None and piece.usage is None for piece in pieces[:-1])


async def test_stream_gives_its_words_evenly_over_the_delay() -> None:
    clock = Clock()
    pieces = await deltas(ScriptedEngine(["a b c d"], delay_s=2.0, sleep=clock.sleep), Sampling())
    assert [piece.text for piece in pieces] == ["a", " b", " c", " d", ""]
    assert clock.slept == [0.5] * 4


async def test_scripted_exception_is_raised_and_the_next_call_is_answered() -> None:
    engine = ScriptedEngine([EngineRefused("no"), "yes"])
    with pytest.raises(EngineRefused, match="no"):
        await engine.generate(engine_call(MESSAGES, Sampling()))
    assert await texts(engine, 1) == ["yes"]
    with pytest.raises(EngineRefused, match="no"):
        await deltas(engine, Sampling())


async def test_scripted_completion_is_returned_unchanged() -> None:
    completion = Completion(
        text="a b", usage=Usage(prompt_tokens=1, completion_tokens=9), finish_reason="length"
    )
    assert (
        await ScriptedEngine([completion]).generate(engine_call(MESSAGES, Sampling(max_tokens=1)))
        == completion
    )


async def test_delay_beyond_the_timeout_is_unavailable() -> None:
    clock = Clock()
    engine = ScriptedEngine(["a"], delay_s=9.0, sleep=clock.sleep)
    with pytest.raises(EngineUnavailable):
        await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=1.0))
    with pytest.raises(EngineUnavailable):
        await deltas(engine, Sampling(), timeout_s=1.0)
    assert clock.slept == pytest.approx([1.0, 1.0], abs=0.1)


async def test_sleep_that_never_ends_is_bounded_by_the_timeout() -> None:
    gate = asyncio.Event()
    engine = ScriptedEngine(["a"], delay_s=0.001, sleep=lambda _: gate.wait())
    with pytest.raises(EngineUnavailable):
        await engine.generate(engine_call(MESSAGES, Sampling(), timeout_s=0.05))


async def test_calls_are_recorded() -> None:
    engine = ScriptedEngine()
    await engine.generate(engine_call(MESSAGES, Sampling(seed=1), adapter="a", timeout_s=3.0))
    await deltas(engine, Sampling())
    assert [(call.sampling.seed, call.adapter, call.timeout_s) for call in engine.calls] == [
        (1, "a", 3.0),
        (None, None, None),
    ]
    assert engine.calls[0].messages == tuple(MESSAGES)


async def test_reply_may_depend_on_the_adapter_and_unknown_adapters_are_refused(tmp_path: Path) -> None:
    config = ScriptedEngineConfig(kind="scripted", replies=("by {adapter}",), adapters={"a": str(tmp_path)})
    engine = ScriptedEngine.from_config(config)
    await engine.load_adapter("b", str(tmp_path))
    assert [
        (await engine.generate(engine_call(MESSAGES, Sampling(), adapter=name))).text
        for name in ("a", "b", None)
    ] == ["by a", "by b", "by base"]
    await engine.unload_adapter("a")
    with pytest.raises(EngineRefused, match=r"no adapter 'a'; this engine has \['b'\]"):
        await engine.generate(engine_call(MESSAGES, Sampling(), adapter="a"))
    with pytest.raises(ConfigError, match="new name"):
        await engine.load_adapter("b", str(tmp_path))
    with pytest.raises(ConfigError, match="is no directory"):
        await engine.load_adapter("c", str(tmp_path / "c"))


def test_served_engine_needs_ray() -> None:
    with pytest.raises(ConfigError, match="needs Ray"):
        make_engine(ServedEngineConfig(kind="served", app="small"))


@pytest.mark.parametrize("name", ["nothing", "", "..", "../engines"])
def test_unknown_embedded_model_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="no embedded model"):
        resolve_checkpoint(f"embedded:{name}")
    assert resolve_checkpoint("some/folder") == "some/folder"


def test_importing_engines_loads_no_model_library() -> None:
    heavy = ("torch", "transformers", "vllm", "openai", "ray")
    code = f"import sys, r2_serve.engines; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
