"""What models can do, by provider, name, engine and the operator's word; and what calls need of them."""

from __future__ import annotations

from typing import Any

import pytest

from r2_serve.config import (
    EmbeddingsEngineConfig,
    HostedEngineConfig,
    ModelConfig,
    ModelServerConfig,
    NumpyEngineConfig,
    ServedEngineConfig,
    VllmEngineConfig,
    with_engines,
)
from r2_serve.config.abilities import EVERYTHING, UNSAID
from r2_serve.dialects.messages import writing as messages
from r2_serve.dialects.responses import writing as responses
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import InvalidRequest
from r2_serve.types import READ_BY_ENGINES, Message, Need, Sampling, asks_of, needs_of
from tests.support.in_process import Router, model, query

PROVIDERS = {
    "openai": "https://api.openai.com/v1",
    "deepseek": "https://api.deepseek.com",
    "qwen": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "groq": "https://api.groq.com/openai/v1",
    "other": "https://models.example.org/v1",
}


def hosted(provider: str, name: str, **card: Any) -> ModelConfig:
    engine = HostedEngineConfig(kind="openai", model=name, base_url=PROVIDERS[provider])
    return model("m", engine=engine, **card)


@pytest.mark.parametrize(
    ("provider", "name", "able", "unable"),
    [
        ("openai", "gpt-4o", "chat tools vision files json_schema logprobs choices", "embeddings audio"),
        ("openai", "gpt-4o-audio-preview", "audio tools", "reasoning"),
        ("openai", "gpt-5.4-mini", "reasoning vision tools", "completions embeddings"),
        ("openai", "o3", "reasoning tools vision", "audio"),
        ("openai", "text-embedding-3-small", "embeddings", "chat tools completions"),
        ("openai", "gpt-3.5-turbo-instruct", "completions", "chat tools embeddings"),
        (
            "deepseek",
            "deepseek-chat",
            "tools json_object logprobs reasoning",
            "vision json_schema embeddings",
        ),
        ("qwen", "qwen2.5-7b-instruct", "tools json_object", "vision json_schema"),
        ("qwen", "qwen2.5-vl-72b-instruct", "vision tools", ""),
        ("groq", "llama-3.3-70b-versatile", "tools json_object", "choices logprobs embeddings"),
    ],
)
def test_known_providers_preset_what_their_models_can_do(
    provider: str, name: str, able: str, unable: str
) -> None:
    abilities = hosted(provider, name).abilities
    assert abilities.issuperset(able.split())
    assert abilities.isdisjoint(unable.split())


def test_unlisted_hosted_model_counts_as_capable_of_everything() -> None:
    assert hosted("other", "unheard-of-7").abilities == EVERYTHING


API_WRITERS = {"anthropic": messages.write_request, "openai-responses": responses.write_request}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in UNSAID.items() for name in sorted(names)]
)
def test_model_whose_api_lacks_a_parameter_lacks_it_too(kind: Any, name: str) -> None:
    """Routed queries go to another model; asked by name, the model refuses it by name."""
    value: Any = 0.5 if name.endswith("penalty") else "some"
    chat: Any = {"model": "m", "messages": [], name: value}
    sampling = Sampling(forwarded={} if name in READ_BY_ENGINES else {name: value})
    with pytest.raises(InvalidRequest) as refused:
        API_WRITERS[kind](chat, (), sampling)
    assert refused.value.param == name
    asked = {"seed": Sampling(seed=1), "stop": Sampling(stop=("x",))}.get(name, sampling)
    needs = list(asks_of((), asked))
    card = model("m", engine=HostedEngineConfig(kind=kind, model="m", base_url=PROVIDERS["other"]))
    assert card.lacking(needs) == Need(name, None)
    assert hosted("other", "m").lacking(needs) is None


def test_local_models_read_seed_and_stop() -> None:
    card = model("m", engine=NumpyEngineConfig(kind="numpy", path="embedded:words-small"))
    assert card.lacking(asks_of((), Sampling(seed=1, stop=("x",)))) is None


