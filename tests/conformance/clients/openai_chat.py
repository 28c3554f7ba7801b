"""openai-python, chat completions."""

import json
from typing import Any

import openai
from cells import (
    ANSWER,
    BASE_URL,
    DATA_URL,
    KEY,
    REFUSED,
    SEEN,
    SPENT_KEY,
    THOUGHT,
    TOLD,
    WEATHER_SCHEMA,
    call_both,
    fails,
    feature,
    long_text,
    raised,
    run,
    same,
    weather,
)
from pydantic import BaseModel

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY)
create = client.chat.completions.create
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "strict": True, "parameters": WEATHER_SCHEMA},
}


class Place(BaseModel):
    city: str
    degrees: int


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def results(message: Any) -> list[Any]:
    return [
        {"role": "tool", "tool_call_id": call.id, "content": weather(**json.loads(call.function.arguments))}
        for call in message.tool_calls
    ]


@feature
def plain(model: str, note: str) -> None:
    reply = create(model=model, messages=user(note), temperature=0, max_tokens=100)
    same((reply.choices[0].message.content, reply.choices[0].finish_reason), (ANSWER, "stop"))


@feature
def streamed(model: str, note: str) -> None:
    chunks = list(
        create(model=model, messages=user(note), stream=True, stream_options={"include_usage": True})
    )
    same("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), ANSWER)
    same([c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason], ["stop"])
    assert chunks[-1].usage.completion_tokens > 0


@feature
def tools(model: str, note: str) -> None:
    asked = user(call_both(note))
    first = create(model=model, messages=asked, tools=[TOOL], parallel_tool_calls=True).choices[0]
    same((first.finish_reason, len(first.message.tool_calls)), ("tool_calls", 2))
    history = [*asked, first.message, *results(first.message)]
    same(create(model=model, messages=history, tools=[TOOL]).choices[0].message.content, TOLD)


@feature
def tools_streamed(model: str, note: str) -> None:
    asked = user(call_both(note))
    with client.chat.completions.stream(model=model, messages=asked, tools=[TOOL]) as stream:
        message = stream.get_final_completion().choices[0].message
    same([call.function.arguments for call in message.tool_calls], ['{"city": "Oslo"}', '{"city": "Rome"}'])
    history = [*asked, message, *results(message)]
    with client.chat.completions.stream(model=model, messages=history, tools=[TOOL]) as stream:
        same(stream.get_final_completion().choices[0].message.content, TOLD)


@feature
def image(model: str, note: str) -> None:
    parts = [{"type": "text", "text": note}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    same(create(model=model, messages=user(parts)).choices[0].message.content, SEEN)


@feature
def structured(model: str, note: str) -> None:
    reply = client.chat.completions.parse(model=model, messages=user(note), response_format=Place)
    same(reply.choices[0].message.parsed, Place(city="Oslo", degrees=4))


@feature
def history(model: str, note: str) -> None:
    said = [("developer", "Be brief."), ("user", note), ("assistant", "Yes."), ("user", "REPEAT")]
    messages: Any = [{"role": role, "content": text} for role, text in said]
    expected = f"system: Be brief.\nuser: {note}\nassistant: Yes.\nuser: REPEAT"
    same(create(model=model, messages=messages).choices[0].message.content, expected)


@feature
def usage(model: str, note: str) -> None:
    messages: Any = [
        {
            "role": "system",
            "content": [{"type": "text", "text": long_text(note), "cache_control": {"type": "ephemeral"}}],
        },
        {"role": "user", "content": note},
    ]
    first, second = (create(model=model, messages=messages, prompt_cache_key=note).usage for _ in range(2))
    same(first.total_tokens, first.prompt_tokens + first.completion_tokens)
    same(first.prompt_tokens_details.cached_tokens, 0)
    assert 1024 < second.prompt_tokens_details.cached_tokens <= second.prompt_tokens, second


@feature
def reasoning(model: str, note: str) -> None:
    asked = user(call_both(note))
    first = create(model=model, messages=asked, tools=[TOOL], reasoning_effort="low")
    message = first.choices[0].message
    same(getattr(message, "reasoning_content", None), THOUGHT)
    assert first.usage.completion_tokens_details.reasoning_tokens > 0
    said = message.model_dump(exclude_none=True)
    again = create(
        model=model, messages=[*asked, said, *results(message)], tools=[TOOL], reasoning_effort="low"
    )
    same(again.choices[0].message.content, TOLD)


@feature
def errors(model: str, note: str) -> None:
    same(create(model=model, messages=user(fails(429, 3, note))).choices[0].message.content, ANSWER)
    refused = raised(
        openai.BadRequestError, lambda: create(model=model, messages=user(fails(400, 9, f"{note}-400")))
    )
    assert REFUSED in str(refused), refused
    unknown = raised(openai.NotFoundError, lambda: create(model="nope", messages=user(note)))
    same(unknown.code, "model_not_found")
    raised(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list())
    spent = client.with_options(api_key=SPENT_KEY).chat.completions
    same(
        raised(openai.RateLimitError, lambda: spent.create(model=model, messages=user(note))).code,
        "insufficient_quota",
    )


@feature
def models(model: str, note: str) -> None:
    assert model in {each.id for each in client.models.list()}
    same(client.models.retrieve(model).id, model)


run()
