"""What `r2-serve init` writes about: models by provider and name, in the order of their prices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches

import httpx

from r2_serve.config import HostedEngineConfig
from r2_serve.config.abilities import is_embedder
from r2_serve.config.prices import NEEDED, gpu_price, listed, table_name
from r2_serve.config.providers import PROVIDERS
from r2_serve.errors import ConfigError
from r2_serve.types import ModelGroup

SUGGESTED: Mapping[str, tuple[str, ...]] = {
    "openai": ("gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol"),
    "anthropic": ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"),
    "deepseek": ("deepseek-v4-flash", "deepseek-v4-pro"),
    "google": ("gemini-3.5-flash-lite", "gemini-4-argon"),
    "mistral": ("mistral-small-latest", "mistral-medium-latest"),
    "groq": ("openai/gpt-oss-20b", "openai/gpt-oss-120b"),
    "xai": ("grok-4-1-fast-non-reasoning", "grok-4.7"),
    "moonshot": ("kimi-k2.6", "kimi-k3.1-pro"),
}
"""A cheap and a strong model of some providers, as the price table of 2026-11-10 names them. Providers that
are not here offer too many: the operator names the models."""
DESCRIPTIONS: Mapping[ModelGroup, str] = {
    "slm": "lookups, single steps, short rewrites",
    "mlm": "general questions, several steps, longer texts",
    "llm": "the hardest steps, last resort",
}
"""The words by which an allocator chooses, until the operator has better ones."""
VIRTUAL_MODEL = "r2"
"""The name that clients ask for; no model of the pool may have it."""
GPU_USD_PER_HOUR = Decimal(1)
"""Assumed price of a busy GPU of 24 GB."""
TOKENS_PER_S_OF_1B = 5_000
"""Assumed tokens that it writes in a second with a model of one billion parameters. Larger ones are slower
in proportion."""


_OTHERS = ("usd_per_mtok_cached_read", "context_tokens")


@dataclass(frozen=True)
class Chosen:
    """A model of the config to be written."""

    name: str
    engine: Mapping[str, str]
    """The engine's section as it is written; empty for a model of this cluster."""
    usd_in: Decimal
    usd_out: Decimal
    price_source: str = ""
    """The source of prices that must be written; empty if the config takes them from its table."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Other fields of the table that must be written then: the context, and the price of cached prompts."""
    hub_name: str | None = None
    """Name at the Hugging Face hub of a model that a GPU of this cluster runs."""
    tokens_per_s: int | None = None
    """Estimated rate of such a model, from which its price follows."""

    @property
    def app(self) -> str:
        """The application that runs a local model."""
        return f"m-{self.name}"


def hosted(given: str, addresses: Mapping[str, str]) -> Chosen:
    """The hosted model that `given` names as PROVIDER/MODEL or PROVIDER/MODEL@IN,OUT with prices.

    `addresses` replace those of providers. Raises: ConfigError, which says what may be written.
    """
    provider, _, rest = given.partition("/")
    model, _, price = rest.partition("@")
    if provider not in PROVIDERS or not model:
        raise ConfigError(
            f"--model {given!r} is not PROVIDER/MODEL, such as openai/{SUGGESTED['openai'][0]}"
            f"{_meant(provider)}; providers: {', '.join(PROVIDERS)}"
        )
    engine = {"provider": provider}
    name = model.rsplit("/", 1)[-1].replace(":", "-")
    if name != model:
        engine["model"] = model
    if provider in addresses:
        engine["base_url"] = addresses[provider]
    if price:
        return Chosen(name, engine, *_prices(given, price), "given to r2-serve init")
    if PROVIDERS[provider].is_local:
        return Chosen(name, engine, Decimal(0), Decimal(0))
    entry = listed(HostedEngineConfig(kind="openai", model=model, base_url=PROVIDERS[provider].base_url))
    if entry is None:
        raise ConfigError(
            f"{table_name()} has no price for {given}: write it as {given}@IN,OUT, USD per million tokens, "
            f"such as {given}@0.10,0.50; `r2-serve prices {provider}` lists the models that have one"
        )
    usd_in, usd_out = (Decimal(str(entry.fields[key])) for key in NEEDED)
    if "base_url" not in engine:
        return Chosen(name, engine, usd_in, usd_out)
    others = {key: str(entry.fields[key]) for key in _OTHERS if entry.fields.get(key) is not None}
    return Chosen(name, engine, usd_in, usd_out, table_name(), others)


