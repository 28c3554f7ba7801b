"""The faults of real providers, as bytes on a wire, and the right outcome of each.

`PLAIN` are replies to a request without `stream`, `STREAMED` to one with it; faults of the status line are in
both. The faulty model answers "wrong": no client may see that word from a broken plain reply.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.support.upstream import Script, chunk, completion, http_chunks, sse

SSE = {"content-type": "text/event-stream"}
CHUNKED = {**SSE, "transfer-encoding": "chunked"}
UNAVAILABLE, INVALID, LIMITED = "upstream_unavailable", "invalid_upstream_reply", "rate_limit_exceeded"
REFUSED, MISCONFIGURED = "", "upstream_misconfigured"
"""`error.code` of a refusal that names none; of one of the router's own key, account or model."""
FILTERED_OUT, WITHHELD_ANSWER = "content_filter", "answer_withheld"
STATUS_OF = {
    UNAVAILABLE: 503,
    INVALID: 502,
    LIMITED: 429,
    REFUSED: 400,
    MISCONFIGURED: 502,
    FILTERED_OUT: 400,
    WITHHELD_ANSWER: 502,
}
"""The HTTP status that a client gets with each code."""


@dataclass(frozen=True)
class Fault:
    """One fault: `script` is what the provider does, the other fields are the right outcome."""

    script: Script
    code: str
    """The `error.code` of the reply if no other model is left."""
    num_hits: int = 2
    """Requests to the faulty model, of two attempts configured; 1 if a second attempt is pointless."""
    streamed: str = ""
    """Text that the client has before the error; no other model may answer after it."""
    is_slow: bool = False
    """True if only a timeout shows the fault; the same model is not asked again then."""
    cost: Literal["reported", "estimated", "free"] = "estimated"
    """`reported` if the provider reports the usage `REPORTED`, `free` if it did no work."""


def refused(script: Script, code: str = REFUSED) -> Fault:
    """A refusal before any work."""
    return Fault(script, code, num_hits=1, cost="free")


def billed(
    script: Script, code: str = INVALID, num_hits: int = 2, streamed: str = "", **fields: Any
) -> Fault:
    """A fault whose provider reports the usage `REPORTED`, which is booked."""
    return Fault(script, code, num_hits, streamed, cost="reported", **fields)


def json_reply(body: Any, status: int = 200, **headers: str) -> Script:
    """A reply whose body is `body` as JSON."""
    return Script([json.dumps(body).encode()], status, headers)


def wrong(**changes: Any) -> Script:
    """A complete reply with `changes`."""
    return json_reply(completion(**{"message": {"role": "assistant", "content": "wrong"}, **changes}))


def events(*items: Any, **how: Any) -> Script:
    """A stream of the events `items`."""
    return Script(sse(*items), headers=SSE, **how)


