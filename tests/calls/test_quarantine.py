"""A prompt that kills replicas kills two at most, and no honest call fails with them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import Any

import pytest

from r2_serve.calls.budget import Budget
from r2_serve.calls.caller import Caller, CallSpec
from r2_serve.calls.ledger import Ledger
from r2_serve.calls.pool import Pool
from r2_serve.calls.quarantine import PATIENCE_S
from r2_serve.config import DecomposerConfig, LimitsConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineError, PoisonousRequest, ReplicaDied
from r2_serve.prompts.conversation import asked
from r2_serve.router.decomposer import Decomposer
from r2_serve.types import Completion, EngineCall, Usage
from tests.support.in_process import model, plan_json, pool_of, user
from tests.support.virtual_time import now_s, run

POISON = "poison"
RESTART_S = 5.0
LIMITS = LimitsConfig(max_attempts=3, cooldown={"first_s": 0})


class Deployment:
    """One replica, which a poison call kills after 0.1 s with all its calls; the next is up 5 s later."""

    def __init__(self, *, reply: str = "ok", service_s: float = 1.0) -> None:
        self.num_deaths = 0
        self._is_up = asyncio.Event()
        self._is_up.set()
        self._at_work: set[asyncio.Future[None]] = set()
        self._reply, self._service_s = reply, service_s

    async def generate(self, call: EngineCall) -> Completion:
        await self._is_up.wait()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._at_work.add(done)
        is_poison = POISON in call.messages[-1].content
        timer = (
            loop.call_later(0.1, self._die) if is_poison else loop.call_later(self._service_s, _finish, done)
        )
        try:
            await done
        finally:
            timer.cancel()
            self._at_work.discard(done)
        return Completion(text=self._reply, usage=Usage(), finish_reason="stop")

    stream: Any = None

    def _die(self) -> None:
        if not self._is_up.is_set():
            return
        self.num_deaths += 1
        self._is_up.clear()
        for future in self._at_work:
            if not future.done():
                future.set_exception(ReplicaDied("gone", None, f"replica {self.num_deaths}"))
        asyncio.get_running_loop().call_later(RESTART_S, self._is_up.set)


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def ask(pool: Pool, text: str) -> str:
    spec = CallSpec(render=lambda codec: list(user(text)), stage="execute")
    try:
        return (await Caller(pool, Ledger(Budget()), LIMITS, uniform=lambda: 1.0).call("small", spec)).answer
    except PoisonousRequest:
        return "refused"


@pytest.mark.parametrize("has_fallback", [False, True])
def test_honest_calls_survive_a_poisonous_one_on_the_same_replica(has_fallback: bool) -> None:
    async def check() -> None:
        small, large = Deployment(), Deployment()
        fallbacks = {"fallbacks": ("large",)} if has_fallback else {}
        pool = pool_of((model("small", **fallbacks), small), (model("large"), large))
        tasks = [asyncio.ensure_future(ask(pool, "hello")) for _ in range(10)]
        poison = asyncio.ensure_future(ask(pool, POISON))
        tasks += [asyncio.ensure_future(ask(pool, "hello")) for _ in range(10)]
        await asyncio.sleep(3)
        tasks += [asyncio.ensure_future(ask(pool, "hello")) for _ in range(10)]
        assert await poison == "refused"
        assert await asyncio.gather(*tasks) == ["ok"] * 30
        assert small.num_deaths + large.num_deaths == 2

    run(check())


def test_death_that_is_reported_twice_counts_once() -> None:
    gone = ReplicaDied("gone", None, "replica 1")
    assert run(ask(pool_of((model("small"), ScriptedEngine([gone, gone, "ok"]))), "hello")) == "ok"


def test_deaths_of_different_models_count_together() -> None:
    small, large = (ScriptedEngine([ReplicaDied("gone", None, replica)]) for replica in ("a", "b"))
    assert (
        run(ask(pool_of((model("small", fallbacks=("large",)), small), (model("large"), large)), "hello"))
        == "refused"
    )
    assert (len(small.calls), len(large.calls)) == (3, 1), "three attempts at one replica, which died once"


def test_crash_delays_its_calls_by_no_more_than_the_patience() -> None:
    """Forty honest calls of 30 s each lose their replica: one at a time would take 20 minutes."""

    async def check() -> None:
        small = Deployment(service_s=30)
        pool = pool_of((model("small"), small))
        tasks = [asyncio.ensure_future(ask(pool, "hello")) for _ in range(40)]
        await asyncio.sleep(1)
        small._die()
        assert await asyncio.gather(*tasks) == ["ok"] * 40
        assert now_s() < 1 + PATIENCE_S + RESTART_S + 30 + 1

    run(check())


def test_suspect_that_is_cancelled_in_the_queue_lets_another_call_probe() -> None:
    async def check() -> None:
        replies: list[Any] = [ReplicaDied("gone", None, "a"), ReplicaDied("gone", None, "b"), "back"]
        pool = pool_of((model("small"), ScriptedEngine(replies)))
        limits = LimitsConfig(max_attempts=2, cooldown={"after_failures": 1, "first_s": 0.1})
        async with pool["small"].quarantine.turn():
            caller = Caller(pool, Ledger(Budget()), limits, uniform=lambda: 1.0)
            suspect = asyncio.ensure_future(
                caller.call("small", CallSpec(render=lambda codec: list(user("x")), stage="execute"))
            )
            await asyncio.sleep(5)
            suspect.cancel()
            await asyncio.wait([suspect])
        cooldown = pool["small"].cooldown
        assert cooldown.left_s() == 0
        permit = cooldown.ask()
        assert permit is not None and permit.is_probe

    run(check())


def test_poisonous_query_kills_two_replicas_however_many_plans_are_sampled() -> None:
    async def check() -> None:
        planner = Deployment(reply=plan_json("a"))
        decomposer = Decomposer(pool_of((model("planner"), planner)))
        config = DecomposerConfig(model="planner", num_samples=5)
        with pytest.raises(PoisonousRequest):
            await decomposer.decompose(asked(POISON), config, LIMITS, Ledger(Budget()))
        await asyncio.sleep(100)
        assert planner.num_deaths == 2

    run(check())


def test_call_whose_replicas_were_lost_without_its_fault_is_asked_again_and_waits_for_no_turn() -> None:
    async def check() -> None:
        lost: list[Any] = [ReplicaDied("gone", None, f"node {name}", is_suspicious=False) for name in "ab"]
        pool = pool_of((model("small"), ScriptedEngine([*lost, "back"])))
        async with pool["small"].quarantine.turn():
            assert await ask(pool, "x") == "back"

    run(check())


def test_poisonous_request_is_not_an_engine_error_that_a_stage_would_work_around() -> None:
    assert not issubclass(PoisonousRequest, EngineError)
    assert 400 <= PoisonousRequest.status < 500, "clients send a 5xx again by themselves"


def test_scripted_engine_dies_at_the_scripted_text() -> None:
    code = """
import asyncio
from r2_serve.config import ScriptedEngineConfig
from r2_serve.engines import make_engine
from r2_serve.types import EngineCall, Message
engine = make_engine(ScriptedEngineConfig(kind="scripted", dies_on="poison"))
call = EngineCall(messages=[Message(role="user", content="hello")])
print(asyncio.run(engine.generate(call)).text, flush=True)
asyncio.run(engine.generate(EngineCall(messages=[Message(role="user", content="the poison in it")])))
print("survived")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("ok\n", -signal.SIGKILL)
