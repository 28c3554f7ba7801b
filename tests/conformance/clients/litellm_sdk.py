"""LiteLLM's SDK, R2 as an OpenAI-compatible endpoint."""

import litellm
from checks import ANSWER, BASE_URL, HI, KEY, SPENT_KEY, check, raised

litellm.suppress_debug_info = True
WHERE = {"api_base": BASE_URL, "api_key": KEY}


def chat() -> None:
    reply = litellm.completion(model="openai/r2", messages=HI, temperature=0, max_tokens=50, **WHERE)
    assert reply.choices[0].message.content == ANSWER


def stream() -> None:
    chunks = list(
        litellm.completion(
            model="openai/r2", messages=HI, stream=True, stream_options={"include_usage": True}, **WHERE
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert any(getattr(chunk, "usage", None) for chunk in chunks)


def usage() -> None:
    assert litellm.completion(model="openai/r2", messages=HI, **WHERE).usage.total_tokens > 0


def models() -> None:
    listed = litellm.get_valid_models(check_provider_endpoint=True, custom_llm_provider="openai", **WHERE)
    assert any("r2" in name for name in listed), listed


def error() -> None:
    raised(litellm.NotFoundError, lambda: litellm.completion(model="openai/nope", messages=HI, **WHERE))
    raised(litellm.BadRequestError, lambda: litellm.completion(model="openai/r2", messages=HI, n=2, **WHERE))
    raised(
        litellm.AuthenticationError,
        lambda: litellm.completion(model="openai/r2", messages=HI, api_base=BASE_URL, api_key="wrong"),
    )
    raised(
        litellm.RateLimitError,
        lambda: litellm.completion(model="openai/r2", messages=HI, api_base=BASE_URL, api_key=SPENT_KEY),
    )


for claim in (chat, stream, usage, models, error):
    check(claim.__name__, claim)
