"""LiteLLM's SDK, with R2 as an OpenAI-compatible endpoint."""

import json
from typing import Any

import litellm
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

litellm.suppress_debug_info = True
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": WEATHER_SCHEMA}}


class Place(BaseModel):
    city: str
    degrees: int


def create(model: str, messages: Any, api_key: str = KEY, **more: Any) -> Any:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return litellm.completion(
        model=f"openai/{model}", messages=said, api_base=BASE_URL, api_key=api_key, **more
    )


def whole(chunks: Any) -> Any:
    return litellm.stream_chunk_builder(list(chunks))


def loop(model: str, note: str, **more: Any) -> Any:
    """The first reply of a tool loop of two turns; the second is checked."""
    said: list[Any] = [{"role": "user", "content": call_both(note)}]
    first = create(model, said, tools=[TOOL], **more)
    first = whole(first) if more.get("stream") else first
    message = first.choices[0].message
    said.append(message.model_dump(exclude_none=True))
    for call in message.tool_calls:
        text = weather(**json.loads(call.function.arguments))
        said.append({"role": "tool", "tool_call_id": call.id, "content": text})
    again = create(model, said, tools=[TOOL], **more)
    same((whole(again) if more.get("stream") else again).choices[0].message.content, TOLD)
    return first


@feature
def plain(model: str, note: str) -> None:
    same(create(model, note, temperature=0, max_tokens=50).choices[0].message.content, ANSWER)


@feature
def streamed(model: str, note: str) -> None:
    chunks = list(create(model, note, stream=True, stream_options={"include_usage": True}))
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), ANSWER)
    assert any(getattr(chunk, "usage", None) for chunk in chunks)


@feature
def tools(model: str, note: str) -> None:
    loop(model, note, parallel_tool_calls=True)


@feature
def tools_streamed(model: str, note: str) -> None:
    loop(model, note, stream=True)


@feature
def image(model: str, note: str) -> None:
    parts = [{"type": "text", "text": note}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    same(create(model, [{"role": "user", "content": parts}]).choices[0].message.content, SEEN)


@feature
def structured(model: str, note: str) -> None:
    text = create(model, note, response_format=Place).choices[0].message.content
    same(Place.model_validate_json(text), Place(city="Oslo", degrees=4))


@feature
def history(model: str, note: str) -> None:
    said = [("system", "Be brief."), ("user", note), ("assistant", "Yes."), ("user", "REPEAT")]
    text = create(model, [{"role": role, "content": text} for role, text in said]).choices[0].message.content
    same(text, f"system: Be brief.\nuser: {note}\nassistant: Yes.\nuser: REPEAT")


@feature
def usage(model: str, note: str) -> None:
    part = {"type": "text", "text": long_text(note), "cache_control": {"type": "ephemeral"}}
    said = [{"role": "system", "content": [part]}, {"role": "user", "content": note}]
    first, second = (create(model, said).usage for _ in range(2))
    same(first.total_tokens, first.prompt_tokens + first.completion_tokens)
    assert second.prompt_tokens_details.cached_tokens > 1024, second


@feature
def reasoning(model: str, note: str) -> None:
    first = loop(model, note, reasoning_effort="low", allowed_openai_params=["reasoning_effort"])
    same(first.choices[0].message.reasoning_content, THOUGHT)


@feature
def errors(model: str, note: str) -> None:
    same(create(model, fails(429, 3, note), num_retries=3).choices[0].message.content, ANSWER)
    refused = raised(litellm.BadRequestError, lambda: create(model, fails(400, 9, f"{note}-400")))
    assert REFUSED in str(refused), refused
    raised(litellm.NotFoundError, lambda: create("nope", note))
    raised(litellm.AuthenticationError, lambda: create(model, note, "wrong"))
    raised(litellm.RateLimitError, lambda: create(model, note, SPENT_KEY))


@feature
def models(model: str, note: str) -> None:
    where = {"api_base": BASE_URL, "api_key": KEY}
    listed = litellm.get_valid_models(check_provider_endpoint=True, custom_llm_provider="openai", **where)
    assert any(model in name for name in listed), listed


run()
