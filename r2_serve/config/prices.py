"""Prices and context lengths of hosted models by the table of the package genai-prices: offline and dated.

The table knows a provider by the address of its API and a model by the provider's name of it. It is read when
a model's prices are not written in the config, which takes about 0.3 s and 25 MB, and not otherwise.
Source: https://github.com/pydantic/genai-prices (MIT licence).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from r2_serve.config.engines import HostedEngineConfig
from r2_serve.config.providers import with_engine_defaults

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

TABLE_DATES = {"0.2.3": "2026-11-10"}
"""Day on which each pinned version of the package was published."""
PRICE_OF = {
    "usd_per_mtok_in": "input_mtok",
    "usd_per_mtok_out": "output_mtok",
    "usd_per_mtok_cached_read": "cache_read_mtok",
    "usd_per_mtok_cached_write": "cache_write_mtok",
    "usd_per_mtok_cached_hour_write": "cache_write_1h_mtok",
    "usd_per_mtok_reasoning": "output_reasoning_mtok",
}
"""Name of each price in the table, by the name of the card's field."""
NEEDED = ("usd_per_mtok_in", "usd_per_mtok_out")


@dataclass(frozen=True)
class ListedModel:
    """A model of the table."""

    provider: str
    id: str
    fields: Mapping[str, object]
    """Fields of a `ModelCard`: prices, price tiers, and the context length where it is known."""


def table_name() -> str:
    """The table and its date, for reports."""
    installed = version("genai-prices")
    date = TABLE_DATES.get(installed)
    return f"genai-prices {installed}" + (f" of {date}" if date else "")


def listed(engine: HostedEngineConfig) -> ListedModel | None:
    """The table's entry for the model behind `engine`; None if the table has no price for it there."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        provider, model = get_snapshot().find_provider_model(engine.model, None, None, engine.base_url)
    except LookupError:
        return None
    return _listed(provider, model)


def all_listed() -> Iterator[ListedModel]:
    """Every model of the table that has prices by token."""
    from genai_prices.data_snapshot import get_snapshot

    for provider in get_snapshot().providers:
        for model in provider.models:
            if (entry := _listed(provider, model)) is not None:
                yield entry


def with_listed_prices(card: object) -> object:
    """The fields of a card as they are written; a hosted model without a price gets those of the table.

    Written prices win: if one is written, nothing is taken from the table.

    Raises: PydanticCustomError if the table does not know the model either.
    """
    if not is_without_prices(card):
        return card
    engine = _hosted(card)
    if engine is None:
        return card
    if (entry := listed(engine)) is None:
        host = urlsplit(engine.base_url).hostname
        raise PydanticCustomError(
            "no_price",
            f"no price is known for model {engine.model!r} at {host} ({table_name()}): write "
            "`usd_per_mtok_in` and `usd_per_mtok_out`, USD per million tokens, 0 for a server of your own",
        )
    return {**entry.fields, **card}


def with_table_date(router: object) -> object:
    """The fields of a router's config; prices of the table have its date, unless another one is written."""
    if not isinstance(router, dict) or router.get("prices_as_of"):
        return router
    models = router.get("models")
    has_listed = isinstance(models, list | tuple) and any(
        is_without_prices(model) and _hosted(model) for model in models
    )
    return {**router, "prices_as_of": table_name()} if has_listed else router


def with_gpu_prices(router: object) -> object:
    """The fields of a router's config, where local models with `tokens_per_s` cost the time of a GPU."""
    if not isinstance(router, dict) or not isinstance(models := router.get("models"), list | tuple):
        return router
    usd_per_hour = router.get("gpu_usd_per_hour", 1)
    return {**router, "models": [_with_gpu_price(model, usd_per_hour) for model in models]}


def gpu_price(usd_per_hour: float | Decimal, tokens_per_s: float) -> Decimal:
    """USD per million tokens that a GPU writes, with three digits."""
    return Decimal(f"{float(usd_per_hour) / 3600 / tokens_per_s * 1e6:.3g}")


def _with_gpu_price(card: object, usd_per_hour: object) -> object:
    if not is_without_prices(card) or _hosted(card) is not None:
        return card
    try:
        usd = gpu_price(float(str(usd_per_hour)), float(str(card["tokens_per_s"])))
    except (KeyError, ValueError, ZeroDivisionError):
        return card  # validation says what is missing or wrong
    return {"usd_per_mtok_in": usd / 10, "usd_per_mtok_out": usd, **card}


def is_without_prices(card: object) -> TypeGuard[dict[str, object]]:
    """Whether the fields of a card name no price."""
    return isinstance(card, dict) and not any(name in card for name in NEEDED)


def _hosted(card: dict[str, object]) -> HostedEngineConfig | None:
    engine = card.get("engine")
    if isinstance(engine, HostedEngineConfig):
        return engine
    try:
        filled = with_engine_defaults(card)
        return HostedEngineConfig.model_validate(filled["engine"] if isinstance(filled, dict) else None)
    except (ValidationError, ValueError, KeyError):
        return None


def _listed(provider: Provider, model: ModelInfo) -> ListedModel | None:
    prices = _prices_today(model)
    found = {name: getattr(prices, key, None) for name, key in PRICE_OF.items()}
    if any(found[name] is None for name in NEEDED):
        return None
    priced = {name: price for name, price in found.items() if price is not None}
    fields: dict[str, object] = {name: _at(price, 0) for name, price in priced.items()}
    if tiers := _tiers(priced):
        fields["price_tiers"] = tiers
    if model.context_window is not None:
        fields["context_tokens"] = model.context_window
    return ListedModel(provider.id, model.id, fields)


def _prices_today(model: ModelInfo) -> ModelPrice:
    """The prices in force; the dearest of the day where they change with the hour."""
    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    if isinstance(model.prices, ModelPrice):
        return model.prices
    now, of_the_day = datetime.now(UTC), []
    for conditional in reversed(model.prices):
        is_by_hour = isinstance(conditional.constraint, TimeOfDateConstraint)
        if is_by_hour or conditional.constraint is None or conditional.constraint.active(now):
            of_the_day.append(conditional.prices)
            if not is_by_hour:
                break
    return max(of_the_day or [model.prices[0].prices], key=_base_price)


def _base_price(prices: ModelPrice) -> Decimal:
    price = getattr(prices, "input_mtok", None)
    return Decimal(0) if price is None else _at(price, 0)


def _tiers(prices: Mapping[str, Decimal | TieredPrices]) -> list[dict[str, object]]:
    """The prices of longer prompts, as `ModelCard.price_tiers`."""
    starts = {tier.start for price in prices.values() for tier in getattr(price, "tiers", ())}
    return [
        {"over_prompt_tokens": start, **{name: _at(price, start + 1) for name, price in prices.items()}}
        for start in sorted(starts)
    ]


def _at(price: Decimal | TieredPrices, prompt_tokens: int) -> Decimal:
    """The price for a prompt of that length. The last tier that it exceeds holds for all of its tokens."""
    if isinstance(price, Decimal):
        return price
    exceeded = [tier.price for tier in price.tiers if prompt_tokens > tier.start]
    return exceeded[-1] if exceeded else price.base
