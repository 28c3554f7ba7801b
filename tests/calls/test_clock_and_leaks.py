"""Two ways to wear a router down: a clock that is set while it works, and many requests that fail."""

from __future__ import annotations

import asyncio
import datetime
import gc
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import psutil
import pytest

from r2_serve import traces
from r2_serve.engines import provider_errors
from tests.support.faults import PLAIN, STREAMED
from tests.support.hosted_stand import RIGHT, Stand, healthy, standing
from tests.support.upstream import Script, completion
from tests.support.waiting import until

STEP_S = 3_600.0


@pytest.mark.parametrize("step_s", [STEP_S, -STEP_S])
async def test_clock_that_steps_by_an_hour_expires_nothing(
    step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests at work and a model at rest while the machine's wall clock is set."""
    async with standing(
        Script(has_head=False, is_held=True), cooldown={"after_failures": 1, "first_s": 60, "longest_s": 60}
    ) as stand:
        stand.upstream.script = Script(status=500)
        assert (await stand.ask(stream=False)).text == RIGHT
        cooldown = stand.pool["first"].cooldown
        assert cooldown.is_resting
        stand.other.script = Script([json.dumps(completion()).encode()], gap_s=0.5)
        at_work = [
            asyncio.create_task(stand.ask(stream=False, model="second", deadline_s=100)) for _ in range(2)
        ]
        await until(lambda: len(stand.other.requests) == 3)  # one before, and these two
        _step(monkeypatch, step_s)
        assert cooldown.is_resting and 0 < cooldown.left_s() <= 60
        replies = [await task for task in at_work]
        replies.append(await stand.ask(stream=False, deadline_s=100))
    assert [reply.status for reply in replies] == [200] * 3
    for trace in stand.traces:
        times = [trace.duration_s, trace.overhead_s, *(call.end_s - call.start_s for call in trace.calls)]
        assert all(0 <= seconds < 100 for seconds in times)
    took_s = [float(reply.r2["duration_ms"]) for reply in replies if reply.r2]
    assert all(0 <= ms < 100_000 for ms in took_s)


def _step(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    """Every wall clock of Python, as if somebody had set the machine's."""
    wall = time.time

    class Stepped(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(wall() + step_s, tz)

    monkeypatch.setattr(time, "time", lambda: wall() + step_s)
    monkeypatch.setattr(provider_errors, "datetime", Stepped)
    monkeypatch.setattr(traces.datetime, "datetime", Stepped)


async def test_two_thousand_requests_with_faults_leave_nothing_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task, descriptor or object leaks: a leak would grow in both stretches of 800."""
    caplog.set_level(logging.INFO, "r2_serve")  # the router writes a line per request
    monkeypatch.setattr(logging.getLogger("r2_serve"), "propagate", False)  # pytest would keep each line
    async with standing(_fault_or_not(random.Random(5)), max_attempts=2, cooldown={"first_s": 0}) as stand:
        statuses = await _ask_many(stand, 400)
        held = [_held(stand)]
        for _ in range(2):
            statuses += await _ask_many(stand, 800)
            held.append(_held(stand))
    print([{name: late[name] - early[name] for name in late} for early, late in pairwise(held)])
    growth = {name: min(late[name] - early[name] for early, late in pairwise(held)) for name in held[0]}
    assert sum(statuses.values()) == 2_000
    assert statuses["answered"] > 1_500
    assert statuses["failed"] > 50
    assert growth["tasks"] == 0
    assert growth["descriptors"] <= 3
    assert growth["objects"] < 400, "one object in two requests"
    assert growth["bytes"] < 10_000_000


def _fault_or_not(rng: random.Random) -> Any:
    """One answer in five is a fault that shows at once."""
    scripts = {True: STREAMED, False: PLAIN}
    quick = {
        kind: [fault.script for fault in faults.values() if not fault.is_slow]
        for kind, faults in scripts.items()
    }

    def script(request: dict[str, Any]) -> Script:
        return rng.choice(quick[bool(request.get("stream"))]) if rng.random() < 0.2 else healthy(request)

    return script


async def _ask_many(stand: Stand, count: int) -> Counter[str]:
    statuses: Counter[str] = Counter()

    async def work(waiting: Iterator[int]) -> None:
        for i in waiting:
            reply = await stand.ask(stream=i % 2 == 0, model=("first", "alone")[i % 3 == 0])
            statuses["failed" if reply.error else "answered"] += 1

    waiting = iter(range(count))
    async with asyncio.TaskGroup() as group:
        for _ in range(32):
            group.create_task(work(waiting))
    assert sum(len(trace.calls) for trace in stand.traces) == len(stand.upstream.requests) + len(
        stand.other.requests
    )
    return statuses


def _held(stand: Stand) -> dict[str, int]:
    """What is left when nothing is asked. The test's own notes are thrown away."""
    stand.traces.clear()
    stand.upstream.requests.clear()
    stand.other.requests.clear()
    gc.collect()
    process = psutil.Process()
    return {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": process.num_fds(),
        "objects": len(gc.get_objects()),
        "bytes": process.memory_info().rss,
    }
