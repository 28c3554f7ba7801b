"""Reservations follow what a model's prompts really have, and never fall far below what a call can cost."""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.calls.estimates import Prompt
from r2_serve.calls.pool import PoolMember
from r2_serve.calls.token_rates import HIGHEST, LOWEST, MIN_KNOWN, MIN_TOKENS, TokenRate
from r2_serve.config import HostedEngineConfig, ModelConfig, NumpyEngineConfig
from r2_serve.engines.numpy_engine import NumpyEngine
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.types import Message, Sampling, Usage
from tests.support.engine_calls import engine_call

ENGLISH = "The quick brown fox jumps over the lazy dog near the old river bank today. "
ENGLISH_CHARS_PER_TOKEN = 4.4


def member(**card: object) -> PoolMember:
    engine = HostedEngineConfig(kind="openai", model="m", base_url="http://127.0.0.1:9/v1")
    prices = {"usd_per_mtok_in": Decimal("0.4"), "usd_per_mtok_out": Decimal("1.6")}
    config = ModelConfig.model_validate({"name": "m", "engine": engine, **prices, **card})
    return PoolMember(config, ScriptedEngine(["ok"]))


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def taught(asked: PoolMember, num_prompts: int = MIN_KNOWN, rate: float = ENGLISH_CHARS_PER_TOKEN) -> None:
    """Lets the model report English prompts of several lengths."""
    for i in range(num_prompts):
        text = ENGLISH * (20 + i)
        asked.prompt(user(text)).learn(Usage(prompt_tokens=round(len(text) / rate)))


def reserved(asked: PoolMember, text: str, max_tokens: int = 0) -> int:
    return asked.prompt(user(text)).most_usage(max_tokens).prompt_tokens


def test_reservation_comes_near_the_truth_once_the_rate_is_known() -> None:
    asked, text = member(), ENGLISH * 600
    truth = len(text) / ENGLISH_CHARS_PER_TOKEN
    assert reserved(asked, text) > 1.7 * truth
    taught(asked)
    assert truth < reserved(asked, text) < 1.3 * truth


def test_call_of_27_thousandths_is_not_refused_to_a_key_with_93_left() -> None:
    """Each byte counted as a token once, so that a call of 0.027 USD was reserved at 0.11."""
    asked = member()
    text = ENGLISH * (int(0.0254 / 0.4 * 1e6 * ENGLISH_CHARS_PER_TOKEN) // len(ENGLISH))
    truth = Usage(prompt_tokens=round(len(text) / ENGLISH_CHARS_PER_TOKEN), completion_tokens=1_000)
    assert Decimal("0.0265") < asked.config.cost_usd(truth) < Decimal("0.0275")
    assert asked.config.cost_usd(asked.prompt(user(text)).most_usage(1_000)) < Decimal("0.06")
    taught(asked)
    assert asked.config.cost_usd(asked.prompt(user(text)).most_usage(1_000)) < Decimal("0.036")


def test_nothing_is_believed_before_some_prompts_were_seen_and_short_ones_tell_nothing() -> None:
    asked, text = member(), ENGLISH * 600
    before = reserved(asked, text)
    taught(asked, MIN_KNOWN - 1)
    for _ in range(100):
        asked.prompt(user("hi")).learn(Usage(prompt_tokens=1))
    assert reserved(asked, text) == before


def test_many_short_messages_tell_nothing_of_long_texts() -> None:
    """The chat template is counted high for each message, which is no property of the text."""
    asked, text = member(), ENGLISH * 600
    before = reserved(asked, text)
    chat = asked.prompt(user("Yes, please go on.") * 50)
    for _ in range(MIN_KNOWN):
        chat.learn(Usage(prompt_tokens=500))
    assert reserved(asked, text) == before


def test_rate_that_is_written_is_kept() -> None:
    asked = member(chars_per_token=3)
    before = reserved(asked, ENGLISH * 600)
    taught(asked)
    assert reserved(asked, ENGLISH * 600) == before


def test_prompts_with_images_teach_nothing_of_text() -> None:
    asked = member(image_tokens=900)
    parts = ({"type": "text", "text": ENGLISH * 50}, {"type": "image_url", "image_url": {"url": "data:,"}})
    prompt = asked.prompt((Message(role="user", content=parts),))
    for _ in range(MIN_KNOWN):
        prompt.learn(Usage(prompt_tokens=100_000))
    text = asked.prompt(user(ENGLISH * 50)).most_usage(0).prompt_tokens
    assert prompt.most_usage(0).prompt_tokens == text + 900


def test_text_without_words_counts_almost_a_token_per_character() -> None:
    asked = member()
    noise = base64.b64encode(random.Random(1).randbytes(30_000)).decode()
    taught(asked)
    assert reserved(asked, noise) > len(noise) / 1.7
    assert reserved(asked, "12345 67890 " * 1000) > 6_000


def test_estimate_of_a_cut_call_uses_the_learned_rate() -> None:
    asked, text = member(), ENGLISH * 600
    taught(asked, rate=2.0)
    likely = asked.prompt(user(text)).likely_prompt_tokens
    assert likely == pytest.approx(len(text) / 2.0, rel=0.05)


@given(text=st.text(min_size=1, max_size=400), reported=st.integers(1, 10**6))
def test_no_report_lowers_a_reservation_below_a_fifth_of_the_bytes(text: str, reported: int) -> None:
    rate = TokenRate()
    for _ in range(MIN_KNOWN):
        rate.learn(MIN_TOKENS, reported)
    assert LOWEST <= rate.most <= HIGHEST
    prompt = replace(Prompt(user(text)), rate=rate)
    num_bytes = len(text.encode(errors="surrogatepass"))
    assert prompt.most_usage(0).prompt_tokens >= num_bytes / 5


async def test_tokens_are_counted_by_the_tokenizer_where_it_is_at_hand() -> None:
    engine = NumpyEngine(NumpyEngineConfig(kind="numpy", path="embedded:words-22k"))
    messages = user("3 4 + 2 8")
    counted = engine.num_prompt_tokens(messages)
    reply = await engine.generate(engine_call(messages, Sampling(max_tokens=8)))
    asked = PoolMember(member().config, engine)
    assert counted == reply.usage.prompt_tokens == asked.prompt(messages).most_usage(5).prompt_tokens
    assert engine.num_prompt_tokens(user("a word it does not know")) is None
    await engine.aclose()
