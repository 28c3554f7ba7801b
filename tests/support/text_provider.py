"""A provider of text completions and embeddings with their details, as OpenAI's API has them."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from tests.support.upstream import Script, sse

VECTOR = (0.25, -0.5, 0.125)
LOGPROBS = {
    "tokens": [" four"],
    "token_logprobs": [-0.5],
    "top_logprobs": [{" four": -0.5, " five": -1.5}],
    "text_offset": [8],
}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 60, "total_tokens": 1060}


def answer(request: dict[str, Any]) -> Script:
    """What the provider answers at the path of `request`."""
    path = request["_path"].partition("?")[0]
    if path.endswith("/embeddings"):
        return embeddings(request)
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": " by chat"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return _json({"choices": [choice], "usage": USAGE})
    assert path.endswith("/completions"), path
    return completions(request)


def completions(request: dict[str, Any]) -> Script:
    prompt = request["prompt"]
    prompts = prompt if isinstance(prompt, list) and isinstance(prompt[0], str) else [prompt]
    echo = str(prompt) if request.get("echo") else ""
    logprobs = LOGPROBS if request.get("logprobs") else None
    head = {"id": "x", "object": "text_completion", "created": 1, "model": "m", "system_fingerprint": "fp_1"}
    if request.get("stream"):
        pieces = [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None} for text in " four"]
        last = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
        chunks = [{**head, "choices": [choice]} for choice in (*pieces, last)]
        usage = {**head, "choices": [], "usage": USAGE}
        return Script(sse(*chunks, usage, "[DONE]"), headers={"content-type": "text/event-stream"})
    choices = [
        {"index": i, "text": f"{echo} four", "logprobs": logprobs, "finish_reason": "length"}
        for i in range(len(prompts) * (request.get("n") or 1))
    ]
    return _json({**head, "choices": choices, "usage": USAGE})


def embeddings(request: dict[str, Any]) -> Script:
    given = request["input"]
    if given == "too long":
        error = {"message": "This model's maximum context length is 8192 tokens", "param": "input"}
        return Script([json.dumps({"error": error}).encode()], status=400)
    if given == "broken":
        return _json({"object": "list", "data": [], "model": "m"})
    inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    packed = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    vector: Any = packed if request.get("encoding_format") == "base64" else list(VECTOR)
    data = [{"object": "embedding", "index": i, "embedding": vector} for i in range(len(inputs))]
    usage = {"prompt_tokens": 2000, "total_tokens": 2000}
    return _json({"object": "list", "data": data, "model": "m-large", "usage": usage})


def _json(body: dict[str, Any]) -> Script:
    return Script([json.dumps(body).encode()])
