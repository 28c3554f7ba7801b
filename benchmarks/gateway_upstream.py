"""The provider behind both gateways of `benchmarks/gateway.py`: OpenAI's chat API with scripted replies.

    python -m benchmarks.gateway_upstream 8123

A reply comes after `DELAY_S`. A streamed reply then comes in `NUM_CHUNKS` pieces, `CHUNK_GAP_S` apart.
`planner` and `picker` reply what the router's decomposer and allocator ask for, so one routed query gets its
whole plan here. It is plain ASGI on uvicorn and uses a fraction of a millisecond of CPU per reply, which the
benchmark reports next to its results.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvicorn

DELAY_S = 0.020
NUM_CHUNKS, CHUNK_GAP_S = 32, 0.002
ANSWER = " ".join(f"word{i}" for i in range(NUM_CHUNKS))
PLAN = {
    "subtasks": [
        {"id": 1, "text": "recall the first", "depends_on": []},
        {"id": 2, "text": "recall the second", "depends_on": []},
        {"id": 3, "text": "join #1 and #2", "depends_on": [1, 2]},
    ]
}
NUM_SUBTASKS, NUM_CALLS, NUM_WAVES = 3, 5, 4
"""Size of a routed query. Planner, picker and each subtask make one call; the waves follow one another."""
REPLIES = {
    "worker": ANSWER,
    "planner": json.dumps(PLAN),
    "picker": json.dumps({"models": ["worker"] * NUM_SUBTASKS}),
}
USAGE = {"prompt_tokens": 20, "completion_tokens": NUM_CHUNKS, "total_tokens": 20 + NUM_CHUNKS}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": "chatcmpl-scripted", "object": kind, "created": 1_700_000_000, "model": model}


def _completion(model: str) -> bytes:
    message = {"role": "assistant", "content": REPLIES[model]}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return json.dumps({**_head("chat.completion", model), "choices": [choice], "usage": USAGE}).encode()


def _events(model: str) -> list[bytes]:
    """The whole stream, with one item per piece of text; the last item ends the stream."""

    def event(delta: dict[str, str], finish_reason: str | None = None, **more: object) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return (
            b"data: "
            + json.dumps({**_head("chat.completion.chunk", model), "choices": [choice], **more}).encode()
            + b"\n\n"
        )

    words = REPLIES[model].split(" ")
    texts = [event({"content": word if i == 0 else " " + word}) for i, word in enumerate(words)]
    texts[0] = event({"role": "assistant", "content": ""}) + texts[0]
    usage = {**_head("chat.completion.chunk", model), "choices": [], "usage": USAGE}
    return [*texts, event({}, "stop") + b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n"]


COMPLETIONS = {model: _completion(model) for model in REPLIES}
MODELS = json.dumps(
    {"object": "list", "data": [{"id": model, "object": "model"} for model in REPLIES]}
).encode()
EVENTS = {model: _events(model) for model in REPLIES}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message.get("more_body"):
            break
    if scope["method"] == "GET":  # a health check, or the list of models
        await _reply(send, MODELS)
        return
    request = json.loads(body)
    await asyncio.sleep(DELAY_S)
    if request.get("stream"):
        await _stream(send, EVENTS[request["model"]])
    else:
        await _reply(send, COMPLETIONS[request["model"]])


async def _reply(send: Any, content: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _stream(send: Any, events: list[bytes]) -> None:
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    )
    for event in events[:-1]:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(CHUNK_GAP_S)
    await send({"type": "http.response.body", "body": events[-1]})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=60,
    )
