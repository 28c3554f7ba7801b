"""inspect-ai: its `openai-api` provider, one generation for each check. Scores are not its business here."""

import asyncio

from cells import ANSWER, BASE_URL, KEY, SPENT_KEY, feature, run, same
from inspect_ai.model import GenerateConfig, ModelOutput, get_model
from tenacity import RetryError


def ask(model: str, text: str, key: str = KEY) -> ModelOutput:
    config = GenerateConfig(temperature=0, max_tokens=64, max_retries=0)
    by = get_model(f"openai-api/r2/{model}", base_url=BASE_URL, api_key=key, memoize=False)
    return asyncio.run(by.generate(text, config=config))


@feature
def plain(model: str, note: str) -> None:
    output = ask(model, note)
    same((output.completion, output.stop_reason), (ANSWER, "stop"))


@feature
def usage(model: str, note: str) -> None:
    assert ask(model, note).usage.total_tokens > 0


@feature
def errors(model: str, note: str) -> None:
    expected = (("nope", KEY, "no model"), (model, "wrong", "valid one"), (model, SPENT_KEY, "budget"))
    for asked, key, text in expected:
        try:
            output = ask(asked, note, key)
        except RetryError as e:  # it tries a 429 again, once at least
            assert text in str(e.last_attempt.exception()), e
        except Exception as e:
            assert text in str(e), e
        else:
            assert text in str(output.error), output


run()
