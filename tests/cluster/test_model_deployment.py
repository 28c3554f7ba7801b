"""`ModelDeployment` as Serve calls it, without a cluster: adapters change all at once and never fatally."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from r2_serve.types import EngineCall

pytestmark = [pytest.mark.ray, pytest.mark.smoke]
pytest.importorskip("ray")

from ray.exceptions import RayTaskError  # noqa: E402

from r2_serve.cluster import deployments  # noqa: E402
from r2_serve.cluster.deployments import ModelDeployment  # noqa: E402
from r2_serve.cluster.handles import unwrapped  # noqa: E402
from r2_serve.config import ModelServerConfig, ScriptedEngineConfig  # noqa: E402
from r2_serve.engines.scripted import ScriptedEngine  # noqa: E402
from r2_serve.errors import (  # noqa: E402
    AnswerWithheld,
    ConfigError,
    EngineDied,
    EngineRefused,
    EngineUnavailable,
)
from r2_serve.types import Completion, Delta, Message, Usage, Work  # noqa: E402
from tests.support.small_adapters import adapter  # noqa: E402

HI: Sequence[Message] = [Message(role="user", content="hi")]


def deployment() -> ModelDeployment:
    return ModelDeployment(
        ModelServerConfig(engine=ScriptedEngineConfig(kind="scripted", replies=("by {adapter}",)))
    )


async def answer_of(model: ModelDeployment, name: str | None) -> str:
    return (await model.generate(EngineCall(messages=HI, adapter=name))).text


async def test_user_config_loads_and_drops_adapters(tmp_path: Path) -> None:
    model, first, second = deployment(), adapter(tmp_path, "a1"), adapter(tmp_path, "a2")
    await model.reconfigure({"adapters": {"a1": str(first)}})
    await model.check_health()
    await model.reconfigure({"adapters": {"a1": str(first), "a2": str(second)}})
    assert [await answer_of(model, name) for name in ("a1", "a2", None)] == ["by a1", "by a2", "by base"]
    await model.reconfigure({"adapters": {"a2": str(second)}})
    with pytest.raises(EngineRefused, match=r"no adapter 'a1'; this engine has \['a2'\]"):
        await answer_of(model, "a1")


async def test_failed_change_of_adapters_changes_nothing_on_a_running_replica(
    tmp_path: Path,
) -> None:
    model, first, second = deployment(), adapter(tmp_path, "a1"), adapter(tmp_path, "a2")
    await model.reconfigure({"adapters": {"a1": str(first)}})
    await model.check_health()
    await model.reconfigure({"adapters": {"a2": str(second), "gone": str(tmp_path / "gone")}})
    assert await answer_of(model, "a1") == "by a1"
    for name in ("a2", "gone"):
        with pytest.raises(EngineRefused, match="no adapter"):
            await answer_of(model, name)
    await model.reconfigure({"adapters": {"a2": str(second)}})
    assert await answer_of(model, "a2") == "by a2"


async def test_replica_that_starts_with_a_broken_adapter_fails_with_the_reason(tmp_path: Path) -> None:
    model, broken = deployment(), adapter(tmp_path, "a1")
    (broken / "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(ConfigError, match="is not what was written"):
        await model.reconfigure({"adapters": {"a1": str(broken)}})


@pytest.mark.parametrize(
    ("changes", "called", "message"),
    [({"codec_version": 99}, "a1", "version 99"), ({}, "other", "holds adapter 'a1', not 'other'")],
)
async def test_manifest_of_an_adapter_is_checked_if_there_is_one(
    tmp_path: Path, changes: dict[str, int], called: str, message: str
) -> None:
    path = adapter(tmp_path, "a1", **changes)
    with pytest.raises(ConfigError, match=message):
        await deployment().load_adapter(called, str(path))


async def test_same_adapter_name_from_another_directory_is_refused(tmp_path: Path) -> None:
    model, first = deployment(), adapter(tmp_path / "one", "a1")
    await model.load_adapter("a1", str(first))
    await model.load_adapter("a1", str(first))
    with pytest.raises(ConfigError, match="another directory"):
        await model.load_adapter("a1", str(adapter(tmp_path / "two", "a1")))


async def test_replica_passes_on_the_usage_of_a_call() -> None:
    """The usage is marked as estimated; the error of a failed call carries it too."""

    class Guessing(ScriptedEngine):
        async def generate(self, call: EngineCall) -> Completion:
            return (await super().generate(call)).model_copy(update={"is_usage_estimated": True})

        async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
            async for delta in super().stream(call):
                yield delta.model_copy(update={"is_usage_estimated": delta.usage is not None})

    model, withheld = deployment(), AnswerWithheld("filtered")
    withheld.usage = Usage(prompt_tokens=7, completion_tokens=2)
    model._engine = Guessing(["done", "done", withheld])
    assert (await model.generate(EngineCall(messages=HI))).is_usage_estimated
    assert [delta async for delta in model.stream(EngineCall(messages=HI))][-1].is_usage_estimated
    with pytest.raises(AnswerWithheld) as caught:
        await model.generate(EngineCall(messages=HI))
    arrived = unwrapped(RayTaskError("generate", "the traceback", pickle.loads(pickle.dumps(caught.value))))
    assert isinstance(arrived, AnswerWithheld) and arrived.usage == withheld.usage


async def test_reply_says_how_much_replica_time_it_used() -> None:
    """Two calls at once of half a second each: each took half a second and half of the replica."""
    engine = ScriptedEngineConfig(kind="scripted", replies=("done",), delay_s=0.5)
    model = ModelDeployment(ModelServerConfig(engine=engine))

    async def streamed() -> list[Work | None]:
        return [delta.work async for delta in model.stream(EngineCall(messages=HI))]

    plain, deltas = await asyncio.gather(model.generate(EngineCall(messages=HI)), streamed())
    assert all(work is None for work in deltas[:-1])
    for work in (plain.work, deltas[-1]):
        assert work is not None and work.service_s >= 0.5
        assert work.share_s < 0.9 * work.service_s


class Ended(Exception):
    """Stands for the end of the process."""


class Dying(ScriptedEngine):
    """An engine whose own process is dead, or which only fails its calls."""

    is_dead = True

    async def check_health(self) -> None:
        if self.is_dead:
            raise EngineDied("dead")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(deployments.os, "_exit", end)
    monkeypatch.setattr(deployments.logging, "shutdown", lambda: None)


@pytest.mark.usefixtures("ends")
async def test_replica_whose_engine_is_dead_ends_itself_at_the_next_call_or_check() -> None:
    """Also where the engine reports the death as an ordinary failure of the call."""
    model = deployment()
    model._engine = Dying([EngineUnavailable("a call failed")])
    with pytest.raises(Ended):
        await model.generate(EngineCall(messages=HI))
    with pytest.raises(Ended):
        [delta async for delta in model.stream(EngineCall(messages=HI))]
    with pytest.raises(Ended):
        await model.check_health()


@pytest.mark.usefixtures("ends")
async def test_replica_whose_engine_lives_reports_the_failure_of_a_call() -> None:
    model, engine = deployment(), Dying([EngineUnavailable("a call failed")])
    engine.is_dead, model._engine = False, engine
    with pytest.raises(EngineUnavailable, match="a call failed"):
        await model.generate(EngineCall(messages=HI))
    await model.check_health()
