"""The first minutes: `init` writes a config that works, `config show` explains it, `doctor` looks around."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from r2_serve import EMBEDDED_CONFIG
from r2_serve.cli import app
from r2_serve.config.prices import all_listed
from r2_serve.config.providers import PROVIDERS
from r2_serve.ops.setup.choice import SUGGESTED
from r2_serve.ops.setup.environment import unset_keys
from r2_serve.serve_config import check, load
from tests import ROOT
from tests.support.load_endpoint import router_app, serving

KEYS = {"OPENAI_API_KEY": "key-of-openai", "DEEPSEEK_API_KEY": "key-of-deepseek"}


def run(*arguments: str | Path, keys: dict[str, str] | None = None) -> Result:
    environment = {provider.api_key_env: None for provider in PROVIDERS.values() if provider.api_key_env}
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={**environment, **(keys or {})}
    )


@pytest.mark.parametrize("preset", ["hosted", "one-gpu", "cluster"])
def test_written_config_is_valid_without_a_warning(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "r2.yaml"
    done = run("init", path, "--preset", preset, keys=KEYS)
    assert done.exit_code == 0, done.output
    assert [str(problem) for problem in check(path, environ=KEYS)] == []


def test_models_are_those_of_the_keys_at_hand_cheapest_first(tmp_path: Path) -> None:
    assert run("init", tmp_path / "r2.yaml", keys=KEYS).exit_code == 0
    config = load(tmp_path / "r2.yaml")
    names = [f"{model.engine.provider}/{model.engine.model}" for model in config.router.models]
    assert sorted(names) == sorted(f"{p}/{m}" for p in ("openai", "deepseek") for m in SUGGESTED[p])
    prices = [model.usd_per_mtok_out for model in config.router.models]
    assert prices == sorted(prices)
    assert config.routing.virtual_models["r2"].fallback_model == config.router.models[-1].name


def test_every_suggested_model_has_a_price() -> None:
    listed = {(entry.provider, entry.id) for entry in all_listed()}
    for provider, models in SUGGESTED.items():
        for model in models:
            name = {"xai": "x-ai", "moonshot": "moonshotai"}.get(provider, provider)
            assert any(p == name and model.startswith(m.removesuffix("-latest")) for p, m in listed), model


def test_no_key_stands_in_the_file(tmp_path: Path) -> None:
    run("init", tmp_path / "r2.yaml", keys=KEYS)
    text = (tmp_path / "r2.yaml").read_text()
    assert "OPENAI_API_KEY" in text
    assert not any(key in text for key in KEYS.values())


def test_without_keys_it_says_which_variables_it_reads(tmp_path: Path) -> None:
    done = run("init", tmp_path / "r2.yaml")
    assert done.exit_code == 1
    assert "OPENAI_API_KEY" in done.output
    assert not (tmp_path / "r2.yaml").exists()


def test_start_names_the_variables_without_a_key(tmp_path: Path) -> None:
    assert run("init", tmp_path / "r2.yaml", keys=KEYS).exit_code == 0
    models = load(tmp_path / "r2.yaml").router.models
    (warning,) = unset_keys(models, {"OPENAI_API_KEY": "key-of-openai", "DEEPSEEK_API_KEY": " "})
    assert warning.startswith("DEEPSEEK_API_KEY is not set") and "deepseek-v4-flash" in warning
    assert list(unset_keys(models, KEYS)) == []


def test_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "r2.yaml").write_text("mine")
    done = run("init", tmp_path / "r2.yaml", keys=KEYS)
    assert done.exit_code == 1
    assert "--force" in done.output
    assert (tmp_path / "r2.yaml").read_text() == "mine"


def test_model_without_a_known_price_asks_for_one_and_takes_it(tmp_path: Path) -> None:
    unpriced = "dashscope/qwen2.5-7b-instruct"
    done = run("init", tmp_path / "r2.yaml", "-m", unpriced)
    assert done.exit_code == 1
    assert f"{unpriced}@0.10,0.50" in done.output
    assert run("init", tmp_path / "r2.yaml", "-m", f"{unpriced}@0.07,0.14").exit_code == 0
    (model,) = load(tmp_path / "r2.yaml").router.models
    assert (str(model.usd_per_mtok_in), str(model.usd_per_mtok_out)) == ("0.07", "0.14")


def test_prices_are_written_as_they_are_given(tmp_path: Path) -> None:
    given = ("openai/a@10,200", "openai/b@0.50,1.0", "openai/c@20.50,0")
    arguments = [part for model in given for part in ("-m", model)]
    assert run("init", tmp_path / "r2.yaml", *arguments).exit_code == 0
    prices = {
        m.name: (m.usd_per_mtok_in, m.usd_per_mtok_out) for m in load(tmp_path / "r2.yaml").router.models
    }
    assert prices == {"a": (10, 200), "b": (Decimal("0.5"), 1), "c": (Decimal("20.5"), 0)}


def test_model_behind_another_address_keeps_the_context_of_the_table(tmp_path: Path) -> None:
    """The table knows addresses of providers alone, so that a proxy's model would have 32,768 tokens."""
    at = ("--at", "openai=http://127.0.0.1:9/v1")
    assert run("init", tmp_path / "r2.yaml", "-m", "openai/gpt-6-luna", *at).exit_code == 0
    assert run("init", tmp_path / "own.yaml", "-m", "openai/gpt-6-luna").exit_code == 0
    (proxied,), (own,) = (load(tmp_path / name).router.models for name in ("r2.yaml", "own.yaml"))
    assert proxied.context_tokens == own.context_tokens > 100_000
    assert proxied.usd_per_mtok_cached_read == own.usd_per_mtok_cached_read is not None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("-m", "opnai/gpt-6-luna"), "providers: openai"),
        (("-m", "gpt-6-luna"), "PROVIDER/MODEL"),
        (("-m", "opnai/gpt-6-luna"), "did you mean openai?"),
        (("-m", "openai/gpt-6-luna@cheap"), "IN,OUT"),
        (("-m", "openai/gpt-6-luna@-1,2"), "IN,OUT"),
        (("-m", "openai/gpt-6-luna@nan,2"), "IN,OUT"),
        (("-m", "openai/gpt-6-luna", "-m", "openai/gpt-6-luna"), "one name"),
        (("-m", "openai/gpt-6-luna", "--at", "openai=localhost"), "PROVIDER=http"),
    ],
)
def test_wrong_arguments_are_refused_with_what_may_stand_there(
    arguments: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    done = run("init", tmp_path / "r2.yaml", *arguments)
    assert done.exit_code == 1
    assert named in done.output
    assert not (tmp_path / "r2.yaml").exists()


def test_laptop_takes_the_models_that_the_server_lists(tmp_path: Path) -> None:
    async def check_it() -> Result:
        async with serving(router_app()) as url:
            arguments = ("init", tmp_path / "r2.yaml", "--preset", "laptop", "--at", f"ollama={url}")
            return await asyncio.to_thread(run, *arguments)

    done = asyncio.run(check_it())
    assert done.exit_code == 0, done.output
    config = load(tmp_path / "r2.yaml")
    assert {"small", "large"} <= {model.name for model in config.router.models}
    assert all(model.usd_per_mtok_out == 0 for model in config.router.models)


@pytest.mark.parametrize("path", [EMBEDDED_CONFIG, ROOT / "serve_config.yaml"], ids=["embedded", "reference"])
def test_config_that_is_shown_means_the_same(path: Path, tmp_path: Path) -> None:
    shown = run("config", "show", path)
    assert shown.exit_code == 0, shown.output
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    again, first = load(tmp_path / "shown.yaml"), load(path)
    assert again.router == first.router
    assert again.routing == first.routing
    assert again.model_apps == first.model_apps
    assert run("config", "show", tmp_path / "shown.yaml").stdout == shown.stdout


def doctor_on(model: str, *more: str, key: str = "any-key-will-do") -> Result:
    """`doctor` on a config with `model` of a provider that is our own endpoint over scripted models."""

    async def check_it() -> Result:
        async with serving(router_app()) as url:
            path = Path("doctor.yaml")
            written = run("init", path, "-m", f"openai/{model}@1,2", "--at", f"openai={url}", "--force")
            assert written.exit_code == 0, written.output
            keys = {"OPENAI_API_KEY": key}
            return await asyncio.to_thread(run, "doctor", "--config", path, *more, keys=keys)

    return asyncio.run(check_it())


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_doctor_finds_a_provider_that_lists_the_model() -> None:
    done = doctor_on("small")
    assert done.exit_code == 0, done.output
    assert "lists small" in done.output


def test_doctor_asks_for_a_token_if_wanted() -> None:
    done = doctor_on("small", "--ask")
    assert done.exit_code == 0, done.output
    assert "model small: answers (" in done.output


def test_doctor_suggests_the_name_that_was_meant() -> None:
    done = doctor_on("smal")
    assert done.exit_code == 0, done.output
    assert "did you mean 'small'?" in done.output
    assert doctor_on("smal", "--ask").exit_code == 1


def test_doctor_says_which_key_is_missing() -> None:
    done = doctor_on("small", key="")
    assert done.exit_code == 1
    assert "export OPENAI_API_KEY=..." in done.output


def test_doctor_says_what_does_not_answer(tmp_path: Path) -> None:
    run("init", tmp_path / "r2.yaml", "-m", "ollama/qwen3:4b", "--at", "ollama=http://127.0.0.1:9/v1")
    done = run("doctor", "--config", tmp_path / "r2.yaml")
    assert done.exit_code == 1
    assert "http://127.0.0.1:9/v1/models cannot be reached" in done.output
