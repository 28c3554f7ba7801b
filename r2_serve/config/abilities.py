"""What models can do where the config does not say: by the provider's address, by name, by engine.

A hosted model that is not listed counts as capable of everything, and its provider's refusal is passed on. So
the table names only what a provider documents as missing, and an operator can correct it on the card
(`ModelConfig.capabilities`). It was written in November 2026.
"""

from __future__ import annotations

import re
from typing import get_args
from urllib.parse import urlsplit

from r2_serve.config.engines import (
    EmbeddingsEngineConfig,
    EngineConfig,
    HostedEngineConfig,
    RecordedEngineConfig,
    ScriptedEngineConfig,
    TransformersEngineConfig,
    VllmEngineConfig,
)
from r2_serve.types import READ_BY_ENGINES, Ability

_OF_MESSAGES: frozenset[Ability] = frozenset({"messages_api"})
_OF_RESPONSES: frozenset[Ability] = frozenset({"responses_api"})
EVERYTHING: frozenset[Ability] = frozenset(get_args(Ability)) - _OF_MESSAGES - _OF_RESPONSES
TEXT_ALONE: frozenset[Ability] = frozenset({"chat"})
_MEDIA: frozenset[Ability] = frozenset({"vision", "audio", "files"})
_FORMATS: frozenset[Ability] = frozenset({"json_object", "json_schema"})
_OTHER_ENDPOINTS: frozenset[Ability] = frozenset({"completions", "embeddings"})
_TOKENS: frozenset[Ability] = frozenset({"logprobs", "logit_bias"})
_IN_RESPONSES: frozenset[Ability] = EVERYTHING - _OTHER_ENDPOINTS - {"audio", "choices", "logit_bias"}
_NOT_IN_MESSAGES: frozenset[Ability] = _TOKENS | _OTHER_ENDPOINTS | {"audio", "choices", "json_object"}
_EMBEDDER = r"embed|(^|/)(bge|gte|e5)-|minilm"
_ANY = ""

_MISSING: tuple[tuple[str, str, frozenset[Ability]], ...] = (
    ("", _EMBEDDER, EVERYTHING - {"embeddings"}),
    ("api.openai.com", r"^(davinci-002|babbage-002|gpt-3\.5-turbo-instruct)", EVERYTHING - {"completions"}),
    ("api.openai.com", r"^(gpt-3\.5-turbo(?!-instruct)|gpt-4(-0613|-turbo-preview)?$)", _MEDIA),
    ("api.openai.com", r"^(gpt-3\.5|gpt-4)", frozenset({"reasoning"})),
    ("api.openai.com", r"^(gpt-3\.5-turbo(?!-instruct)|gpt-[4-9]|o[1-9]|chatgpt)", _OTHER_ENDPOINTS),
    ("api.openai.com", r"^(?!.*audio)(gpt-[4-9]|o[1-9])", frozenset({"audio"})),
    ("api.anthropic.com", _ANY, _TOKENS | _OTHER_ENDPOINTS | {"audio", "choices"}),
    ("api.deepseek.com", _ANY, _MEDIA | {"json_schema", "embeddings", "choices", "logit_bias"}),
    ("api.groq.com", _ANY, _TOKENS | _OTHER_ENDPOINTS | {"choices", "audio"}),
    ("api.mistral.ai", _ANY, _TOKENS),
    ("api.moonshot.cn", _ANY, frozenset({"embeddings", "audio"})),
    ("api.moonshot.ai", _ANY, frozenset({"embeddings", "audio"})),
    (
        "aliyuncs.com",
        r"^qwen(1\.5|2|2\.5)-[0-9.]+b",
        _MEDIA | _OTHER_ENDPOINTS | {"json_schema", "reasoning"},
    ),
    ("generativelanguage.googleapis.com", r"^gemini", frozenset({"completions"})),
)
"""What is missing, by the end of the host's name and a pattern of the model's name. Every row that fits
counts. Sources: the API references of the providers."""

