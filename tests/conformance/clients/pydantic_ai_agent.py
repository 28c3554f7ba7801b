"""pydantic-ai: its agent loop over chat completions, Responses or Messages."""

import asyncio
import os
from typing import Any

from cells import (
    ANSWER,
    BASE_URL,
    KEY,
    REFUSED,
    ROOT,
    SEEN,
    TOLD,
    call_both,
    fails,
    feature,
    impossible,
    long_text,
    png,
    raised,
    run,
    same,
    weather,
)
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelHTTPError, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

DIALECT = os.environ["R2_CLIENT"].rpartition("_")[2]
THINKING: dict[str, Any] = {
    "chat": {"openai_reasoning_effort": "low"},
    "responses": {"openai_reasoning_effort": "low", "openai_reasoning_summary": "auto"},
    "messages": {
        "anthropic_thinking": {"type": "enabled", "budget_tokens": 1024},
        "anthropic_effort": "low",
        "max_tokens": 2048,
    },
}


class Place(BaseModel):
    city: str
    degrees: int


def agent(
    model: str, *, with_tools: bool = False, instructions: str = "Be brief.", **more: Any
) -> Agent[None, Any]:
    if DIALECT == "messages":
        kind: Any = AnthropicModel(model, provider=AnthropicProvider(base_url=ROOT, api_key=KEY))
    else:
        classes = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}
        kind = classes[DIALECT](model, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY))
    return Agent(kind, instructions=instructions, tools=[weather] if with_tools else [], **more)


@feature
def plain(model: str, note: str) -> None:
    same(agent(model).run_sync(note).output, ANSWER)


async def text_of(asked: Agent[None, Any], text: str) -> str:
    async with asked.run_stream(text) as came:
        return "".join([piece async for piece in came.stream_text(delta=True, debounce_by=None)])


@feature
def streamed(model: str, note: str) -> None:
    same(asyncio.run(text_of(agent(model), note)), ANSWER)


@feature
def tools(model: str, note: str) -> None:
    came = agent(model, with_tools=True).run_sync(call_both(note))
    same((came.output, came.usage.requests, came.usage.tool_calls), (TOLD, 2, 2))


@feature
def tools_streamed(model: str, note: str) -> None:
    same(asyncio.run(text_of(agent(model, with_tools=True), call_both(note))), TOLD)


@feature
def image(model: str, note: str) -> None:
    same(agent(model).run_sync([note, BinaryContent(png(), media_type="image/png")]).output, SEEN)


@feature
def structured(model: str, note: str) -> None:
    expected = Place(city="Oslo", degrees=4)
    same(agent(model, output_type=Place).run_sync(note).output, expected)  # through a tool
    if DIALECT != "messages":  # there the client believes in native output for Anthropic's own names alone
        same(agent(model, output_type=NativeOutput(Place)).run_sync(f"{note}-native").output, expected)


@feature
def history(model: str, note: str) -> None:
    first = agent(model).run_sync(note)
    again = agent(model).run_sync("REPEAT", message_history=first.all_messages())
    same(again.output, f"system: Be brief.\nuser: {note}\nassistant: {ANSWER}\nuser: REPEAT")


@feature
def usage(model: str, note: str) -> None:
    settings: Any = {"openai_prompt_cache_key": note}
    if DIALECT == "messages":
        settings = {"anthropic_cache_instructions": True}
    asked = agent(model, instructions=long_text(note), model_settings=settings)
    first, second = (asked.run_sync(note).usage for _ in range(2))
    same(first.cache_read_tokens, 0)
    assert second.cache_read_tokens > 1024, second


@feature
def reasoning(model: str, note: str) -> None:
    came = agent(model, with_tools=True, model_settings=THINKING[DIALECT]).run_sync(call_both(note))
    same(came.output, TOLD)
    kinds = [part.part_kind for message in came.all_messages() for part in message.parts]
    same(kinds.count("thinking"), 2)


@feature
def errors(model: str, note: str) -> None:
    same(agent(model).run_sync(fails(429, 3, note)).output, ANSWER)
    refused: Any = raised(ModelHTTPError, lambda: agent(model).run_sync(fails(400, 9, f"{note}-400")))
    assert refused.status_code == 400 and REFUSED in str(refused), refused
    unknown: Any = raised(ModelHTTPError, lambda: agent("nope").run_sync(note))
    same(unknown.status_code, 404)


impossible("the client has no function that lists models", "models")
run()
