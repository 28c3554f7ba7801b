"""Providers that a config may name, so that a hosted model needs no address and no name of a key.

`{provider: deepseek, model: deepseek-chat}` stands for the kind, the address and the variable of the key that
the provider documents. Each of them can still be written. The table was made in November 2026 from the API
references of the providers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

ProviderName = Literal[
    "openai",
    "anthropic",
    "deepseek",
    "google",
    "mistral",
    "groq",
    "openrouter",
    "together",
    "fireworks",
    "xai",
    "moonshot",
    "dashscope",
    "ollama",
    "llama.cpp",
    "lm-studio",
]


@dataclass(frozen=True)
class Provider:
    """A place where models are hosted."""

    base_url: str
    api_key_env: str | None
    """Environment variable in which the provider's own clients expect the key; None for a server without."""
    kind: str = "openai"
    """What it speaks (`HostedEngineConfig.kind`)."""

    @property
    def is_local(self) -> bool:
        """Whether it is a server on this machine, which bills nothing."""
        return self.api_key_env is None


PROVIDERS: dict[str, Provider] = {
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": Provider("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", "anthropic"),
    "deepseek": Provider("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "google": Provider("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "mistral": Provider("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "groq": Provider("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together": Provider("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "fireworks": Provider("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "xai": Provider("https://api.x.ai/v1", "XAI_API_KEY"),
    "moonshot": Provider("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    "dashscope": Provider("https://dashscope.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
    "ollama": Provider("http://127.0.0.1:11434/v1", None),
    "llama.cpp": Provider("http://127.0.0.1:8080/v1", None),
    "lm-studio": Provider("http://127.0.0.1:1234/v1", None),
}


def with_provider(engine: object) -> object:
    """The fields of a hosted engine as they are written, with those of its provider where they are not."""
    if not isinstance(engine, dict) or "provider" not in engine:
        return engine
    if (provider := _named(engine)) is None:
        return {"kind": "openai", **engine}  # the section of that kind refuses the name
    known = {"kind": provider.kind, "base_url": provider.base_url, "api_key_env": provider.api_key_env}
    return {**known, **engine}


def with_engine_defaults(card: object) -> object:
    """The fields of a model's card, where an engine with a provider has its defaults, and a model's name if
    the provider has the same one for it; a server on this machine costs nothing. A model without an engine
    is served by the application `m-NAME`."""
    if isinstance(card, dict) and "engine" not in card and "name" in card:
        return {**card, "engine": {"kind": "served", "app": f"m-{card['name']}"}}
    if not isinstance(card, dict) or not isinstance(engine := card.get("engine"), dict):
        return card
    if not isinstance(filled := with_provider(engine), dict) or "provider" not in filled:
        return card
    provider = _named(engine)
    free = {"usd_per_mtok_in": 0, "usd_per_mtok_out": 0} if provider and provider.is_local else {}
    return {**free, **card, "engine": {"model": card.get("name"), **filled}}


def provider_at(base_url: str) -> str:
    """The provider at an address; the host's name if it is none of ours."""
    host = urlsplit(base_url).hostname or ""
    return next((n for n, known in PROVIDERS.items() if urlsplit(known.base_url).hostname == host), host)


def _named(engine: dict[str, object]) -> Provider | None:
    name = engine["provider"]
    return PROVIDERS.get(name) if isinstance(name, str) else None
