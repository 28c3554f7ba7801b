"""inspect-ai: its `openai-api` provider, one generation. Scores are not its business here."""

import asyncio

from checks import ANSWER, BASE_URL, KEY, SPENT_KEY, check, not_offered
from inspect_ai.model import GenerateConfig, ModelOutput, get_model
from tenacity import RetryError


def ask(model: str, key: str = KEY) -> ModelOutput:
    config = GenerateConfig(temperature=0, max_tokens=64, max_retries=0)
    return asyncio.run(
        get_model(f"openai-api/r2/{model}", base_url=BASE_URL, api_key=key, memoize=False).generate(
            "Which is it?", config=config
        )
    )


def chat() -> None:
    output = ask("r2")
    assert (output.completion, output.stop_reason) == (ANSWER, "stop")


def usage() -> None:
    assert ask("r2").usage.total_tokens > 0


def error() -> None:
    for model, key, text in (
        ("nope", KEY, "no model"),
        ("r2", "wrong", "valid one"),
        ("r2", SPENT_KEY, "budget"),
    ):
        try:
            output = ask(model, key)
        except RetryError as e:  # it tries a 429 again, once at least
            assert text in str(e.last_attempt.exception()), e
        except Exception as e:
            assert text in str(e), e
        else:
            assert text in str(output.error), output


for claim in (chat, usage, error):
    check(claim.__name__, claim)
not_offered("stream", "models")
