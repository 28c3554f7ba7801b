"""LangChain: `create_agent` (LangGraph) over ChatOpenAI, and ChatOpenAI alone."""

import os
from typing import Any

import openai
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
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

IS_RESPONSES = os.environ["R2_CLIENT"].endswith("responses")


class Place(BaseModel):
    city: str
    degrees: int


def chat(model: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=BASE_URL, api_key=KEY, use_responses_api=IS_RESPONSES, **more)


def agent(model: str, **more: Any) -> Any:
    return create_agent(chat(model, **more), [weather], system_prompt="Be brief.")


def asked(text: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@feature
def plain(model: str, note: str) -> None:
    same(chat(model).invoke(note).text, ANSWER)
    same([reply.text for reply in chat(model).batch([f"{note}-1", f"{note}-2"])], [ANSWER, ANSWER])


@feature
def streamed(model: str, note: str) -> None:
    same("".join(chunk.text for chunk in chat(model).stream(note)), ANSWER)


@feature
def tools(model: str, note: str) -> None:
    messages = agent(model).invoke(asked(call_both(note)))["messages"]
    same([message.type for message in messages], ["human", "ai", "tool", "tool", "ai"])
    same(messages[-1].text, TOLD)


@feature
def tools_streamed(model: str, note: str) -> None:
    pieces = agent(model, streaming=True).stream(asked(call_both(note)), stream_mode="messages")
    text = "".join(piece.text for piece, _ in pieces if piece.type == "AIMessageChunk")
    same(text, TOLD)


@feature
def image(model: str, note: str) -> None:
    parts = [{"type": "text", "text": note}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    same(agent(model).invoke(asked(parts))["messages"][-1].text, SEEN)


@feature
def structured(model: str, note: str) -> None:
    expected = Place(city="Oslo", degrees=4)
    for method in ("json_schema", "function_calling"):
        same(chat(model).with_structured_output(Place, method=method).invoke(f"{note}-{method}"), expected)


@feature
def history(model: str, note: str) -> None:
    said = [("system", "Be brief."), ("user", note), ("assistant", "Yes."), ("user", "REPEAT")]
    same(chat(model).invoke(said).text, f"system: Be brief.\nuser: {note}\nassistant: Yes.\nuser: REPEAT")


@feature
def usage(model: str, note: str) -> None:
    said = [("system", long_text(note)), ("user", note)]
    by = chat(model, model_kwargs={"prompt_cache_key": note})
    first, second = (by.invoke(said).usage_metadata for _ in range(2))
    same(first["total_tokens"], first["input_tokens"] + first["output_tokens"])
    same(first["input_token_details"].get("cache_read", 0), 0)
    assert second["input_token_details"]["cache_read"] > 1024, second
    last = None
    for chunk in chat(model, stream_usage=True).stream(said):
        last = chunk if last is None else last + chunk
    assert last.usage_metadata["output_tokens"] > 0


@feature
def reasoning(model: str, note: str) -> None:
    effort = (
        {"reasoning": {"effort": "low", "summary": "auto"}} if IS_RESPONSES else {"reasoning_effort": "low"}
    )
    messages = agent(model, **effort).invoke(asked(call_both(note)))["messages"]
    same(messages[-1].text, TOLD)
    assert messages[1].usage_metadata["output_token_details"]["reasoning"] > 0, messages[1]


@feature
def errors(model: str, note: str) -> None:
    same(chat(model).invoke(fails(429, 3, note)).text, ANSWER)
    refused = raised(openai.BadRequestError, lambda: chat(model).invoke(fails(400, 9, f"{note}-400")))
    assert REFUSED in str(refused), refused
    raised(openai.NotFoundError, lambda: chat("nope").invoke(note))


impossible("the client has no function that lists models", "models")
run()
