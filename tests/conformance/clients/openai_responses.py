"""openai-python, Responses."""

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
create = client.responses.create
TOOL: Any = {"type": "function", "name": "weather", "strict": True, "parameters": WEATHER_SCHEMA}


class Place(BaseModel):
    city: str
    degrees: int


def results(reply: Any) -> list[Any]:
    calls = [item for item in reply.output if item.type == "function_call"]
    same([call.arguments for call in calls], ['{"city": "Oslo"}', '{"city": "Rome"}'])
    return [
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": weather(**json.loads(call.arguments)),
        }
        for call in calls
    ]


def streamed_reply(**request: Any) -> Any:
    with client.responses.stream(**request) as stream:
        for event in stream:
            assert event.type.startswith("response."), event
        return stream.get_final_response()


@feature
def plain(model: str, note: str) -> None:
    reply = create(model=model, input=note, instructions="Be brief.", max_output_tokens=100)
    same((reply.output_text, reply.status), (ANSWER, "completed"))


@feature
def streamed(model: str, note: str) -> None:
    events = list(create(model=model, input=note, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    same((text, events[0].type, events[-1].type), (ANSWER, "response.created", "response.completed"))
    assert events[-1].response.usage.output_tokens > 0
    same(streamed_reply(model=model, input=note).output_text, ANSWER)


@feature
def tools(model: str, note: str) -> None:
    first = create(model=model, input=call_both(note), tools=[TOOL], parallel_tool_calls=True)
    again = create(model=model, input=results(first), tools=[TOOL], previous_response_id=first.id)
    same(again.output_text, TOLD)


@feature
def tools_streamed(model: str, note: str) -> None:
    asked = [{"role": "user", "content": call_both(note)}]
    first = streamed_reply(model=model, input=asked, tools=[TOOL], store=False)
    said = [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in first.output]
    again = streamed_reply(model=model, input=[*asked, *said, *results(first)], tools=[TOOL], store=False)
    same(again.output_text, TOLD)


@feature
def image(model: str, note: str) -> None:
    parts = [
        {"type": "input_text", "text": note},
        {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
    ]
    same(create(model=model, input=[{"role": "user", "content": parts}]).output_text, SEEN)


@feature
def structured(model: str, note: str) -> None:
    reply = client.responses.parse(model=model, input=note, text_format=Place)
    same(reply.output_parsed, Place(city="Oslo", degrees=4))


@feature
def history(model: str, note: str) -> None:
    first = create(model=model, input=note, instructions="Be brief.")
    second = create(model=model, input="REPEAT", instructions="Be long.", previous_response_id=first.id)
    same(second.output_text, f"system: Be long.\nuser: {note}\nassistant: {ANSWER}\nuser: REPEAT")
    same(client.responses.retrieve(first.id).output_text, ANSWER)
    client.responses.delete(first.id)
    raised(openai.NotFoundError, lambda: client.responses.retrieve(first.id))


@feature
def usage(model: str, note: str) -> None:
    asked = {"model": model, "instructions": long_text(note), "input": note, "prompt_cache_key": note}
    first, second = (create(**asked).usage for _ in range(2))
    same(first.total_tokens, first.input_tokens + first.output_tokens)
    same(first.input_tokens_details.cached_tokens, 0)
    assert 1024 < second.input_tokens_details.cached_tokens <= second.input_tokens, second


@feature
def reasoning(model: str, note: str) -> None:
    asked: Any = [{"role": "user", "content": call_both(note)}]
    wanted: Any = {
        "model": model,
        "tools": [TOOL],
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
    }
    first = create(input=asked, **wanted)
    same([item.type for item in first.output], ["reasoning", "function_call", "function_call"])
    same(first.output[0].summary[0].text, THOUGHT)
    assert first.usage.output_tokens_details.reasoning_tokens > 0
    same(create(input=[*asked, *first.output, *results(first)], **wanted).output_text, TOLD)


@feature
def errors(model: str, note: str) -> None:
    same(create(model=model, input=fails(429, 3, note)).output_text, ANSWER)
    refused = raised(openai.BadRequestError, lambda: create(model=model, input=fails(400, 9, f"{note}-400")))
    assert REFUSED in str(refused), refused
    unknown = raised(openai.NotFoundError, lambda: create(model="nope", input=note))
    same(unknown.code, "model_not_found")
    spent = client.with_options(api_key=SPENT_KEY).responses
    out_of_money = raised(openai.RateLimitError, lambda: spent.create(model=model, input=note))
    same(out_of_money.code, "insufficient_quota")


@feature
def models(model: str, note: str) -> None:
    assert model in {each.id for each in client.models.list()}
    same(client.models.retrieve(model).id, model)


run()