def local(hub_name: str) -> Chosen:
    """The model at the hub that a GPU of the cluster runs by vLLM, with an estimated price."""
    name = hub_name.rsplit("/", 1)[-1].lower().removesuffix("-instruct")
    tokens_per_s = 10 * round(TOKENS_PER_S_OF_1B / _billions(name) / 10)
    usd_out = gpu_price(GPU_USD_PER_HOUR, tokens_per_s)
    return Chosen(name, {}, usd_out / 10, usd_out, hub_name=hub_name, tokens_per_s=tokens_per_s)


def from_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The suggested models of each provider whose key the environment holds, as PROVIDER/MODEL."""
    return [
        f"{provider}/{model}"
        for provider, models in SUGGESTED.items()
        if environment.get(PROVIDERS[provider].api_key_env or "")
        for model in models
    ]


def from_server(provider: str, addresses: Mapping[str, str]) -> list[str]:
    """The models for chats that a server on this machine offers, as PROVIDER/MODEL.

    Raises: ConfigError if it does not answer or has none.
    """
    base_url = addresses.get(provider, PROVIDERS[provider].base_url)
    start = "start it, or name the models with --model"
    try:
        reply = httpx.get(f"{base_url}/models", timeout=5.0).raise_for_status().json()
        names = [str(model["id"]) for model in reply["data"]]
        names = [name for name in names if name != VIRTUAL_MODEL and not is_embedder(name)]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as e:
        raise ConfigError(f"no list of models at {base_url} ({type(e).__name__}): {start}") from e
    if not names:
        raise ConfigError(f"{base_url} offers no model yet: load one first, such as `ollama pull qwen3:4b`")
    return [f"{provider}/{name}" for name in names]


def by_price(models: Sequence[Chosen]) -> list[tuple[Chosen, ModelGroup]]:
    """The models, cheapest first, and a group for each: the cheapest small, the dearest large.

    Raises: ConfigError if two have one name.
    """
    ordered = sorted(models, key=lambda model: (model.usd_out, model.usd_in))
    names = [model.name for model in ordered]
    if len(set(names)) < len(names) or VIRTUAL_MODEL in names:
        raise ConfigError(f"two models have one name, or that of the router: {', '.join(names)}")
    last = len(ordered) - 1
    return [
        (model, "llm" if i == last else "slm" if 2 * i < last else "mlm") for i, model in enumerate(ordered)
    ]


def _meant(provider: str) -> str:
    close = get_close_matches(provider, PROVIDERS, n=1)
    return f"; did you mean {close[0]}?" if close and close[0] != provider else ""


def _prices(given: str, price: str) -> tuple[Decimal, Decimal]:
    usd_in, _, usd_out = price.partition(",")
    try:
        prices = Decimal(usd_in), Decimal(usd_out)
    except InvalidOperation:
        prices = Decimal("NaN"), Decimal("NaN")
    if not all(usd.is_finite() and usd >= 0 for usd in prices):
        raise ConfigError(f"--model {given!r}: {price!r} is not IN,OUT, such as 0.10,0.50")
    return prices


def _billions(name: str) -> float:
    """The parameters that a model's name states, in billions; 7 if it states none."""
    for part in name.split("-"):
        number = part.removesuffix("b")
        if number != part and number.replace(".", "", 1).isdigit():
            return max(float(number), 0.1)
    return 7.0
