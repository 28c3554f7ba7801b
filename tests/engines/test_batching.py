"""The arithmetic of a batching engine, exact cases and what must hold for any."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from r2_serve.config import ScriptedEngineConfig, SpeedConfig
from r2_serve.engines.batching import Batch
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineTimeout
from r2_serve.types import Message, Sampling
from tests.support.engine_calls import engine_call
from tests.support.virtual_time import VirtualTimeLoop
from tests.support.virtual_time import run as run_in_virtual_time

SPEED = SpeedConfig(prefill_tokens_per_s=100, decode_tokens_per_s=10, max_batch_size=2, batch_slowdown=0.5)


def ends_s(batch: Batch, until_s: float = 1e9) -> dict[int, float]:
    return {finished.sequence: round(finished.end_s, 9) for finished in batch.advance(until_s)}


def test_single_sequence_takes_the_time_of_its_prefill_and_tokens() -> None:
    batch = Batch(SPEED)
    batch.arrive(5.0, prompt_tokens=100, reply_tokens=20)
    assert batch.next_event_s() == 6.0
    assert ends_s(batch) == {0: 8.0}


def test_two_sequences_decode_slower_by_the_cost_of_a_batch() -> None:
    batch = Batch(SPEED)
    batch.arrive(0.0, 0, 10)
    batch.arrive(0.0, 0, 20)
    assert batch.tokens_per_s() == 10  # of the first alone: both begin at the next event
    assert ends_s(batch) == {0: 1.5, 1: 2.5}  # 10 tokens at 10/1.5 a second, then 10 more alone


def test_third_sequence_waits_for_a_place_and_a_leaving_client_frees_one() -> None:
    batch = Batch(SPEED)
    for _ in range(3):
        batch.arrive(0.0, 0, 10)
    assert len(batch) == 3
    batch.leave(0.75, 0)
    assert ends_s(batch) == {
        1: 1.5,
        2: 2.0,
    }  # from 0.75 on the third decodes with the second, half of it then alone
    assert len(batch) == 0


def test_leaving_while_waiting_or_after_the_end_changes_nothing() -> None:
    batch = Batch(SPEED)
    first, second, third = (batch.arrive(0.0, 0, 10) for _ in range(3))
    batch.leave(0.0, third)
    assert ends_s(batch) == {first: 1.5, second: 1.5}
    batch.leave(9.0, first)


def test_sequence_is_complete_when_it_is_read_late() -> None:
    """This imitates a machine where timers come late."""
    batch = Batch(SPEED)
    sequence = batch.arrive(0.0, 0, 10)
    assert batch.num_decoded(0.5, sequence) == pytest.approx(5)
    assert batch.num_decoded(2.0, sequence) == math.inf
    assert ends_s(batch, 2.0) == {sequence: 1.0}


def test_no_sequence_ends_before_the_bound_which_is_exact_without_prefills() -> None:
    draw = random.Random(1)
    batch, now_s, bound_s = Batch(SPEED), 0.0, 0.0
    for _ in range(300):
        now_s += draw.expovariate(0.3)
        while bound_s < now_s:
            ended = batch.advance(bound_s)
            assert all(finished.end_s == pytest.approx(bound_s) for finished in ended)
            bound_s = batch.no_end_before_s() or now_s
        assert batch.advance(now_s) == []
        batch.arrive(now_s, draw.randint(0, 200), draw.randint(0, 30))
        bound_s = batch.no_end_before_s() or now_s
    alone = Batch(SPEED)
    alone.arrive(0.0, 0, 10)
    alone.advance(0.1)
    assert alone.no_end_before_s() == pytest.approx(1.0)


def test_ends_do_not_depend_on_when_they_are_asked() -> None:
    """Looking in between, at any times, changes no sequence's end; none is lost."""
    draw = random.Random(0)
    arrivals = sorted((draw.uniform(0, 5), draw.randint(0, 50), draw.randint(0, 40)) for _ in range(200))
    quiet, watched = Batch(SPEED), Batch(SPEED)
    seen: dict[int, float] = {}
    for at_s, prompt, reply in arrivals:
        quiet.arrive(at_s, prompt, reply)
        seen |= ends_s(watched, at_s - draw.uniform(0, 1e-6))
        watched.arrive(at_s, prompt, reply)
    while (next_s := watched.next_event_s()) is not None:
        seen |= ends_s(watched, next_s)
    assert seen == pytest.approx(ends_s(quiet), abs=1e-6)
    assert len(seen) == 200


