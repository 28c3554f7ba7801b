"""The Responses API as chat completions: what agents send, and what must not get lost on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r2_serve.dialects.responses.history import items_of
from r2_serve.dialects.responses.names import MAX_NAME_CHARS, ToolNames, flat_name
from r2_serve.dialects.responses.output import Output
from r2_serve.dialects.responses.requests import Translated, translated
from r2_serve.errors import InvalidRequest
from r2_serve.types import Message, Query

SHELL = {"type": "function", "name": "exec_command", "strict": False, "parameters": {"type": "object"}}
PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch hunk+ end_patch"},
}
AGENTS = {
    "type": "namespace",
    "name": "multi_agent_v1",
    "description": "Sub-agents.",
    "tools": [{"type": "function", "name": "close_agent", "strict": False, "parameters": {"type": "object"}}],
}
SEARCH = {
    "type": "tool_search",
    "execution": "client",
    "description": "Searches for tools.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
}
WEB = {"type": "web_search", "external_web_access": False}
CODEX: dict[str, Any] = {
    "model": "r2",
    "stream": True,
    "tools": [SHELL, PATCH, AGENTS, SEARCH, WEB],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "text": {"verbosity": "low"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a2",
    "client_metadata": {"session_id": "01a2"},
}
"""What Codex CLI 0.171 sends, with shorter texts."""


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def read(*items: dict[str, Any], is_native: bool = False, **body: Any) -> Translated:
    return translated({"model": "m", **body}, items, is_native=is_native)


def messages_of(*items: dict[str, Any]) -> Any:
    return read(*items).chat["messages"]


def message_of(chat: dict[str, Any]) -> Message:
    more = {key: value for key, value in chat.items() if key not in ("role", "content")}
    return Message.model_validate({"role": chat["role"], "content": chat["content"], "more": more})


def refined(request: Translated) -> Query:
    """The query of a request, as the endpoint reads it."""
    messages: Any = request.chat["messages"]
    query = Query(request_id="x", model="m", messages=tuple(map(message_of, messages)))
    return request.refined(query)


def functions_of(request: Translated) -> dict[str, Any]:
    tools: Any = request.chat["tools"]
    return {tool["function"]["name"]: tool["function"] for tool in tools}


def output_of(names: ToolNames, name: str, arguments: str) -> list[dict[str, Any]]:
    output = Output("x", names)
    call = {"index": 0, "id": "call_1", "function": {"name": name, "arguments": arguments}}
    list(output.take({"tool_calls": [call]}))
    list(output.end(is_cut=False))
    return output.items


def test_what_codex_sends_becomes_functions_that_any_chat_model_takes() -> None:
    request = translated(CODEX, [user("hi")], is_native=False)
    assert set(functions_of(request)) == {
        "exec_command",
        "apply_patch",
        "multi_agent_v1__close_agent",
        "tool_search",
    }
    patch = functions_of(request)["apply_patch"]
    assert patch["parameters"]["required"] == ["input"]
    assert "start: begin_patch hunk+ end_patch" in patch["description"]
    assert request.chat["reasoning_effort"] == "medium" and request.chat["verbosity"] == "low"
    assert request.names.left_out == ["tools.4 (web_search)"]
    assert "client_metadata" not in request.chat and "include" not in request.chat


def test_calls_of_codex_tools_find_their_way_back() -> None:
    names = translated(CODEX, [user("hi")], is_native=False).names
    (patch,) = output_of(names, "apply_patch", '{"input": "*** Begin Patch"}')
    assert (patch["type"], patch["name"], patch["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "*** Begin Patch",
    )
    (close,) = output_of(names, "multi_agent_v1__close_agent", "{}")
    assert (close["type"], close["name"], close["namespace"]) == (
        "function_call",
        "close_agent",
        "multi_agent_v1",
    )
    (search,) = output_of(names, "tool_search", '{"query": "git"}')
    assert (search["type"], search["execution"], search["arguments"]) == (
        "tool_search_call",
        "client",
        {"query": "git"},
    )


def test_history_of_codex_calls_becomes_pairs_of_call_and_result() -> None:
    items: list[dict[str, Any]] = [
        user("fix it"),
        {"type": "custom_tool_call", "call_id": "1", "name": "apply_patch", "input": "*** Begin Patch"},
        {"type": "function_call", "call_id": "2", "name": "close_agent", "namespace": "multi_agent_v1",
         "arguments": "{}"},
        {"type": "custom_tool_call_output", "call_id": "1", "output": "Success"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "ok"}]},
    ]  # fmt: skip
    _, assistant, first, second = messages_of(*items)
    calls = [(call["id"], call["function"]["name"]) for call in assistant["tool_calls"]]
    assert calls == [("1", "apply_patch"), ("2", "multi_agent_v1__close_agent")]
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"input": "*** Begin Patch"}
    assert (first["tool_call_id"], first["content"]) == ("1", "Success")
    assert (second["tool_call_id"], second["content"]) == ("2", "ok")


def test_tools_that_a_search_found_are_offered_from_then_on() -> None:
    found = {"type": "function", "name": "git_log", "parameters": {"type": "object"}}
    request = read(
        user("hi"),
        {"type": "tool_search_call", "call_id": "1", "execution": "client", "arguments": {"query": "git"}},
        {"type": "tool_search_output", "call_id": "1", "execution": "client", "tools": [found]},
        tools=[SEARCH],
    )
    assert set(functions_of(request)) == {"tool_search", "git_log"}


def test_free_text_of_a_model_that_writes_no_json_is_kept() -> None:
    (patch,) = output_of(ToolNames.of([PATCH]), "apply_patch", "*** Begin Patch")
    assert patch["input"] == "*** Begin Patch"


def test_long_names_in_namespaces_stay_different_and_short_enough() -> None:
    names = {flat_name(f"tool_{'x' * 60}_{number}", "mcp__server") for number in range(3)}
    assert len(names) == 3 and max(map(len, names)) <= MAX_NAME_CHARS


def test_thoughts_text_and_calls_become_one_message() -> None:
    thought: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    text: dict[str, Any] = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
    }
    call: dict[str, Any] = {
        "type": "function_call",
        "call_id": "1",
        "name": "exec_command",
        "arguments": "{}",
    }
    result: dict[str, Any] = {"type": "function_call_output", "call_id": "1", "output": "ok"}
    _, assistant, tool, last = messages_of(user("hi"), thought, text, call, result, text)
    assert assistant["content"] == "I look." and assistant["tool_calls"][0]["id"] == "1"
    assert "reasoning_details" not in assistant
    assert (tool["role"], last["role"], last["content"]) == ("tool", "assistant", "I look.")


def test_interleaved_thoughts_do_not_separate_calls_from_their_results() -> None:
    first, second = (
        {"type": "function_call", "call_id": number, "name": "f", "arguments": "{}"} for number in "12"
    )
    thought: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    results = [{"type": "function_call_output", "call_id": number, "output": "ok"} for number in "12"]
    roles = [m["role"] for m in messages_of(user("hi"), first, thought, second, *results)]
    assert roles == ["user", "assistant", "tool", "tool"]


def test_thoughts_of_a_chat_model_come_back_to_it_through_the_client() -> None:
    blocks = [{"type": "thinking", "thinking": "two and two", "signature": "sig"}]
    output = Output("x", ToolNames())
    list(output.take({"reasoning_content": "two and two", "thinking_blocks": blocks}))
    list(output.take({"content": "four"}))
    list(output.end(is_cut=False))
    sent_back = json.loads(json.dumps(output.items))
    del sent_back[0]["content"]
    _, assistant = messages_of(user("hi"), *sent_back)
    assert assistant["reasoning_content"] == "two and two"
    assert assistant["thinking_blocks"] == blocks


def test_items_as_they_came_stay_for_a_provider_that_speaks_the_dialect() -> None:
    items: list[dict[str, Any]] = [
        user("hi"),
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
        {"type": "message", "id": "msg_1", "role": "assistant", "phase": "commentary", "status": "completed",
         "content": [{"type": "output_text", "text": "four", "annotations": []}]},
        {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAAA"},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "1", "name": "apply_patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "1", "output": "ok"},
    ]  # fmt: skip
    request = read(*items, is_native=True, tools=[WEB, PATCH], truncation="auto", x_new=1)
    assert items_of(refined(request).messages) == items
    assert request.native == {"tools": [WEB, PATCH], "truncation": "auto", "x_new": 1}


def test_messages_that_translate_without_loss_carry_no_items() -> None:
    plain: dict[str, Any] = {"type": "message", "role": "user", "content": "hi"}
    request = read(plain)
    assert request.chat["messages"] == [{"role": "user", "content": "hi"}]
    assert request.items == (None,)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "function", "name": "f", "content": "ok"},
        {"role": "assistant", "content": None, "audio": {"id": "a"}},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]},
    ],
)
def test_what_the_responses_api_cannot_say_is_named(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as unsaid:
        items_of([message_of(message)])
    assert (unsaid.value.param or "").startswith("messages.0.")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user", "content": [{"type": "input_text"}]}, "input.0.content.0.text"),
        ({"role": "user", "content": ["hi"]}, "input.0.content.0"),
        ({"role": "robot", "content": "hi"}, "input.0.role"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input.0.call_id"),
        ({"type": "function_call_output", "output": "x"}, "input.0.call_id"),
        ({"content": "hi"}, "input.0.type"),
        ({"type": "shell_call", "call_id": "1"}, "input.0"),
        ({"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]},
         "input.0.content.0.file_url"),
    ],
)  # fmt: skip
def test_broken_items_are_refused_by_name(item: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(item)
    assert refused.value.param == param


def test_images_and_files_are_said_in_both_dialects() -> None:
    content = [
        {"type": "input_text", "text": "what is this?"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
    ]
    item: dict[str, Any] = {"type": "message", "role": "user", "content": content}
    (message,) = messages_of(item)
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "file"]
    assert items_of([message_of(message)]) == [item]


def test_client_that_asks_for_a_summary_sees_the_thoughts_in_it() -> None:
    output = Output("x", ToolNames(), wants_summary=True)
    events = [*output.take({"reasoning_content": "two "}), *output.take({"reasoning_content": "and two"})]
    events += output.end(is_cut=False)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    (thought,) = output.items
    assert (
        thought["summary"] == [{"type": "summary_text", "text": "two and two"}] and "content" not in thought
    )
    _, assistant = messages_of(user("hi"), thought)
    assert assistant["reasoning_content"] == "two and two"
