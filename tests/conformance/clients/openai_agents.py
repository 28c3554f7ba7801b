"""openai-agents: its agent loop, with Responses as it is by default and with chat completions."""

import asyncio
import os
from typing import Any

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from cells import (
    ANSWER,
    BASE_URL,
    DATA_URL,
    KEY,
    REFUSED,
    SEEN,
    TOLD,
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
from openai.types.shared import Reasoning
from pydantic import BaseModel

set_tracing_disabled(True)
KIND = OpenAIResponsesModel if os.environ["R2_CLIENT"].endswith("responses") else OpenAIChatCompletionsModel


class Place(BaseModel):
    city: str
    degrees: int


def agent(model: str, *, with_tools: bool = False, instructions: str = "Be brief.", **more: Any) -> Agent:
    client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY)
    tools = [function_tool(weather)] if with_tools else []
    kind = KIND(model=model, openai_client=client)
    return Agent(name="clerk", instructions=instructions, model=kind, tools=tools, **more)


def ask(asked: Agent, text: Any) -> Any:
    return asyncio.run(Runner.run(asked, text))


async def streamed_run(asked: Agent, text: str) -> tuple[str, Any]:
    came, pieces = Runner.run_streamed(asked, text), []
    async for event in came.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            pieces.append(event.data.delta)
    return "".join(pieces), came


@feature
def plain(model: str, note: str) -> None:
    same(ask(agent(model), note).final_output, ANSWER)


@feature
def streamed(model: str, note: str) -> None:
    text, came = asyncio.run(streamed_run(agent(model), note))
    same((text, came.final_output), (ANSWER, ANSWER))


@feature
def tools(model: str, note: str) -> None:
    came = ask(agent(model, with_tools=True), call_both(note))
    same((came.final_output, len(came.raw_responses)), (TOLD, 2))


@feature
def tools_streamed(model: str, note: str) -> None:
    text, came = asyncio.run(streamed_run(agent(model, with_tools=True), call_both(note)))
    same((text, came.final_output), (TOLD, TOLD))


@feature
def image(model: str, note: str) -> None:
    parts = [
        {"type": "input_text", "text": note},
        {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
    ]
    same(ask(agent(model), [{"role": "user", "content": parts}]).final_output, SEEN)


@feature
def structured(model: str, note: str) -> None:
    same(ask(agent(model, output_type=Place), note).final_output, Place(city="Oslo", degrees=4))


@feature
def history(model: str, note: str) -> None:
    first = ask(agent(model), note)
    again = ask(agent(model), [*first.to_input_list(), {"role": "user", "content": "REPEAT"}])
    same(again.final_output, f"system: Be brief.\nuser: {note}\nassistant: {ANSWER}\nuser: REPEAT")


@feature
def usage(model: str, note: str) -> None:
    settings = ModelSettings(extra_args={"prompt_cache_key": note})
    asked = [agent(model, instructions=long_text(note), model_settings=settings) for _ in range(2)]
    first, second = (ask(each, note).context_wrapper.usage for each in asked)
    same((first.requests, first.input_tokens_details.cached_tokens), (1, 0))
    assert second.input_tokens_details.cached_tokens > 1024, second


@feature
def reasoning(model: str, note: str) -> None:
    settings = ModelSettings(reasoning=Reasoning(effort="low", summary="auto"), store=False)
    settings.response_include = ["reasoning.encrypted_content"] if KIND is OpenAIResponsesModel else None
    came = ask(agent(model, with_tools=True, model_settings=settings), call_both(note))
    same(came.final_output, TOLD)
    assert came.context_wrapper.usage.output_tokens_details.reasoning_tokens > 0
    assert any(item.type == "reasoning_item" for item in came.new_items), came.new_items


@feature
def errors(model: str, note: str) -> None:
    same(ask(agent(model), fails(429, 3, note)).final_output, ANSWER)
    refused = raised(openai.BadRequestError, lambda: ask(agent(model), fails(400, 9, f"{note}-400")))
    assert REFUSED in str(refused), refused
    raised(openai.NotFoundError, lambda: ask(agent("nope"), note))


impossible("the client has no function that lists models", "models")
run()
