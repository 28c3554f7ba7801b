"""An idle engine sleeps and is woken by the next call, in virtual time, on a scripted engine."""

from __future__ import annotations

import asyncio

from r2_serve.engines.vllm_sleep import Sleep
from tests.support.virtual_time import now_s, run

AFTER_S, CHANGE_S = 30.0, 2.0


class Sleeping:
    """Stands for AsyncLLM: it takes `CHANGE_S` to fall asleep and to wake up."""

    def __init__(self) -> None:
        self.log: list[tuple[float, str]] = []

    async def sleep(self, level: int = 1) -> None:
        assert level == 1, "the weights are kept in the host's memory"
        await asyncio.sleep(CHANGE_S)
        self.log.append((now_s(), "asleep"))

    async def wake_up(self) -> None:
        await asyncio.sleep(CHANGE_S)
        self.log.append((now_s(), "awake"))


async def call(sleep: Sleep, duration_s: float = 1.0) -> None:
    async with sleep.awake():
        await asyncio.sleep(duration_s)


def test_engine_sleeps_after_the_last_call_and_wakes_for_the_next() -> None:
    async def check() -> None:
        engine = Sleeping()
        sleep = Sleep(engine, AFTER_S)
        await asyncio.gather(call(sleep, 1), call(sleep, 10))
        await asyncio.sleep(100)
        await call(sleep)
        assert engine.log == [(10 + AFTER_S + CHANGE_S, "asleep"), (110 + CHANGE_S, "awake")]
        sleep.stop()

    run(check())


def test_calls_that_come_sooner_keep_the_engine_awake() -> None:
    async def check() -> None:
        engine = Sleeping()
        sleep = Sleep(engine, AFTER_S)
        for _ in range(5):
            await call(sleep)
            await asyncio.sleep(AFTER_S - 1)
        assert engine.log == []
        sleep.stop()

    run(check())


def test_call_that_comes_while_the_engine_falls_asleep_waits_and_wakes_it_once() -> None:
    async def check() -> None:
        engine = Sleeping()
        sleep = Sleep(engine, AFTER_S)
        await call(sleep, 0)
        await asyncio.sleep(AFTER_S + CHANGE_S / 2)
        await asyncio.gather(*(call(sleep) for _ in range(3)))
        assert [state for _, state in engine.log] == ["asleep", "awake"]
        sleep.stop()

    run(check())


def test_engine_without_the_setting_never_sleeps() -> None:
    async def check() -> None:
        engine = Sleeping()
        await call(Sleep(engine, None))
        await asyncio.sleep(10_000)
        assert engine.log == []

    run(check())