def test_the_operators_word_counts_more_than_the_preset() -> None:
    card = hosted("deepseek", "deepseek-chat", capabilities={"vision": True, "tools": False})
    assert "vision" in card.abilities
    assert "tools" not in card.abilities


def test_served_model_can_do_what_the_engine_of_its_application_can() -> None:
    card = model("m", engine=ServedEngineConfig(kind="served", app="m-app"))
    assert card.abilities == EVERYTHING, "the engine itself refuses what it cannot do"
    engine = NumpyEngineConfig(kind="numpy", path="embedded:words-small")
    (known,) = with_engines([card], {"m-app": ModelServerConfig(engine=engine)})
    assert known.abilities == {"chat", "completions"}
    assert known.lacking([Need("top_k", None)]) == Need("top_k", None)


@pytest.mark.parametrize(
    ("settings", "able", "unable"),
    [
        ({"model": "a/b"}, "chat json_schema logprobs logit_bias choices", "tools vision reasoning"),
        ({"model": "a/b", "tool_parser": "hermes"}, "tools", "reasoning"),
        ({"model": "Qwen/Qwen3-8B", "reasoning_parser": "qwen3"}, "reasoning", "vision"),
        ({"model": "Qwen/Qwen2.5-VL-7B-Instruct"}, "vision", "tools"),
        ({"model": "google/gemma-3-12b-it"}, "vision", "audio"),
    ],
)
def test_settings_of_vllm_tell_what_its_model_can_do(settings: Any, able: str, unable: str) -> None:
    card = model("m", engine=VllmEngineConfig(kind="vllm", **settings))
    assert card.abilities.issuperset(able.split())
    assert card.abilities.isdisjoint(unable.split())
    assert card.lacking([Need("top_k", None), Need("chat_template_kwargs", None)]) is None
    assert card.lacking([Need("best_of", None)]) == Need("best_of", None)


def test_needs_name_the_parameter_and_the_part_that_ask() -> None:
    messages = [
        Message(role="user", content=({"type": "text", "text": "x"}, {"type": "input_audio"})),
        Message(role="assistant", content=None, more={"tool_calls": [{"id": "1"}]}),
        Message(role="tool", content="sun", more={"tool_call_id": "1"}),
    ]
    forwarded = {"n": 3, "user": "u", "tools": [{}], "top_k": 5, "logprobs": False, "reasoning_effort": "low"}
    needs = needs_of(messages, Sampling(forwarded=forwarded, response_format={"type": "json_object"}))
    assert list(needs) == [
        ("model", "chat"),
        ("n", "choices"),
        ("tools", "tools"),
        ("top_k", None),
        ("reasoning_effort", "reasoning"),
        ("response_format", "json_object"),
        ("messages.0.content.1", "audio"),
        ("messages.1.tool_calls", "tools"),
        ("messages.2.role", "tools"),
        ("messages.2.tool_call_id", "tools"),
    ]


@pytest.mark.parametrize(
    ("api", "needed"), [("chat", "chat"), ("completions", "completions"), ("embeddings", "embeddings")]
)
def test_call_needs_a_model_of_its_kind(api: Any, needed: str) -> None:
    card = model("m", engine=EmbeddingsEngineConfig(kind="sentence-embeddings", path="x"))
    lacking = card.lacking(needs_of([], Sampling(api=api, forwarded={"input": "x"})))
    assert lacking == (None if api == "embeddings" else Need("model", needed))


@pytest.mark.parametrize("can", [True, False])
async def test_schema_of_the_decomposer_goes_only_to_models_that_take_one(can: bool) -> None:
    engine = ScriptedEngine(["no plan"])
    card = {"decomposer": {"capabilities": {"json_schema": can}}}
    router = Router(cards=card, decomposer=engine, allocator=["no"], small=["a"], large=["b"])
    await router.pipeline.answer(query())
    assert (engine.calls[0].sampling.json_schema is not None) == can
