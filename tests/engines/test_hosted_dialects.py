"""What real providers send that differs from OpenAI's own replies is read, and never asked again at full
price."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from r2_serve.config import HostedEngineConfig
from r2_serve.engines.chat_parts import parse_finish_reason
from r2_serve.engines.hosted import HostedEngine
from r2_serve.engines.hosted_replies import StreamReader, parse_completion
from r2_serve.engines.provider_errors import asked_wait_s
from r2_serve.errors import AnswerWithheld, EngineRefused, EngineUnavailable
from r2_serve.types import Completion, EngineCall, Message, Sampling, Usage
from tests.support.engine_calls import engine_call
from tests.support.upstream import Script, Upstream, chunk, completion, running_upstream, sse

QUESTION = [Message(role="user", content="two plus two")]
INSTRUCTED = [Message(role="system", content="be short"), *QUESTION]
BOM = b"\xef\xbb\xbf"
USAGE = {"prompt_tokens": 7, "completion_tokens": 2}
REPORTED = Usage(**USAGE)
ROLE = {"index": 0, "delta": {"role": "assistant", "content": None, "tool_calls": None}, "finish_reason": ""}
FOUR = [*sse(chunk("fo"), chunk("ur"), chunk(None, "stop"), {"choices": [], "usage": USAGE}, "[DONE]")]

STREAMS: dict[str, list[bytes]] = {
    "OpenAI": FOUR,
    "byte order mark": [BOM, *FOUR],
    "byte order mark in the first piece": [BOM + FOUR[0], *FOUR[1:]],
    "events ended by CR": [event.replace(b"\n", b"\r") for event in FOUR],
    "events ended by CRLF": [event.replace(b"\n", b"\r\n") for event in FOUR],
    "CR and LF mixed": [
        event.replace(b"\n\n", end)
        for event, end in zip(FOUR, [b"\r\n\r", b"\r\n\n", b"\n\r", b"\r\r", b"\n\n"])
    ],
    "no blank after the colon": [event.replace(b"data: ", b"data:") for event in FOUR],
    "several data lines": [event.replace(b', "choices"', b',\ndata: "choices"') for event in FOUR],
    "data: null between chunks": [event for piece in FOUR for event in (piece, b"data: null\n\n")],
    "empty data": [event for piece in FOUR for event in (piece, b"data:\n\n")],
    "OpenRouter and DeepSeek comments": [
        b": OPENROUTER PROCESSING\n\n",
        *FOUR[:1],
        b": keep-alive\n\n",
        *FOUR[1:],
    ],
    "event, id and retry fields": [b"event: message\nid: 1\nretry: 5\n" + event for event in FOUR],
    "[DONE] between blanks": [*FOUR[:-1], b"data:  [DONE] \n\n"],
    "no [DONE]": FOUR[:-1],
    "finish_reason empty before the last chunk": sse(
        chunk("fo", ""), chunk("ur", "null"), chunk("", "stop"), {"choices": [], "usage": USAGE}
    ),
    "finish_reason empty after stop": sse(chunk("four", "stop"), chunk("", "", usage=USAGE), "[DONE]"),
    "usage with choices null": sse(chunk("four", "stop"), {"choices": None, "usage": USAGE}, "[DONE]"),
    "usage in each chunk": sse(
        chunk("fo", usage={"prompt_tokens": 7, "completion_tokens": 1}), chunk("ur", "stop", usage=USAGE)
    ),
    "Azure's first chunk": [
        *sse(
            {
                "choices": [],
                "created": 0,
                "id": "",
                "model": "",
                "prompt_filter_results": [{"prompt_index": 0}],
            }
        ),
        *FOUR,
    ],
    "Azure's asynchronous filter": [
        *FOUR[:2],
        *sse(
            {"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 4}}]}
        ),
        *FOUR[2:],
    ],
    "Groq": sse(
        chunk("four"), {"choices": [{"delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": USAGE}}
    ),
    "Mistral": sse(chunk("four", "stop", usage={**USAGE, "total_tokens": 9}), "[DONE]"),
    "parts with thoughts": sse(
        {
            "choices": [
                {"delta": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "?"}]}]}}
            ]
        },
        {"choices": [{"delta": {"content": [{"type": "text", "text": "four"}]}, "finish_reason": "stop"}]},
        {"choices": [], "usage": USAGE},
    ),
    "llama.cpp": sse(
        {"choices": [ROLE]},
        chunk("four"),
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "timings": {"predicted_n": 2}, "usage": USAGE},
    ),
    "vLLM and DeepSeek reasoning": sse(
        {
            "choices": [{"delta": {"content": None, "reasoning_content": "hm", "reasoning": "hm"}}],
            "usage": None,
        },
        *[json.loads(event[6:]) for event in FOUR[:-1]],
    ),
    "tool calls null": [*sse({"choices": [ROLE], "error": None}), *FOUR],
    "refusal empty": [*sse({"choices": [{"delta": {"content": "", "refusal": ""}}]}), *FOUR],
    "delta null at the end": sse(
        chunk("four"), {"choices": [{"delta": None, "finish_reason": "stop"}], "usage": USAGE}
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_stream_of_a_provider_is_read_wherever_it_is_cut(name: str) -> None:
    body = b"".join(STREAMS[name])
    for pieces in (STREAMS[name], [body], [bytes([byte]) for byte in body]):
        reader = StreamReader()
        assert "".join(delta.text for piece in pieces for delta in reader.feed(piece)) == "four"
        assert (reader.finish(), reader.usage) == ("stop", REPORTED)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        *[
            (reason, "stop")
            for reason in ("stop", "STOP", "eos", "end_turn", "stop_sequence", "COMPLETE", " stop ")
        ],
        *[(reason, "length") for reason in ("length", "max_tokens", "MAX_TOKENS", "model_length")],
    ],
)
def test_foreign_finish_reasons_are_mapped(reason: str, expected: str) -> None:
    assert parse_finish_reason(reason) == expected
    reader = StreamReader()
    list(reader.feed(b"".join(sse(chunk("four", reason)))))
    assert reader.finish() == expected
    assert parse_completion(json.dumps(completion(finish_reason=reason)).encode()).finish_reason == expected


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "tool_use", "RECITATION", "refusal"])
def test_finish_reasons_without_an_answer_are_withheld(reason: str) -> None:
    with pytest.raises(AnswerWithheld, match=reason):
        parse_finish_reason(reason)


async def answered(
    script: Script, *, is_streamed: bool = False, messages: list[Message] = QUESTION, **config: Any
) -> tuple[Completion, Upstream]:
    """What an engine makes of `script`, asked once."""
    async with running_upstream() as upstream:
        upstream.script = script
        engine = HostedEngine(
            HostedEngineConfig(kind="openai", model="m", base_url=upstream.base_url, **config)
        )
        call = engine_call(messages, timeout_s=5.0)
        try:
            if not is_streamed:
                return await engine.generate(call), upstream
            deltas = [delta async for delta in engine.stream(call)]
        finally:
            await engine.aclose()
    last, text = deltas[-1], "".join(delta.text for delta in deltas)
    assert last.usage is not None and last.finish_reason is not None
    return Completion(**{**last.model_dump(), "text": text}), upstream


def plain(**changes: Any) -> Script:
    return Script([json.dumps(completion(**changes)).encode()])


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 7, "completion_tokens": None}, Usage(prompt_tokens=7, completion_tokens=1)),
        ({"prompt_tokens": None, "completion_tokens": 2}, Usage(prompt_tokens=3, completion_tokens=2)),
        ({"prompt_tokens": -1, "completion_tokens": 10**400}, Usage(prompt_tokens=3, completion_tokens=1)),
        ({"prompt_tokens": "7", "completion_tokens": [2]}, Usage(prompt_tokens=3, completion_tokens=1)),
        ({}, Usage(prompt_tokens=3, completion_tokens=1)),
        ("many", Usage(prompt_tokens=3, completion_tokens=1)),
    ],
)
async def test_usage_that_cannot_be_true_is_estimated_and_marked(
    usage: object, expected: Usage, is_streamed: bool
) -> None:
    script = (
        Script(sse(chunk("four", "stop"), {"choices": [], "usage": usage}))
        if is_streamed
        else plain(usage=usage)
    )
    reply, upstream = await answered(script, is_streamed=is_streamed)
    assert (reply.text, reply.usage, reply.is_usage_estimated) == ("four", expected, True)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "content", [{"content": None}, {}, {"content": None, "reasoning_content": "hm, four is"}]
)
async def test_thinking_model_that_ran_out_of_tokens_gives_an_empty_answer(
    content: dict[str, Any], is_streamed: bool
) -> None:
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 64,
        "completion_tokens_details": {"reasoning_tokens": 64},
    }
    last = {"choices": [{"delta": content, "finish_reason": "length"}], "usage": usage}
    script = Script(sse(last)) if is_streamed else plain(message=content, finish_reason="length", usage=usage)
    reply, upstream = await answered(script, is_streamed=is_streamed)
    assert (reply.text, reply.finish_reason) == ("", "length")
    assert (reply.usage.completion_tokens, reply.is_usage_estimated) == (64, False)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": [{"logprob": None}]},
        {"content": [{"logprob": math.nan}]},
        {"tokens": ["four"]},
        "none",
    ],
)
async def test_odd_logprobs_do_not_cost_the_answer(logprobs: object) -> None:
    reply, _ = await answered(plain(logprobs=logprobs))
    assert (reply.text, reply.logprobs) == ("four", None)


async def test_content_of_text_parts_is_joined() -> None:
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "fo"},
        {"type": "text", "text": "ur"},
    ]
    assert (await answered(plain(message={"content": parts})))[0].text == "four"


async def test_keep_alive_blanks_before_a_plain_reply_are_read() -> None:
    assert (await answered(Script([b"\n\n  \n", json.dumps(completion()).encode()])))[0].text == "four"


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("num_bytes", [8_300, 64 * 1024])
async def test_long_header_lines_are_read(num_bytes: int, is_streamed: bool) -> None:
    body = FOUR if is_streamed else [json.dumps(completion()).encode()]
    script = Script(body, headers={"x-policy": "p" * num_bytes})
    assert (await answered(script, is_streamed=is_streamed))[0].text == "four"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-5"}, 0.0),
        ({"retry-after-ms": "inf"}, None),
        ({}, None),
    ],
)
async def test_retry_after_in_milliseconds_is_read(headers: dict[str, str], expected: float | None) -> None:
    assert asked_wait_s(headers) == expected
    with pytest.raises(EngineUnavailable) as caught:
        await answered(Script([b"{}"], 429, headers))
    assert caught.value.retry_after_s == expected


ROLE_REFUSALS = [
    "Developer instruction is not enabled for models/gemma-3-27b-it",
    "System role not supported",
    "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
    "'developer' is not one of ['system', 'assistant', 'user', 'tool', 'function'] - 'messages.0.role'",
    "Conversation roles must alternate user/assistant/user/assistant/...",
]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("refusal", ROLE_REFUSALS)
async def test_provider_without_a_system_role_gets_instructions_in_the_user_message(
    refusal: str, is_streamed: bool
) -> None:
    def answer(request: dict[str, Any]) -> Script:
        if request["messages"][0]["role"] != "user":
            return Script([json.dumps({"error": {"message": refusal, "code": 400}}).encode()], 400)
        return Script(FOUR) if request.get("stream") else plain()

    async with running_upstream() as upstream:
        upstream.script = answer
        engine = HostedEngine(HostedEngineConfig(kind="openai", model="m", base_url=upstream.base_url))
        for _ in range(2):
            if is_streamed:
                async for _ in engine.stream(engine_call(INSTRUCTED)):
                    pass
            else:
                await engine.generate(engine_call(INSTRUCTED))
        await engine.aclose()
    asked = [[(m["role"], m["content"]) for m in request["messages"]] for request in upstream.requests]
    merged = [("user", "be short\n\ntwo plus two")]
    assert asked == [[("system", "be short"), ("user", "two plus two")], merged, merged], "learned once"


TEMPERATURE_REFUSALS = [
    "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default is supported.",
    "`temperature` is deprecated for this model.",
    "temperature: Extra inputs are not permitted",
]


@pytest.mark.parametrize("is_clients", [False, True])
@pytest.mark.parametrize("refusal", TEMPERATURE_REFUSALS)
async def test_model_without_a_temperature_is_asked_without_the_routers_own(
    refusal: str, is_clients: bool
) -> None:
    def answer(request: dict[str, Any]) -> Script:
        if "temperature" in request:
            return Script([json.dumps({"error": {"message": refusal}}).encode()], 400)
        return plain()

    greedy = Sampling(temperature=0.0, seed=7)
    call = EngineCall(messages=tuple(QUESTION), sampling=greedy, is_verbatim=is_clients)
    async with running_upstream() as upstream:
        upstream.script = answer
        engine = HostedEngine(HostedEngineConfig(kind="openai", model="m", base_url=upstream.base_url))
        for _ in range(2):
            if is_clients:
                with pytest.raises(EngineRefused, match="temperature"):
                    await engine.generate(call)
            else:
                await engine.generate(call)
        await engine.aclose()
    asked = [request.get("temperature") for request in upstream.requests]
    assert asked == ([0.0, 0.0] if is_clients else [0.0, None, None]), "learned once"
    assert {request["seed"] for request in upstream.requests} == {7}


@pytest.mark.parametrize(
    "refusal",
    [
        "property 'prompt_cache_key' is unsupported",
        'Invalid JSON payload received. Unknown name "user": Cannot find field.',
        '[{"type": "extra_forbidden", "loc": ["body", "user"], "msg": "Extra inputs are not permitted"}]',
    ],
)
async def test_provider_that_takes_no_labels_is_asked_without_them_and_with_all_the_rest(
    refusal: str,
) -> None:
    labels = {"prompt_cache_key": "k", "user": "u"}

    def answer(request: dict[str, Any]) -> Script:
        if labels.keys() & request.keys():
            return Script([json.dumps({"error": {"message": refusal}}).encode()], 400)
        return plain()

    call = EngineCall(messages=tuple(QUESTION), sampling=Sampling(forwarded={**labels, "top_k": 5}))
    async with running_upstream() as upstream:
        upstream.script = answer
        engine = HostedEngine(HostedEngineConfig(kind="openai", model="m", base_url=upstream.base_url))
        for _ in range(2):
            await engine.generate(call)
        await engine.aclose()
    assert ["user" in request for request in upstream.requests] == [True, False, False], "learned once"
    assert {request["top_k"] for request in upstream.requests} == {5}


@pytest.mark.parametrize(
    ("messages", "refusal"),
    [(QUESTION, ROLE_REFUSALS[1]), (INSTRUCTED, "maximum context length is 8192 tokens")],
)
async def test_other_refusals_are_not_asked_again(messages: list[Message], refusal: str) -> None:
    async with running_upstream() as upstream:
        upstream.script = Script([json.dumps({"error": {"message": refusal}}).encode()], 400)
        engine = HostedEngine(HostedEngineConfig(kind="openai", model="m", base_url=upstream.base_url))
        with pytest.raises(EngineRefused, match=refusal):
            await engine.generate(engine_call(messages))
        await engine.aclose()
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("base_url", "written"),
    [
        ("https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/chat/completions/", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/models", "https://api.openai.com/v1"),
        (" https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1\n", "https://api.openai.com/v1"),
        ("https://api.openai .com/v1", "https://api.openai.com/v1"),
        ("https://x.openai.azure.com/openai/deployments/d/chat/completions", "https://x.openai.azure.com"),
    ],
)
def test_base_url_that_cannot_be_right_is_refused_with_what_to_write(base_url: str, written: str) -> None:
    with pytest.raises(ValueError, match=f"write {written}") as caught:
        HostedEngineConfig(kind="openai", model="m", base_url=base_url)
    assert caught.value.errors()[0]["msg"].endswith(f"write {written}")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 60}}, (100, 20, 60, 0, 0)),
        ({"prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 40}}, (100, 20, 60, 40, 0)),
        ({"prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40}, (100, 20, 60, 0, 0)),
        ({"cached_tokens": 60}, (100, 20, 60, 0, 0)),
        ({"cache_read_input_tokens": 60, "cache_creation_input_tokens": 10}, (100, 20, 60, 10, 0)),
        ({"completion_tokens_details": {"reasoning_tokens": 15}}, (100, 20, 0, 0, 15)),
        ({"total_tokens": 120, "completion_tokens_details": {"reasoning_tokens": 15}}, (100, 20, 0, 0, 15)),
        ({"total_tokens": 150, "completion_tokens_details": {"reasoning_tokens": 30}}, (100, 50, 0, 0, 30)),
        ({"total_tokens": 150}, (100, 50, 0, 0, 30)),
        ({"prompt_tokens_details": {"cached_tokens": 101}}, (100, 20, 0, 0, 0)),
        ({"completion_tokens_details": {"reasoning_tokens": 21}}, (100, 20, 0, 0, 0)),
        ({"prompt_tokens_details": None, "completion_tokens_details": []}, (100, 20, 0, 0, 0)),
        ({"prompt_tokens_details": {"cached_tokens": -1}, "total_tokens": "x"}, (100, 20, 0, 0, 0)),
    ],
)
def test_usage_details_of_each_provider_are_read(
    reported: dict[str, object], expected: tuple[int, ...]
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 20, **reported}
    read = parse_completion(json.dumps(completion(usage=usage)).encode()).tokens.whole()
    assert read is not None
    assert (
        read.prompt_tokens,
        read.completion_tokens,
        read.cached_read_tokens,
        read.cached_write_tokens,
        read.reasoning_tokens,
    ) == expected


def test_texts_of_further_choices_are_kept() -> None:
    """The decomposer asks for several plans by one prompt; an empty choice keeps its place."""
    message = {"role": "assistant", "content": None}
    texts = [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for text in "ab"]
    body = completion(choices=[*texts, {"message": message, "finish_reason": "length"}])
    parts = parse_completion(json.dumps(body).encode())
    assert (parts.text, parts.others) == ("a", ("b", ""))