WHOLE = json.dumps(completion(message={"role": "assistant", "content": "wrong"})).encode()
ERROR = {"error": {"message": "it broke", "type": "server_error", "param": None, "code": None}}
QUOTA = {
    "error": {
        "message": "pay first",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
}
HTML = b"<html><body>502 Bad Gateway</body></html>"
WRONG = chunk("wrong")
END = chunk(None, "stop")
FILTERED = chunk(None, "content_filter")
USAGE = {"id": "x", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
REPORTED = (7, 2)
"""Tokens in and out that the provider reports."""
DEEP = b'{"a":' * 100_000
"""A depth that no recursive parser can take."""
NO_DATE = {"retry-after": "Wed, 21 Oct 99999999999 07:28:00 GMT"}
SURROGATE = rb'{"error": {"message": "half of \ud83d, no more", "type": "server_error"}}'


STATUSES: dict[str, Fault] = {
    "429 as text": Fault(Script([b"slow down"], 429, {"content-type": "text/plain"}), LIMITED, cost="free"),
    "429 with a short Retry-After": Fault(
        json_reply(ERROR, 429, **{"retry-after": "0.05"}), LIMITED, cost="free"
    ),
    "429 with a long Retry-After": Fault(
        json_reply(ERROR, 429, **{"retry-after": "60"}), LIMITED, num_hits=1, cost="free"
    ),
    "429 with a Retry-After that is no date": Fault(json_reply(ERROR, 429, **NO_DATE), LIMITED, cost="free"),
    "429 for want of quota": refused(json_reply(QUOTA, 429), MISCONFIGURED),
    "400": refused(json_reply(ERROR, 400)),
    "401": refused(json_reply(ERROR, 401), MISCONFIGURED),
    "404": refused(json_reply(ERROR, 404), MISCONFIGURED),
    "404 as html": refused(Script([HTML], 404, {"content-type": "text/html"}), MISCONFIGURED),
    "400 with half a character": refused(Script([SURROGATE], 400)),
    "400 nested too deep": refused(Script([DEEP], 400)),
    "500": Fault(json_reply(ERROR, 500), UNAVAILABLE),
    "500 nested too deep": Fault(Script([DEEP], 500), UNAVAILABLE),
    "503": Fault(json_reply(ERROR, 503), UNAVAILABLE),
    "503 as html": Fault(Script([HTML], 503, {"content-type": "text/html"}), UNAVAILABLE),
    "redirect": refused(
        json_reply(ERROR, 307, location="http://127.0.0.1:9/v1/chat/completions"), MISCONFIGURED
    ),
    "reset before the head": Fault(Script(has_head=False, is_reset=True), UNAVAILABLE),
    "closed before the head": Fault(Script(has_head=False), UNAVAILABLE),
    "no answer at all": Fault(Script(has_head=False, is_held=True), UNAVAILABLE, num_hits=1, is_slow=True),
    "not HTTP": Fault(Script([b"SSH-2.0-OpenSSH_9.6\r\n"], has_head=False), INVALID),
    "head, then nothing": Fault(Script(is_held=True), UNAVAILABLE, num_hits=1, is_slow=True),
    "drip of 10 bytes a second": Fault(
        Script(itertools.repeat(b" "), gap_s=0.1), UNAVAILABLE, num_hits=1, is_slow=True
    ),
}

PLAIN: dict[str, Fault] = {
    **STATUSES,
    "html in a 200": Fault(Script([HTML], headers={"content-type": "text/html"}), INVALID),
    "empty 200": Fault(Script(), INVALID),
    "nested too deep": Fault(Script([DEEP]), INVALID),
    "error in a 200": Fault(json_reply(ERROR), UNAVAILABLE),
    "error in a 200, with usage": billed(json_reply({**ERROR, "usage": USAGE["usage"]}), UNAVAILABLE),
    "error of no kind in a 200": Fault(json_reply({"error": "it broke"}), INVALID),
    "400 in a 200": refused(json_reply({"error": {"message": "not so", "code": 400}})),
    "429 in a 200": Fault(json_reply({"error": {"message": "slow down", "code": 429}}), LIMITED, cost="free"),
    "cut JSON": Fault(Script([WHOLE[:-30]]), INVALID),
    "bad UTF-8": Fault(Script([WHOLE.replace(b"wrong", b"wro\xff\xfe")]), INVALID),
    "lone surrogate": billed(Script([WHOLE.replace(b"wrong", rb"wro\ud800")])),
    "no choices": Fault(json_reply({"id": "x", "object": "chat.completion"}), INVALID),
    "empty choices": billed(wrong(choices=[])),
    "null choices": billed(wrong(choices=None)),
    "null content": billed(wrong(message={"role": "assistant", "content": None})),
    "null content, no usage": Fault(
        wrong(message={"role": "assistant", "content": None}, usage=None), INVALID
    ),
    "missing finish_reason": billed(wrong(finish_reason=None)),
    "unknown finish_reason": billed(wrong(finish_reason="tired")),
    "filtered": billed(wrong(finish_reason="content_filter"), FILTERED_OUT, 1),
    "filtered, no usage": Fault(wrong(finish_reason="content_filter", usage=None), FILTERED_OUT, 1),
    "tool calls": billed(
        wrong(finish_reason="tool_calls", message={"role": "assistant", "content": None}), WITHHELD_ANSWER, 1
    ),
    "refusal": billed(
        wrong(message={"role": "assistant", "content": None, "refusal": "I will not"}), FILTERED_OUT, 1
    ),
    "short Content-Length": Fault(Script([WHOLE], content_length=len(WHOLE) - 30), INVALID),
    "body shorter than Content-Length": Fault(Script([WHOLE], content_length=len(WHOLE) + 30), UNAVAILABLE),
    "reset within the body": Fault(
        Script([WHOLE[:20]], content_length=len(WHOLE), is_reset=True), UNAVAILABLE
    ),
    "endless body": Fault(
        Script(itertools.repeat(b" " * 1000), gap_s=0.001), UNAVAILABLE, num_hits=1, is_slow=True
    ),
}

STREAMED: dict[str, Fault] = {
    **STATUSES,
    "html in a 200": Fault(Script([HTML], headers=SSE), INVALID),
    "empty stream": Fault(Script(headers=SSE), INVALID),
    "only [DONE]": Fault(events("[DONE]"), INVALID),
    "error in place of events": Fault(replace(json_reply(ERROR), headers=SSE), INVALID),
    "error event at once": Fault(events(ERROR), UNAVAILABLE),
    "429 event at once": Fault(
        events({"error": {"message": "slow down", "type": "rate_limit_error"}}), LIMITED, cost="free"
    ),
    "no choices, ever": Fault(events({"id": "x"}, {"id": "x"}, "[DONE]"), INVALID),
    "choices of another type": Fault(events({"choices": "x"}), INVALID),
    "nested too deep": Fault(Script([b"data: " + DEEP + b"\n\n"], headers=SSE), INVALID),
    "400 event at once": refused(events({"error": {"message": "not so", "code": 400}})),
    "filtered at once": billed(events(FILTERED, USAGE, "[DONE]"), FILTERED_OUT, 1),
    "refusal": billed(
        events({"choices": [{"delta": {"refusal": "I will not"}}]}, END, USAGE, "[DONE]"), FILTERED_OUT, 1
    ),
    "unknown finish_reason": billed(events(chunk(None, "tired"), USAGE, "[DONE]")),
    "usage, then no choices": billed(events(USAGE, "[DONE]")),
    "usage with choices of another type": billed(events({**USAGE, "choices": "x"})),
    "comments for ever": Fault(
        Script(itertools.repeat(b": keep-alive\n\n"), headers=SSE, gap_s=0.01),
        UNAVAILABLE,
        num_hits=1,
        is_slow=True,
    ),
    "cut with FIN": Fault(events(WRONG), INVALID, 1, "wrong"),
    "cut within an event": Fault(Script([*sse(WRONG), b'data: {"choi'], headers=SSE), INVALID, 1, "wrong"),
    "[DONE] without finish_reason": Fault(events(WRONG, "[DONE]"), INVALID, 1, "wrong"),
    "cut with RST": Fault(events(WRONG, is_reset=True, gap_s=0.02), "*upstream*", 1, "wrong*"),
    "cut without the last chunk": Fault(
        Script(http_chunks(sse(WRONG), is_ended=False), headers=CHUNKED), UNAVAILABLE, 1, "wrong"
    ),
    "stalled without FIN": Fault(events(WRONG, is_held=True), UNAVAILABLE, 1, "wrong", is_slow=True),
    "error event after text": Fault(events(WRONG, ERROR), UNAVAILABLE, 1, "wrong"),
    "not JSON after text": Fault(events(WRONG, "<html>"), INVALID, 1, "wrong"),
    "bad UTF-8 after text": Fault(
        Script([*sse(WRONG), sse(chunk("X"))[0].replace(b"X", b"\xff\xfe"), *sse(END)], headers=SSE),
        INVALID,
        1,
        "wrong",
    ),
    "nested too deep after text": Fault(
        Script([*sse(WRONG), b"data: " + DEEP + b"\n\n"], headers=SSE), INVALID, 1, "wrong"
    ),
    "400 event after text": Fault(
        events(WRONG, {"error": {"message": "unsafe", "code": 400}}), REFUSED, 1, "wrong"
    ),
    "filtered after text": billed(events(WRONG, FILTERED, USAGE, "[DONE]"), FILTERED_OUT, 1, "wrong"),
    "filtered after text, its usage later": billed(
        events(WRONG, FILTERED, USAGE, gap_s=0.05), FILTERED_OUT, 1, "wrong"
    ),
    "filtered after text, no usage": Fault(events(WRONG, FILTERED), FILTERED_OUT, 1, "wrong"),
    "filtered after text, then nonsense": Fault(
        events(WRONG, FILTERED, "<html>", "[DONE]"), FILTERED_OUT, 1, "wrong"
    ),
    "filtered after text, then silence": Fault(
        events(WRONG, FILTERED, is_held=True), FILTERED_OUT, 1, "wrong"
    ),
    "tool calls after text": billed(
        events(WRONG, chunk(None, "tool_calls"), USAGE, "[DONE]"), WITHHELD_ANSWER, 1, "wrong"
    ),
    "cut after its usage": billed(events({**WRONG, "usage": USAGE["usage"]}), INVALID, 1, "wrong"),
    "stalled after its usage": billed(
        events({**WRONG, "usage": USAGE["usage"]}, is_held=True), UNAVAILABLE, 1, "wrong", is_slow=True
    ),
    "error event after its usage": billed(events(WRONG, USAGE, ERROR), UNAVAILABLE, 1, "wrong"),
    "endless stream": Fault(
        Script(itertools.cycle(sse(WRONG)), headers=SSE, gap_s=0.02), UNAVAILABLE, 1, "wrong*", is_slow=True
    ),
}

WITHHELD = {name for name in (*PLAIN, *STREAMED) if name.startswith(("filtered", "tool calls", "refusal"))}
"""Replies that no later step can read. The reply to the client itself passes as it came."""

HARMLESS_PLAIN: dict[str, Script] = {
    "no usage": json_reply(completion(usage=None)),
    "empty text": json_reply(completion(message={"role": "assistant", "content": ""})),
    "unknown fields": json_reply({**completion(), "extra": [1], "system_fingerprint": 3}),
}
HARMLESS_STREAMED: dict[str, Script] = {
    "usage before the end": events({**chunk("four"), "usage": USAGE["usage"]}, END, "[DONE]"),
    "missing [DONE]": events(chunk("four"), END),
    "no usage": events(chunk("four"), END, "[DONE]"),
    "nothing after [DONE] but silence": events(chunk("four"), END, "[DONE]", is_held=True),
    "events cut anywhere": Script(
        [bytes([byte]) for byte in b"".join(sse(chunk("four"), END, "[DONE]"))], headers=SSE
    ),
}
