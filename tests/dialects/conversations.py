"""Conversations that every dialect can say, as bodies of chat completions, drawn by Hypothesis."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import strategies as st

Body = dict[str, Any]
"""A body of chat completions, the shape of the core."""


def normal(body: Body) -> Body:
    """The body with one spelling for what has several: a single text, no content beside calls, the limit."""
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    rest = {key: value for key, value in body.items() if key not in ("max_completion_tokens", "max_tokens")}
    return {**rest, "max_tokens": limit, "messages": [_normal_message(wire) for wire in body["messages"]]}


def _normal_message(wire: Body) -> Body:
    content = wire["content"]
    if isinstance(content, list) and len(content) == 1 and content[0]["type"] == "text":
        content = content[0]["text"]
    calls = [{**call, "function": _read(call["function"])} for call in wire.get("tool_calls", ())]
    more = {"tool_calls": calls} if calls else {}
    return {**wire, "content": content or ("" if not calls else None), **more}


def _read(function: Body) -> Body:
    return {**function, "arguments": json.loads(function["arguments"])}


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    str.strip
)
NAMES = st.sampled_from(["weather", "read_file", "a-b_c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
TEXT_PARTS = TEXTS.map(lambda text: {"type": "text", "text": text})
IMAGES = st.sampled_from(["data:image/png;base64,AAAA", "https://x/a.png"]).map(
    lambda url: {"type": "image_url", "image_url": {"url": url}}
)
FILES = st.sampled_from([{}, {"filename": "a.pdf"}]).map(
    lambda name: {"type": "file", "file": {**name, "file_data": "data:application/pdf;base64,AAAA"}}
)
PARTS = st.lists(TEXT_PARTS | IMAGES | FILES, min_size=1, max_size=3)
SAID = TEXTS | st.lists(TEXT_PARTS, min_size=1, max_size=3)
USER = st.builds(lambda content: [{"role": "user", "content": content}], TEXTS | PARTS)
ANSWER = st.builds(lambda said, user: [{"role": "assistant", "content": said}, *user], SAID, USER)
"""An answer and the user's reply to it: the Responses API makes one turn of a text and the calls after it."""


@st.composite
def tool_turn(draw: st.DrawFn) -> list[Body]:
    """Calls of tools, with or without words, and their results."""
    numbers = range(draw(st.integers(1, 3)))
    start = draw(st.integers(0, 10**6))
    ids = [f"call_{start}_{number}" for number in numbers]
    arguments = st.dictionaries(TEXTS, VALUES, max_size=2).map(json.dumps)
    calls = [
        {"id": i, "type": "function", "function": {"name": draw(NAMES), "arguments": draw(arguments)}}
        for i in ids
    ]
    says: Body = {"role": "assistant", "content": draw(st.none() | TEXTS), "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": i, "content": draw(TEXTS | PARTS)} for i in ids]
    return [says, *results]


TOOL = st.fixed_dictionaries(
    {"name": NAMES, "parameters": st.just({"type": "object", "properties": {"x": {"type": "string"}}})},
    optional={"description": TEXTS, "strict": st.just(True)},
).map(lambda function: {"type": "function", "function": function})
TOOLS = st.lists(TOOL, min_size=1, max_size=3, unique_by=lambda tool: tool["function"]["name"])
CHOICES = st.sampled_from(["auto", "required", "none"]) | NAMES.map(
    lambda name: {"type": "function", "function": {"name": name}}
)
SCHEMA: Body = {"name": "output", "schema": {"type": "object"}, "strict": True}
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0.1, 1),
        "stream": st.just(True),
        "reasoning_effort": st.sampled_from(["low", "medium", "high", "xhigh"]),
        "response_format": st.just({"type": "json_schema", "json_schema": SCHEMA}),
    },
)


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    """Requests that every dialect can say."""
    system = draw(st.just([]) | SAID.map(lambda said: [{"role": "system", "content": said}]))
    turns = draw(st.lists(USER | ANSWER | tool_turn(), max_size=4))
    messages = [*system, *draw(USER), *itertools.chain(*turns), *draw(USER)]
    body: Body = {"model": "m", "max_tokens": draw(st.integers(16, 9_999)), "messages": messages}
    if draw(st.booleans()):
        body |= {"tools": draw(TOOLS)}
        choice = draw(st.none() | CHOICES)
        body |= {} if choice is None else {"tool_choice": choice}
        if choice not in (None, "none") and draw(st.booleans()):
            body |= {"parallel_tool_calls": False}
    return body | draw(PARAMETERS)
