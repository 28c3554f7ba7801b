"""EmbeddingsEngine, really running sentence-transformers on a random tiny model."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

pytest.importorskip("torch")
if find_spec("sentence_transformers") is None:
    pytest.skip("needs sentence-transformers", allow_module_level=True)
pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]


from r2_serve.config import EmbeddingsEngineConfig, ModelConfig, RouterConfig, ServerConfig  # noqa: E402
from r2_serve.engines.embedder import EmbeddingsEngine  # noqa: E402
from r2_serve.errors import (  # noqa: E402
    ConfigError,
    ContextOverflow,
    EngineError,
    EngineRefused,
    EngineUnavailable,
)
from r2_serve.http.api import create_app  # noqa: E402
from r2_serve.router.router import in_process  # noqa: E402
from r2_serve.types import Completion, EngineCall, Message, Sampling  # noqa: E402
from tests.support.engine_calls import engine_call  # noqa: E402
from tests.support.in_process import model, routing  # noqa: E402
from tests.support.served_app import openai_client  # noqa: E402
from tests.support.tiny_embedder import SIZE, embedder_checkpoint  # noqa: E402

TEXTS = ["a red apple", "the green pear on the table", "a fast car"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return embedder_checkpoint(tmp_path_factory.mktemp("embedder"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: str) -> AsyncIterator[EmbeddingsEngine]:
    engine = EmbeddingsEngine(EmbeddingsEngineConfig(kind="sentence-embeddings", path=checkpoint))
    yield engine
    await engine.aclose()


def call(given: Any, **asked: Any) -> EngineCall:
    sampling = Sampling(api="embeddings", forwarded={"input": given, **asked})
    return engine_call([Message(role="user", content="x")], sampling)


def vectors(completion: Completion) -> np.ndarray[Any, Any]:
    body: Any = completion.body
    return np.array([entry["embedding"] for entry in body["data"]])


async def test_vectors_are_those_of_the_library_and_tokens_are_counted(
    engine: EmbeddingsEngine, checkpoint: str
) -> None:
    from sentence_transformers import SentenceTransformer

    reply = await engine.generate(call(TEXTS))
    expected = SentenceTransformer(checkpoint, device="cpu").encode(TEXTS)
    assert vectors(reply) == pytest.approx(expected, abs=1e-6)
    assert reply.usage.prompt_tokens == sum(len(text.split()) + 2 for text in TEXTS)
    assert reply.usage.completion_tokens == 0


async def test_base64_holds_the_same_numbers(engine: EmbeddingsEngine) -> None:
    plain = vectors(await engine.generate(call("a red apple")))[0]
    body: Any = (await engine.generate(call("a red apple", encoding_format="base64"))).body
    packed = base64.b64decode(body["data"][0]["embedding"])
    assert np.frombuffer(packed, "<f4") == pytest.approx(plain, abs=1e-7)


async def test_fewer_dimensions_are_the_first_ones_at_length_one(engine: EmbeddingsEngine) -> None:
    whole = vectors(await engine.generate(call("a red apple")))[0]
    short = vectors(await engine.generate(call("a red apple", dimensions=4)))[0]
    assert short == pytest.approx(whole[:4] / np.linalg.norm(whole[:4]), abs=1e-6)


async def test_concurrent_calls_get_their_own_vectors(engine: EmbeddingsEngine) -> None:
    together = await asyncio.gather(*(engine.generate(call(text)) for text in TEXTS * 10))
    alone = [vectors(await engine.generate(call(text)))[0] for text in TEXTS]
    for index, reply in enumerate(together):
        assert vectors(reply)[0] == pytest.approx(alone[index % 3], abs=1e-5)


@pytest.mark.parametrize(
    ("given", "asked", "param", "error"),
    [
        ([5, 6], {}, "input", EngineRefused),
        ("", {}, "input", EngineRefused),
        (["a"] * 2049, {}, "input", EngineRefused),
        ("a red apple on the table " * 3, {}, "input", ContextOverflow),
        ("a", {"dimensions": SIZE + 1}, "dimensions", EngineRefused),
        ("a", {"dimensions": True}, "dimensions", EngineRefused),
        ("a", {"encoding_format": "int8"}, "encoding_format", EngineRefused),
    ],
)
async def test_what_the_model_does_not_do_is_refused_by_name(
    engine: EmbeddingsEngine, given: Any, asked: Any, param: str, error: type[EngineError]
) -> None:
    with pytest.raises(error) as caught:
        await engine.generate(call(given, **asked))
    assert caught.value.param == param


async def test_long_inputs_are_cut_where_the_operator_says_so(checkpoint: str) -> None:
    config = EmbeddingsEngineConfig(kind="sentence-embeddings", path=checkpoint, cuts_inputs=True)
    engine = EmbeddingsEngine(config)
    cut, long = "a red apple on the table a red apple on", "a red apple on the table " * 3
    first, second = await engine.generate(call(cut)), await engine.generate(call(long))
    assert vectors(first) == pytest.approx(vectors(second), abs=1e-6)
    assert second.usage.prompt_tokens == 12
    await engine.aclose()
    with pytest.raises(EngineUnavailable):
        await engine.generate(call("a"))


async def test_chat_and_a_missing_model_are_refused(engine: EmbeddingsEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineRefused, match="embeddings and nothing else"):
        await engine.generate(engine_call([Message(role="user", content="x")], Sampling()))
    with pytest.raises(ConfigError, match="cannot load"):
        EmbeddingsEngine(EmbeddingsEngineConfig(kind="sentence-embeddings", path=str(tmp_path)))


async def test_openai_client_gets_vectors_of_a_local_model_and_pays_for_its_tokens(
    engine: EmbeddingsEngine,
) -> None:
    def embeds(name: str) -> ModelConfig:
        config = EmbeddingsEngineConfig(kind="sentence-embeddings", path="x")
        return model(name, engine=config, usd_per_mtok_out=0)

    names = ("decomposer", "allocator", "small", "large")
    cards = (*(model(name) for name in names), embeds("minilm"))
    router = in_process(RouterConfig(models=cards), routing(), lambda _: engine)
    async with openai_client(create_app(router, ServerConfig())) as client:
        reply = await client.embeddings.create(model="minilm", input=TEXTS)
        (listed,) = [found async for found in client.models.list() if found.id == "minilm"]
    assert np.array([entry.embedding for entry in reply.data]) == pytest.approx(
        vectors(await engine.generate(call(TEXTS))), abs=1e-6
    )
    assert reply.usage.prompt_tokens == sum(len(text.split()) + 2 for text in TEXTS)
    assert (reply.model_extra or {})["r2"]["cost_usd"] == f"{reply.usage.prompt_tokens / 1e6:f}"
    assert (listed.model_extra or {})["r2"]["capabilities"] == ["embeddings"]
