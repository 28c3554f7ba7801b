"""openai-python."""

import openai
from checks import ANSWER, BASE_URL, HI, KEY, SPENT_KEY, check, raised

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY)


def chat() -> None:
    reply = client.chat.completions.create(
        model="r2", messages=HI, temperature=0, max_tokens=100, seed=1, stop=["###"]
    )
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (ANSWER, "stop")


def stream() -> None:
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="r2", messages=HI, stream=True, stream_options=options)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "stop"
    ]
    assert chunks[-1].usage.completion_tokens > 0


def usage() -> None:
    reply = client.chat.completions.create(model="r2", messages=HI)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0


def models() -> None:
    assert {model.id for model in client.models.list()} >= {"r2", "small", "large"}
    assert client.models.retrieve("small").id == "small"


def error() -> None:
    assert (
        raised(openai.NotFoundError, lambda: client.chat.completions.create(model="nope", messages=HI)).code
        == "model_not_found"
    )
    assert (
        raised(
            openai.BadRequestError, lambda: client.chat.completions.create(model="r2", messages=HI, n=2)
        ).param
        == "n"
    )
    raised(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list())
    spent = client.with_options(api_key=SPENT_KEY)
    assert (
        raised(openai.RateLimitError, lambda: spent.chat.completions.create(model="r2", messages=HI)).code
        == "insufficient_quota"
    )


for claim in (chat, stream, usage, models, error):
    check(claim.__name__, claim)
