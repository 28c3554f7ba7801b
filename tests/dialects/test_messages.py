"""Messages and chat completions say the same conversation: there and back, in both directions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.dialects.messages.events import EventsRead
from r2_serve.dialects.messages.parts import unsaid
from r2_serve.dialects.messages.replies import completion_of, message_of, usage_of
from r2_serve.dialects.messages.requests import HEADERS, ReadRequest, read_request
from r2_serve.dialects.messages.stream import MessagesReply
from r2_serve.dialects.messages.writing import REPLY_TOKENS, write_request
from r2_serve.engines.chat_parts import Tokens
from r2_serve.errors import InvalidRequest
from r2_serve.http.openai_wire import parse_chat
from r2_serve.types import Answer, Delta, Json, Trace, Usage
from tests.dialects.conversations import Body, bodies, normal
from tests.support import messages_provider as provider

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
IDS = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(IDS, inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(IDS, VALUES, max_size=3)
MARK = {"cache_control": {"type": "ephemeral"}}


def read_back(chat: Json) -> ReadRequest:
    """A chat request, written as Messages and read again."""
    query = parse_chat(json.dumps(chat).encode()).to_query("id", is_virtual=False)
    written = write_request(chat, query.messages, query.sampling)
    return read_request(json.dumps(written).encode(), {})


def sent_on(body: Json, headers: dict[str, str] | None = None) -> Json:
    """A Messages request as an engine of Messages sends it on."""
    read = read_request(json.dumps(body).encode(), headers or {})
    query = read.refined(parse_chat(json.dumps(read.chat).encode()).to_query("id", is_virtual=False))
    return write_request(read.chat, query.messages, query.sampling)


# -- chat completions, there and back --


@given(
    bodies(),
    st.fixed_dictionaries(
        {}, optional={"stop": st.lists(TEXTS, min_size=1, max_size=4), "top_k": st.integers(1, 9)}
    ),
)
def test_chat_request_comes_back_equal_through_messages(body: Body, more: Body) -> None:
    read = read_back({**body, **more})
    assert normal(read.chat) == normal({**body, **more})
    assert read.demands == (), "chat completions say all of it"


# -- Messages, there and back --

HINTS = st.just({}) | st.just(MARK)
TEXT_BLOCKS = st.builds(lambda text, hint: {"type": "text", "text": text, **hint}, TEXTS, HINTS)
FOREIGN = st.builds(
    lambda more: {"type": "invented_later", **more}, OBJECTS.filter(lambda o: "type" not in o)
)
DOCUMENTS = st.builds(
    lambda source, more, hint: {"type": "document", "source": source, **more, **hint},
    st.sampled_from(
        [
            {"type": "base64", "media_type": "application/pdf", "data": "AAAA"},
            {"type": "text", "media_type": "text/plain", "data": "two"},
            {"type": "url", "url": "https://x/a.pdf"},
            {"type": "file", "file_id": "f"},
        ]
    ),
    st.fixed_dictionaries(
        {}, optional={"title": TEXTS, "context": TEXTS, "citations": st.just({"enabled": True})}
    ),
    HINTS,
)
IMAGES = st.sampled_from(
    [
        {"type": "base64", "media_type": "image/png", "data": "AAAA"},
        {"type": "url", "url": "https://x/a.png"},
        {"type": "file", "file_id": "f"},
    ]
).map(lambda source: {"type": "image", "source": source})
USER_BLOCKS = TEXT_BLOCKS | IMAGES | DOCUMENTS | FOREIGN
RESULTS = st.builds(
    lambda id, more, hint: {"type": "tool_result", "tool_use_id": id, **more, **hint},
    IDS,
    st.fixed_dictionaries(
        {"content": TEXTS | st.lists(USER_BLOCKS, max_size=2)}, optional={"is_error": st.booleans()}
    ),
    HINTS,
)
CALLS = st.builds(
    lambda id, name, given, hint: {"type": "tool_use", "id": id, "name": name, "input": given, **hint},
    IDS,
    IDS,
    OBJECTS,
    HINTS,
)
ASSISTANT_BLOCKS = (
    TEXT_BLOCKS
    | CALLS
    | FOREIGN
    | st.sampled_from([provider.THOUGHT, provider.REDACTED, provider.SEARCH, provider.FOUND, provider.CITED])
)
TURNS = st.one_of(
    st.lists(USER_BLOCKS | RESULTS, min_size=1, max_size=4).map(lambda blocks: ("user", blocks)),
    st.lists(ASSISTANT_BLOCKS, min_size=1, max_size=4).map(lambda blocks: ("assistant", blocks)),
)


@given(st.lists(TURNS, min_size=1, max_size=4), st.none() | st.lists(TEXT_BLOCKS, min_size=1, max_size=2))
def test_every_block_reaches_a_messages_provider_as_it_was_sent(turns: Any, system: Any) -> None:
    messages = [{"role": role, "content": blocks} for role, blocks in turns]
    body: Json = {"model": "m", "max_tokens": 9, "messages": messages}
    body |= {} if system is None else {"system": system}
    sent = sent_on(body)
    assert joined(sent["messages"]) == joined(messages)
    assert sent.get("system") == system


def joined(turns: Any) -> list[Any]:
    """Role and block, one by one: the API joins neighbours of one role itself."""
    return [(turn["role"], block) for turn in turns for block in turn["content"]]


@given(OBJECTS.filter(lambda given: not given.keys() & {"model", "messages", "system", "tools", "stream"}))
def test_every_parameter_that_is_not_known_reaches_a_messages_provider(more: Any) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **more}
    sent = sent_on(body)
    assert {name: sent.get(name) for name in more} == more


@given(st.lists(TURNS, min_size=1, max_size=4))
def test_what_chat_cannot_say_is_a_demand_and_nothing_else_is(turns: Any) -> None:
    messages = [{"role": role, "content": blocks} for role, blocks in [*turns, ("user", [])]]
    read = read_request(json.dumps({"model": "m", "max_tokens": 9, "messages": messages}).encode(), {})
    blocks = [block for _, turn in turns for block in turn]
    blocks += [b for block in blocks if isinstance(block.get("content"), list) for b in block["content"]]
    assert bool(read.demands) == any(
        block["type"] != "web_search_result" and unsaid(block) for block in blocks
    )


# -- replies --


@pytest.mark.parametrize(
    "request_",
    [{}, {"thinking": {"type": "enabled"}}, {"tools": [{}]}, {"tools": [{"type": "web_search_1"}]}],
)
def test_chunks_of_a_stream_join_to_the_whole_completion(request_: Any) -> None:
    message = provider.message_of({"messages": [{"role": "user", "content": "hi"}], **request_})
    whole: Any = completion_of(message)
    reader, joined_message, calls = EventsRead(), {"content": "", "reasoning_content": ""}, {}
    thoughts: list[Any] = []
    for event in provider.stream_of(message):
        for chunk in reader(event) or ():
            for choice in chunk["choices"]:  # type: ignore[attr-defined]
                delta = choice["delta"]
                for name in joined_message:
                    joined_message[name] += delta.get(name) or ""
                thoughts += delta.get("thinking_blocks", [])
                for call in delta.get("tool_calls", ()):
                    known = calls.setdefault(call["index"], {**call, "function": dict(call["function"])})
                    if known["id"] != call.get("id"):
                        known["function"]["arguments"] += call["function"]["arguments"]
                finish_reason = choice["finish_reason"]
            usage = chunk.get("usage", {})
    said = whole["choices"][0]["message"]
    assert joined_message == {
        "content": said["content"] or "",
        "reasoning_content": said.get("reasoning_content", ""),
    }
    assert thoughts == said.get("thinking_blocks", [])
    assert list(calls.values()) == [
        {"index": index, **call} for index, call in enumerate(said.get("tool_calls", ()))
    ]
    assert finish_reason == whole["choices"][0]["finish_reason"]
    assert usage == whole["usage"]


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason", "back"),
    [
        ("end_turn", "stop", "end_turn"),
        ("stop_sequence", "stop", "end_turn"),
        ("pause_turn", "stop", "end_turn"),
        ("max_tokens", "length", "max_tokens"),
        ("model_context_window_exceeded", "length", "max_tokens"),
        ("tool_use", "tool_calls", "tool_use"),
        ("refusal", "content_filter", "refusal"),
    ],
)
def test_stop_reasons_have_these_names(stop_reason: str, finish_reason: Any, back: str) -> None:
    completion: Any = completion_of({"content": [], "stop_reason": stop_reason})
    assert completion["choices"][0]["finish_reason"] == finish_reason
    body = {"choices": completion["choices"]}
    assert message_of(answer_of(finish_reason, body), "id", "m")["stop_reason"] == back


def answer_of(finish_reason: Any, body: Json, usage: Usage | None = None) -> Answer:
    trace = Trace(request_id="id", model="m", query="q")
    return Answer(
        text="",
        finish_reason=finish_reason,
        usage=usage or Usage(),
        cost_usd=0,
        models=(),
        body=body,
        trace=trace,
    )


def test_usage_counts_the_cache_into_the_prompt_and_out_of_it_again() -> None:
    usage = Tokens.model_validate(usage_of(provider.USAGE)).whole()
    assert usage == Usage(
        prompt_tokens=1000,
        completion_tokens=60,
        cached_read_tokens=700,
        cached_write_tokens=200,
        cached_hour_write_tokens=50,
        reasoning_tokens=40,
    )
    message = message_of(answer_of("stop", {}, usage), "id", "m")
    counts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    assert message["usage"] == {name: provider.USAGE[name] for name in counts}


def test_arguments_that_are_no_object_go_to_the_tool_that_refuses_them() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"city": '}}
    body: Json = {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}
    message: Any = message_of(answer_of("tool_calls", body), "id", "m")
    assert message["content"][0]["input"] == {"arguments": '{"city": '}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_stop_sequence_that_vllm_names_is_named(is_streamed: bool) -> None:
    choice: Json = {"index": 0, "finish_reason": "stop", "stop_reason": "END"}
    body: Json = {"choices": [{**choice, "message": {"content": "four"}}]}
    reply = MessagesReply("id", "m", "req")
    if is_streamed:
        reply.piece(Delta(body={"choices": [{**choice, "delta": {"content": "four"}}]}))
        written = reply.end(answer_of("stop", {}), "", {}).decode()
    else:
        written = reply.whole(answer_of("stop", body), {}).decode()
    assert '"stop_reason":"stop_sequence","stop_sequence":"END"' in written


def test_refusal_of_a_chat_model_is_text_with_the_stop_reason_of_a_refusal() -> None:
    body: Json = {"choices": [{"message": {"content": None, "refusal": "I will not"}}]}
    message: Any = message_of(answer_of("stop", body), "id", "m")
    assert message["content"] == [{"type": "text", "text": "I will not"}]
    assert message["stop_reason"] == "refusal"


# -- what Messages cannot say --


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
            "messages.0.content.0.file",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "https://x", "detail": "low"}}
                        ],
                    }
                ]
            },
            "messages.0.content.0.image_url.detail",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[]"}}
                        ],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_what_messages_cannot_say_is_refused_by_name(changes: Any, param: str) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **changes}
    with pytest.raises(InvalidRequest) as refused:
        read_back(chat)
    assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")


def test_values_that_state_what_happens_anyway_are_taken() -> None:
    said: Json = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    anyway = {"n": 1, "logprobs": False, "presence_penalty": 0, "verbosity": "medium", "modalities": ["text"]}
    silent = {"store": True, "prompt_cache_key": "k", "metadata": {"a": "b"}, "user": "ann", "logit_bias": {}}
    chat = said | anyway | silent
    read = read_back(chat)
    assert read.chat == {"model": "m", "max_tokens": REPLY_TOKENS, "messages": chat["messages"]}
    assert read.native == {"metadata": {"user_id": "ann"}, HEADERS: {}, **MARK}


@pytest.mark.parametrize(
    ("more", "is_marked"),
    [
        ({}, False),
        ({"prompt_cache_key": "k"}, True),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True),
    ],
)
def test_prompt_that_will_be_sent_again_is_marked_for_the_cache(more: Json, is_marked: bool) -> None:
    """Chat completions cache without marks, Messages does not."""
    chat: Json = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}
    assert ("cache_control" in read_back(chat).native) is is_marked
    marked = {"role": "user", "content": [{"type": "text", "text": "hi", **MARK}]}
    assert "cache_control" not in read_back({**chat, "messages": [marked]}).native, "the client marks itself"


def test_chat_client_sends_thoughts_and_cache_marks_back_as_it_got_them() -> None:
    reply: Any = completion_of(
        provider.message_of(
            {"messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "enabled"}}
        )
    )
    said = reply["choices"][0]["message"]
    assert said["reasoning_content"] == "two and two"
    asked = {"role": "user", "content": [{"type": "text", "text": "hi", **MARK}]}
    chat: Json = {"model": "m", "messages": [asked, {**said, "annotations": []}, asked]}
    query = parse_chat(json.dumps(chat).encode()).to_query("id", is_virtual=False)
    turns: Any = write_request(chat, query.messages, query.sampling)["messages"]
    assert turns[1]["content"] == [provider.THOUGHT, provider.REDACTED, {"type": "text", "text": "four"}]
    assert turns[0]["content"] == asked["content"]


def test_thoughts_without_a_signature_do_not_go_to_a_messages_provider() -> None:
    unsigned = {"type": "thinking", "thinking": "hm", "signature": ""}
    turn = {"role": "assistant", "content": [unsigned, {"type": "text", "text": "a", **MARK}]}
    user = {"role": "user", "content": [{"type": "text", "text": "b"}]}
    sent = sent_on({"model": "m", "max_tokens": 9, "messages": [turn, user]})
    assert sent["messages"] == [{**turn, "content": turn["content"][1:]}, user]


def test_no_tokens_may_be_asked_of_a_provider_that_warms_its_cache() -> None:
    body: Json = {"model": "m", "max_tokens": 0, "messages": [{"role": "user", "content": "hi"}]}
    assert read_request(json.dumps(body).encode(), {}).demands == ("max_tokens",)
    assert sent_on(body)["max_tokens"] == 0