def prompt(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def test_scripted_engine_keeps_the_pace_of_its_batch() -> None:
    """Virtual time: two calls of one prompt word and ten reply words each."""
    config = ScriptedEngineConfig(kind="scripted", replies=("{words}",), speed=SPEED)

    async def both() -> list[float]:
        engine, loop = ScriptedEngine.from_config(config), asyncio.get_running_loop()

        async def one() -> float:
            completion = await engine.generate(engine_call(prompt("Write 10 words"), Sampling()))
            assert completion.usage.completion_tokens == 10
            return loop.time()

        return await asyncio.gather(one(), one())

    assert run_in_virtual_time(both()) == pytest.approx([1.53, 1.53], abs=1e-3)


def test_stream_gives_each_word_at_its_time_until_the_timeout() -> None:
    config = ScriptedEngineConfig(kind="scripted", replies=("{words}",), speed=SPEED)

    async def stream(timeout_s: float | None) -> list[float]:
        engine, loop = ScriptedEngine.from_config(config), asyncio.get_running_loop()
        replies = engine.stream(engine_call(prompt("Write 4 words"), Sampling(), timeout_s=timeout_s))
        return [loop.time() async for delta in replies if delta.text]

    assert run_in_virtual_time(stream(None)) == pytest.approx([0.13, 0.23, 0.33, 0.43], abs=1e-3)
    with pytest.raises(EngineTimeout):
        run_in_virtual_time(stream(0.2))


def test_cancelled_call_leaves_its_batch() -> None:
    async def cancelled_next_to_another() -> float:
        engine, loop = ScriptedEngine(["{words}"], speed=SPEED), asyncio.get_running_loop()
        doomed = asyncio.create_task(engine.generate(engine_call(prompt("100 words"), Sampling())))
        other = asyncio.create_task(engine.generate(engine_call(prompt("10 words"), Sampling())))
        await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        doomed.cancel()
        await other
        return loop.time()

    assert run_in_virtual_time(cancelled_next_to_another()) == pytest.approx(1.02, abs=1e-3)


def test_template_takes_its_values_from_the_prompt() -> None:
    async def reply(template: str, text: str) -> str:
        return (await ScriptedEngine([template]).generate(engine_call(prompt(text), Sampling()))).text

    asked = 'Task {1}. {"a": 1} then {"plan": {"x": ["{words}"]}, "b": 2}. Write 2 words, no: 3 words.'
    assert asyncio.run(reply("{json:plan}", asked)) == '{"x": ["{words}"]}'
    assert asyncio.run(reply("<{words}>", asked)) == "<word word word>"
    assert asyncio.run(reply("{json:none}{json:b}", asked)) == "2"
    schema = {"type": "object", "required": ["x"]}
    planned = ScriptedEngine(["{asked}"]).generate(engine_call(prompt(asked), Sampling(json_schema=schema)))
    assert asyncio.run(planned).text == '{"x": ["{words}"]}'
    assert asyncio.run(reply("{asked}", asked)) == "word word word"
    assert asyncio.run(reply("{prompt}", "{words}")) == "{words}", "what a prompt says is never filled in"


def test_stream_that_ends_while_its_process_is_busy_is_complete() -> None:
    """The clock of a loaded machine advances between two readings, without a turn of the event loop."""

    async def words() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        pieces = []
        async for delta in ScriptedEngine(["{words}"], speed=SPEED).stream(
            engine_call(prompt("5 words"), Sampling())
        ):
            pieces += [delta.text] if delta.text else []
            loop.pass_time(10.0)
        return pieces

    assert len(run_in_virtual_time(words())) == 5
