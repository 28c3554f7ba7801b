"""instructor, over openai-python's chat completions."""

import json
from collections.abc import Iterable
from typing import Any

import instructor
import openai
from cells import (
    ANSWER,
    BASE_URL,
    DATA_URL,
    KEY,
    REFUSED,
    SEEN,
    TOLD,
    WEATHER_SCHEMA,
    call_both,
    fails,
    feature,
    impossible,
    long_text,
    raised,
    run,
    same,
    weather,
)
from instructor.core import InstructorRetryException
from pydantic import BaseModel

plain_client = openai.OpenAI(base_url=BASE_URL, api_key=KEY)
client = instructor.from_openai(plain_client)
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": WEATHER_SCHEMA}}
PLACE = {"city": "Oslo", "degrees": 4}


class Place(BaseModel):
    city: str
    degrees: int


class Weather(BaseModel):
    city: str


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def text_of(model: str, messages: list[Any], **more: Any) -> str:
    return (
        client.create(model=model, messages=messages, response_model=None, **more).choices[0].message.content
    )


@feature
def plain(model: str, note: str) -> None:
    same(text_of(model, user(note)), ANSWER)


@feature
def streamed(model: str, note: str) -> None:
    *_, last = client.create_partial(model=model, messages=user(note), response_model=Place)
    same(last.model_dump(), PLACE)


@feature
def tools(model: str, note: str) -> None:
    many = instructor.from_openai(plain_client, mode=instructor.Mode.PARALLEL_TOOLS)
    asked = user(call_both(f"{note}-values", "Weather"))
    found = list(many.create(model=model, messages=asked, response_model=Iterable[Weather]))
    same([each.city for each in found], ["Oslo", "Rome"])
    wanted = {"model": model, "response_model": None, "tools": [TOOL]}
    asked = user(call_both(note))
    message = client.create(messages=asked, **wanted).choices[0].message
    calls = message.model_dump()["tool_calls"]
    said = {"role": "assistant", "content": "I look.", "tool_calls": calls}  # it would make "" a wrong []
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": weather(**json.loads(call.function.arguments))}
        for call in message.tool_calls
    ]
    again = client.create(messages=[*asked, said, *results], **wanted)
    same(again.choices[0].message.content, TOLD)


@feature
def image(model: str, note: str) -> None:
    parts = [{"type": "text", "text": note}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    same(text_of(model, user(parts)), SEEN)


@feature
def structured(model: str, note: str) -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        by = instructor.from_openai(plain_client, mode=mode)
        found = by.create(model=model, messages=user(f"{note}-{mode.value}"), response_model=Place)
        same(found.model_dump(), PLACE)


@feature
def history(model: str, note: str) -> None:
    said = [("system", "Be brief."), ("user", note), ("assistant", "Yes."), ("user", "REPEAT")]
    text = text_of(model, [{"role": role, "content": text} for role, text in said])
    same(text, f"system: Be brief.\nuser: {note}\nassistant: Yes.\nuser: REPEAT")


@feature
def usage(model: str, note: str) -> None:
    said = [{"role": "system", "content": long_text(note)}, *user(note)]
    asked = {"model": model, "messages": said, "response_model": Place, "prompt_cache_key": note}
    _, second = (client.create_with_completion(**asked)[1].usage for _ in range(2))
    assert second.prompt_tokens_details.cached_tokens > 1024, second


@feature
def reasoning(model: str, note: str) -> None:
    place, reply = client.create_with_completion(
        model=model, messages=user(note), response_model=Place, reasoning_effort="low"
    )
    same(place.model_dump(), PLACE)
    assert reply.usage.completion_tokens_details.reasoning_tokens > 0


@feature
def errors(model: str, note: str) -> None:
    same(text_of(model, user(fails(429, 3, note))), ANSWER)
    asked = {"model": model, "messages": user(fails(400, 9, f"{note}-400")), "response_model": Place}
    refused = raised(InstructorRetryException, lambda: client.create(**asked, max_retries=1))
    assert REFUSED in str(refused), refused
    raised(openai.NotFoundError, lambda: text_of("nope", user(note)))


impossible("the client makes values of tools' arguments and streams no calls", "tools_streamed")
impossible("the client has no function that lists models", "models")
run()
