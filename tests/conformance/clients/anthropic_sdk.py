"""anthropic-sdk-python, the Messages API."""

from typing import Any

import anthropic
from cells import (
    ANSWER,
    KEY,
    PNG,
    REFUSED,
    ROOT,
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

client = anthropic.Anthropic(base_url=ROOT, api_key=KEY)
TOOL: Any = {"name": "weather", "description": "The weather in a city.", "input_schema": WEATHER_SCHEMA}
THINKING: Any = {
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low"},
}


class Place(BaseModel):
    city: str
    degrees: int


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def create(model: str, messages: list[Any], **more: Any) -> Any:
    return client.messages.create(model=model, messages=messages, max_tokens=2048, **more)


def streamed_reply(model: str, messages: list[Any], **more: Any) -> Any:
    with client.messages.stream(model=model, messages=messages, max_tokens=2048, **more) as stream:
        return stream.get_final_message()


def results(reply: Any) -> dict[str, Any]:
    calls = [block for block in reply.content if block.type == "tool_use"]
    same([call.input for call in calls], [{"city": "Oslo"}, {"city": "Rome"}])
    same(reply.stop_reason, "tool_use")
    return {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": call.id, "content": weather(**call.input)}
            for call in calls
        ],
    }


def loop(ask: Any, model: str, note: str, **more: Any) -> Any:
    """The first reply of a tool loop of two turns; the second is checked."""
    asked = user(call_both(note))
    first = ask(model, asked, tools=[TOOL], **more)
    said = {"role": "assistant", "content": first.content}
    again = ask(model, [*asked, said, results(first)], tools=[TOOL], **more)
    same(again.content[-1].text, TOLD)
    return first


@feature
def plain(model: str, note: str) -> None:
    reply = create(model, user(note), system="Be brief.")
    same((reply.content[0].text, reply.stop_reason), (ANSWER, "end_turn"))


@feature
def streamed(model: str, note: str) -> None:
    with client.messages.stream(model=model, messages=user(note), max_tokens=100) as stream:
        same("".join(stream.text_stream), ANSWER)
        reply = stream.get_final_message()
    same(reply.stop_reason, "end_turn")
    assert reply.usage.output_tokens > 1


@feature
def tools(model: str, note: str) -> None:
    loop(create, model, note, tool_choice={"type": "auto"})


@feature
def tools_streamed(model: str, note: str) -> None:
    loop(streamed_reply, model, note)


@feature
def image(model: str, note: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    reply = create(model, user([{"type": "image", "source": source}, {"type": "text", "text": note}]))
    same(reply.content[0].text, SEEN)


@feature
def structured(model: str, note: str) -> None:
    reply = client.messages.parse(model=model, messages=user(note), max_tokens=100, output_format=Place)
    same(reply.parsed_output, Place(city="Oslo", degrees=4))


@feature
def history(model: str, note: str) -> None:
    messages = [*user(note), {"role": "assistant", "content": "Yes."}, *user("REPEAT")]
    text = create(model, messages, system=[{"type": "text", "text": "Be brief."}]).content[0].text
    same(text, f"system: Be brief.\nuser: {note}\nassistant: Yes.\nuser: REPEAT")


@feature
def usage(model: str, note: str) -> None:
    system = [{"type": "text", "text": long_text(note), "cache_control": {"type": "ephemeral"}}]
    first, second = (create(model, user(note), system=system).usage for _ in range(2))
    same(first.cache_read_input_tokens, 0)
    assert second.cache_read_input_tokens > 1024, second
    counted = client.messages.count_tokens(model=model, messages=user(note), system=system)
    assert 500 < counted.input_tokens < 4096, counted  # an estimate, but for models that speak Messages


@feature
def reasoning(model: str, note: str) -> None:
    first = loop(create, model, note, **THINKING)
    same([block.type for block in first.content], ["thinking", "tool_use", "tool_use"])
    same(first.content[0].thinking, THOUGHT)
    first = loop(streamed_reply, model, f"{note}-streamed", **THINKING)
    same(first.content[0].thinking, THOUGHT)


@feature
def errors(model: str, note: str) -> None:
    same(create(model, user(fails(429, 3, note))).content[0].text, ANSWER)
    refused = raised(anthropic.BadRequestError, lambda: create(model, user(fails(400, 9, f"{note}-400"))))
    assert REFUSED in str(refused), refused
    unknown = raised(anthropic.NotFoundError, lambda: create("nope", user(note)))
    same(unknown.body["error"]["type"], "not_found_error")
    wrong = client.with_options(api_key="wrong").messages
    raised(
        anthropic.AuthenticationError, lambda: wrong.create(model=model, messages=user(note), max_tokens=9)
    )
    spent = client.with_options(api_key=SPENT_KEY, max_retries=0).messages
    raised(anthropic.APIStatusError, lambda: spent.create(model=model, messages=user(note), max_tokens=9))


@feature
def models(model: str, note: str) -> None:
    assert model in {each.id for each in client.models.list()}
    same(client.models.retrieve(model).id, model)


run()