_NOT_IN_EITHER = frozenset(
    {"frequency_penalty", "presence_penalty", "prediction", "seed", "web_search_options"}
)
UNSAID: dict[str, frozenset[str]] = {
    "anthropic": _NOT_IN_EITHER | {"moderation", "service_tier", "verbosity"},
    "openai-responses": _NOT_IN_EITHER | {"stop"},
}
"""Parameters of chat completions that an API does not have and that belong to no ability, by engine kind."""

VLLM_PARAMETERS = frozenset(
    {"top_k", "min_p", "min_tokens", "repetition_penalty", "chat_template_kwargs", "prompt", "echo"}
)
"""Parameters of no ability that vLLM reads and that R2 lets clients send. Source: vLLM 0.29,
`vllm/entrypoints/openai/{chat_completion,completion}/protocol.py`."""
EMBEDDING_PARAMETERS = frozenset({"input", "dimensions", "encoding_format"})
"""Parameters that our engine of embeddings reads."""
_SEES = re.compile(r"vision|llava|pixtral|internvl|gemma-?3|[-_.]vl\b|[-_]vl[-_]|-omni|molmo|idefics|smolvlm")
"""Names of models that read images. Another model's operator writes `capabilities: {vision: true}`."""


def abilities_of(engine: EngineConfig) -> frozenset[Ability]:
    """What the model behind `engine` can do, as far as its address, its name and its settings tell."""
    if engine.kind == "served":
        return EVERYTHING if engine.runs is None else abilities_of(engine.runs)
    if isinstance(engine, HostedEngineConfig):
        return _hosted(engine)
    if isinstance(engine, VllmEngineConfig):
        return _vllm(engine)
    if isinstance(engine, EmbeddingsEngineConfig):
        return frozenset({"embeddings"})
    if isinstance(engine, RecordedEngineConfig):
        return TEXT_ALONE
    more: frozenset[Ability] = frozenset({"completions"})
    if isinstance(engine, TransformersEngineConfig):
        return TEXT_ALONE | _FORMATS | more
    return TEXT_ALONE | (_FORMATS if isinstance(engine, ScriptedEngineConfig) else more)


def is_embedder(name: str) -> bool:
    """Whether a model's name is that of a model of embeddings, which holds no conversation."""
    return re.search(_EMBEDDER, name.lower()) is not None


def parameters_of(engine: EngineConfig) -> frozenset[str] | None:
    """Names of the parameters that the engine reads beside those of `Sampling` and of its abilities.

    None if it is not known, so that every name is passed on.
    """
    if engine.kind == "served":
        return None if engine.runs is None else parameters_of(engine.runs)
    if isinstance(engine, HostedEngineConfig):
        return None
    if isinstance(engine, EmbeddingsEngineConfig):
        return EMBEDDING_PARAMETERS
    return VLLM_PARAMETERS if isinstance(engine, VllmEngineConfig) else frozenset()


def can_say(engine: EngineConfig, param: str) -> bool:
    """Whether the engine reads a parameter that belongs to no ability, or passes it on."""
    if isinstance(engine, HostedEngineConfig):
        return param not in UNSAID.get(engine.kind, ())
    known = parameters_of(engine)
    return known is None or param in known or param in READ_BY_ENGINES


def _hosted(engine: HostedEngineConfig) -> frozenset[Ability]:
    host = urlsplit(engine.base_url).hostname or ""
    if engine.kind == "anthropic":
        return EVERYTHING.union(_OF_MESSAGES) - _NOT_IN_MESSAGES
    missing = (
        missing
        for end, pattern, missing in _MISSING
        if host.endswith(end) and re.search(pattern, engine.model.lower())
    )
    able = _IN_RESPONSES | _OF_RESPONSES if engine.kind == "openai-responses" else EVERYTHING
    return able.difference(*missing)


def _vllm(engine: VllmEngineConfig) -> frozenset[Ability]:
    optional: dict[Ability, object] = {
        "tools": engine.tool_parser,
        "reasoning": engine.reasoning_parser,
        "vision": _SEES.search(engine.model.lower()),
    }
    always: frozenset[Ability] = TEXT_ALONE | _FORMATS | _TOKENS | {"choices", "completions"}
    return always.union(ability for ability, setting in optional.items() if setting is not None)
