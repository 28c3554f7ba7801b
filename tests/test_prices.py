"""Prices that are not written come from the offline table; those that are written win."""

from __future__ import annotations

import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.config import ModelConfig, RouterConfig
from r2_serve.config.prices import NEEDED, TABLE_DATES, all_listed, table_name
from r2_serve.serve_config import own_problems, parse_yaml
from r2_serve.serve_config.document import Document
from r2_serve.types import ModelCard, Usage

OPENAI = "https://api.openai.com/v1"
SMALL = Path(__file__).parent / "data" / "small_serve_config.yaml"


def hosted(name: str, base_url: str = OPENAI, **written: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"name": "m", "engine": {"kind": "openai", "model": name, "base_url": base_url}, **written}
    )


def test_hosted_model_without_prices_has_those_of_the_table_and_its_context() -> None:
    model = hosted("gpt-4o")
    prices = model.usd_per_mtok_in, model.usd_per_mtok_out, model.usd_per_mtok_cached_read
    assert prices == (Decimal("2.5"), Decimal(10), Decimal("1.25"))
    assert (model.context_tokens, model.query_chars is None) == (128_000, False)


def test_written_prices_win_and_nothing_is_mixed_into_them() -> None:
    model = hosted("gpt-4o", usd_per_mtok_in=2, usd_per_mtok_out=8)
    assert (model.usd_per_mtok_in, model.usd_per_mtok_cached_read) == (Decimal(2), None)
    assert hosted("gpt-4o", context_tokens=9).context_tokens == 9


def test_price_that_nobody_knows_must_be_written() -> None:
    with pytest.raises(ValidationError, match=r"no price is known for model 'mine' at 127.0.0.1.*write"):
        hosted("mine", "http://127.0.0.1:9/v1")
    with pytest.raises(ValidationError, match="no price is known"):
        hosted("no-such-model-at-all")
    with pytest.raises(ValidationError, match="usd_per_mtok_out"):
        hosted("gpt-4o", usd_per_mtok_in=1)
    with pytest.raises(ValidationError, match="usd_per_mtok_in"):
        ModelConfig.model_validate({"name": "m", "engine": {"kind": "served", "app": "a"}})


def test_dearest_price_of_the_day_is_taken() -> None:
    assert hosted("deepseek-chat", "https://api.deepseek.com/v1").usd_per_mtok_in == Decimal("0.27")


def test_long_prompts_are_billed_by_their_tier() -> None:
    model = hosted("gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta/openai")
    tier = model.price_tiers[0].over_prompt_tokens
    short, long = (Usage(prompt_tokens=tokens, completion_tokens=1000) for tokens in (tier, tier + 1))
    assert model.cost_usd(short) == (tier * Decimal("1.25") + 1000 * 10) / 1_000_000
    assert model.cost_usd(long) == ((tier + 1) * Decimal("2.5") + 1000 * 15) / 1_000_000


def test_highest_tier_that_a_prompt_exceeds_holds() -> None:
    tiers = [
        {"over_prompt_tokens": over, "usd_per_mtok_in": usd, "usd_per_mtok_out": usd}
        for over, usd in ((200, 3), (100, 2))
    ]
    card = ModelCard(name="m", usd_per_mtok_in=1, usd_per_mtok_out=1, price_tiers=tiers)
    costs = [card.cost_usd(Usage(prompt_tokens=tokens)) * 1_000_000 / tokens for tokens in (100, 101, 201)]
    assert costs == [1, 2, 3]


def test_date_of_the_prices_is_that_of_the_table_unless_one_is_written() -> None:
    model = {"name": "m", "engine": {"kind": "openai", "model": "gpt-4o"}}
    assert RouterConfig.model_validate({"models": [model]}).prices_as_of == table_name()
    dated = RouterConfig.model_validate({"models": [model], "prices_as_of": "today"})
    assert dated.prices_as_of == "today"
    written = {**model, "usd_per_mtok_in": 1, "usd_per_mtok_out": 1}
    assert RouterConfig.model_validate({"models": [written]}).prices_as_of == ""
    assert any(date in table_name() for date in TABLE_DATES.values())


def test_every_entry_of_the_table_makes_a_card() -> None:
    entries = list(all_listed())
    assert len(entries) > 1000
    for entry in entries:
        ModelCard.model_validate({"name": "m", **entry.fields})


def test_table_is_not_read_where_every_price_is_written() -> None:
    code = (
        "import sys; from r2_serve.serve_config import load_without_ray; from pathlib import Path; "
        f"load_without_ray(Path({str(SMALL)!r})); sys.exit('genai_prices' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0


def small_config(**changes: Any) -> dict[str, Any]:
    """The small Serve config with a hosted model more, which has `changes`."""
    config: dict[str, Any] = yaml.safe_load(SMALL.read_text())
    router = next(entry for entry in config["applications"] if "models" in (entry.get("args") or {}))
    engine = {"kind": "openai", "model": "gpt-4o", "base_url": OPENAI}
    for model in router["args"]["models"]:
        if model["engine"]["kind"] == "openai":
            for price in NEEDED:
                del model[price]
    router["args"]["models"].append({"name": "more", "engine": engine, **changes})
    return config


def test_validate_says_what_to_write_and_where() -> None:
    engine = {"kind": "openai", "model": "mine", "base_url": "https://example.org/v1"}
    text = yaml.safe_dump(small_config(engine=engine))
    document = parse_yaml(text)
    assert isinstance(document, Document)
    _, problems = own_problems(document, {})
    (problem,) = [problem for problem in problems if "no price is known" in problem.message]
    assert problem.severity == "error" and "models" in problem.where


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({}, 0, "more: taken from the table (openai gpt-4o)"),
        ({"usd_per_mtok_in": 2.5, "usd_per_mtok_out": 10, "usd_per_mtok_cached_read": 1.25}, 0, "as in the"),
        ({"usd_per_mtok_in": 3, "usd_per_mtok_out": 10}, 1, "usd_per_mtok_in is 3; the table has 2.5"),
        ({"usd_per_mtok_in": 3, "usd_per_mtok_out": 10}, 1, "cached_read is not written; the table has 1.25"),
    ],
)
def test_check_tells_what_differs_from_the_table(
    changes: dict[str, Any], status: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(**changes)))
    result = CliRunner().invoke(app, ["prices", "--check", str(path)])
    assert result.exit_code == status, result.output
    assert said in result.output and table_name() in result.output


def test_list_shows_the_models_that_have_every_word() -> None:
    result = CliRunner().invoke(app, ["prices", "anthropic", "sonnet-4"])
    assert result.exit_code == 0
    assert "claude-sonnet-4" in result.output and "gpt" not in result.output
    assert CliRunner().invoke(app, ["prices", "no-such-model"]).exit_code == 1


def test_name_of_a_provider_means_its_own_models_however_many_others_sell_them() -> None:
    result = CliRunner().invoke(app, ["prices", "openai"])
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()[4:] if line[:1].strip()]
    assert len(rows) > 50
    assert {row[0] for row in rows} == {"openai"}


def test_list_that_is_too_long_names_what_to_add() -> None:
    result = CliRunner().invoke(app, ["prices"])
    assert "name a provider or a part of a model's name" in result.output
    assert "providers: " in result.output and "deepseek" in result.output
