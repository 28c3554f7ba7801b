"""What the config sections refuse, and what they say then."""

from contextlib import nullcontext

import pytest
from pydantic import BaseModel, ValidationError

from r2_serve.config import HostedEngineConfig, LimitsConfig, ModelConfig, RouterConfig, ServerConfig
from r2_serve.config.engines import SpeedConfig
from r2_serve.config.providers import PROVIDERS


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (LimitsConfig, "deadline_s"),
        (LimitsConfig, "max_cost_usd"),
        (ServerConfig, "max_running"),
        (SpeedConfig, "decode_tokens_per_s"),
    ],
)
def test_yes_and_no_are_refused_as_numbers(section: type[BaseModel], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({field: True})
    assert {
        "loc": (field,),
        "msg": "must be a number, got true or false (YAML reads yes and no so, too)",
    } in [{"loc": error["loc"], "msg": error["msg"]} for error in caught.value.errors()]


@pytest.mark.parametrize("name", PROVIDERS)
def test_provider_stands_for_its_kind_address_and_key(name: str) -> None:
    prices = {"usd_per_mtok_in": 1, "usd_per_mtok_out": 2}
    card = {"name": "some-model", **prices, "engine": {"provider": name}}
    engine = ModelConfig.model_validate(card).engine
    provider = PROVIDERS[name]
    assert isinstance(engine, HostedEngineConfig)
    assert (engine.kind, engine.base_url, engine.api_key_env, engine.model) == (
        provider.kind,
        provider.base_url,
        provider.api_key_env,
        "some-model",
    )


def test_what_is_written_wins_over_the_provider() -> None:
    engine = {"provider": "openai", "kind": "openai-responses", "model": "m", "api_key_env": "OTHER"}
    card = {"name": "n", "usd_per_mtok_in": 1, "usd_per_mtok_out": 2, "engine": engine}
    config = ModelConfig.model_validate(card).engine
    assert isinstance(config, HostedEngineConfig)
    assert (config.kind, config.model, config.api_key_env) == ("openai-responses", "m", "OTHER")


def test_server_on_this_machine_costs_nothing_unless_a_price_is_written() -> None:
    card = {"name": "qwen3", "engine": {"provider": "ollama"}}
    free = ModelConfig.model_validate(card)
    assert (free.usd_per_mtok_in, free.usd_per_mtok_out) == (0, 0)
    assert ModelConfig.model_validate({**card, "usd_per_mtok_out": 3}).usd_per_mtok_out == 3


@pytest.mark.parametrize(
    ("hosted", "is_refused"), [({}, True), ({"on_premises": True}, False), ({"on_premises": False}, True)]
)
def test_fallbacks_that_must_stay_on_premises_name_no_model_beyond_them(
    hosted: dict[str, bool], is_refused: bool
) -> None:
    prices = {"usd_per_mtok_in": 1, "usd_per_mtok_out": 1}
    engine = {"kind": "openai", "model": "m", "base_url": "http://10.0.0.5:8000/v1"}
    local = {"name": "a", **prices, "engine": {"kind": "served", "app": "m-a"}}
    models = [
        {**local, "fallbacks": ["b"], "fallbacks_on_premises": True},
        {"name": "b", **prices, "engine": engine, **hosted},
    ]
    with pytest.raises(ValidationError, match="leave the premises") if is_refused else nullcontext():
        RouterConfig.model_validate({"models": models})
