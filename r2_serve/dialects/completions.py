"""Text completions: POST /v1/completions, which goes on with a text and knows no roles.

Source: https://platform.openai.com/docs/api-reference/completions. A request becomes a conversation of one
user message, the prompt. A model of the pool is asked at its provider's own /completions, where the text is
not put into a chat template; a virtual model answers the message. `write_request`, `completion_of` and
`chunk_of` translate for providers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from r2_serve.dialects.chat import ChatBody, ChatDialect, ChatReply, usage_of, without_native
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.dialects.wire import Arrival, encode, read_object
from r2_serve.errors import InvalidRequest
from r2_serve.types import Answer, Json


class CompletionsDialect(ChatDialect):
    """The dialect of POST /v1/completions."""

    def read(self, body: bytes, arrival: Arrival) -> CompletionsBody:
        """Raises: InvalidRequest."""
        request = read_object(body)
        if "messages" in request:
            raise InvalidRequest("messages belong to /v1/chat/completions: send prompt here", "messages")
        prompt = request.pop("prompt", None)
        texts = _prompts(prompt)
        if len(texts) > 1 or not isinstance(_single(prompt), str):
            request["prompt"] = prompt
        request["messages"] = [{"role": "user", "content": text} for text in texts]
        return CompletionsBody(json.dumps(request).encode(), arrival)


COMPLETIONS = CompletionsDialect()


class CompletionsBody(ChatBody):
    """A request as a conversation; `prompt` stays in it if it is more than one text."""

    api = "completions"
    source = "prompt"

    def reply(self, model: str, *, wants_usage_chunk: bool) -> CompletionsReply:
        id = f"cmpl-{self.arrival.reply_id}"
        return CompletionsReply(id, self.arrival.created, model, wants_usage_chunk)


class CompletionsReply(ChatReply):
    """Writes a text completion or its chunks: those of a chat completion, with texts for messages."""

    kind = chunk_kind = "text_completion"

    def whole(self, answer: Answer, r2: Json) -> bytes:
        body = answer.body or {"choices": [_choice(answer.text, answer.finish_reason)]}
        choices = [_text_choice(choice, "message") for choice in as_objects(body["choices"])]
        ours = {**self._head(self.kind), "choices": choices, "usage": usage_of(answer), "r2": r2}
        return encode({**without_native(body), **ours})

    def _text(self, text: str) -> bytes:
        self._has_begun = True
        return self._chunk({"choices": [_choice(text)]}) if text else b""

    def _chunk(self, chunk: Json, r2: Json | None = None) -> bytes:
        choices = [_text_choice(choice, "delta") for choice in as_objects(chunk["choices"])]
        return super()._chunk({**chunk, "choices": choices}, r2)


# -- providers --


def write_request(body: Json) -> Json:
    """The provider's request that says a body of chat completions."""
    messages = as_objects(body["messages"])
    rest = {name: value for name, value in body.items() if name not in ("messages", "max_completion_tokens")}
    if (limit := body.get("max_completion_tokens")) is not None:
        rest["max_tokens"] = limit
    return {"prompt": messages[0]["content"], **rest}


def completion_of(body: Json) -> Json:
    """A provider's reply as a chat completion; its other keys, such as `logprobs`, stay as they came."""
    return _with_choices(body, "message")


def chunk_of(body: Json) -> Iterable[Json]:
    """An event of a provider's stream as a chat chunk."""
    return (_with_choices(body, "delta"),)


def _with_choices(body: Json, holder: str) -> Json:
    if not isinstance(body.get("choices"), list):
        return body
    return {**body, "choices": [_chat_choice(choice, holder) for choice in as_objects(body["choices"])]}


def _chat_choice(choice: Json, holder: str) -> Json:
    rest = {key: value for key, value in choice.items() if key != "text"}
    return {**rest, holder: {"role": "assistant", "content": choice.get("text")}}


def _text_choice(choice: Json, holder: str) -> Json:
    """The choice of a chat completion or chunk as one of a text completion."""
    rest = {key: value for key, value in choice.items() if key not in ("message", "delta", "logprobs")}
    logprobs = choice.get("logprobs")
    is_ours = isinstance(logprobs, dict) and "content" in logprobs
    text = as_object(choice.get(holder)).get("content") or ""
    return {"text": text, "logprobs": None if is_ours else logprobs, **rest}


def _choice(text: str, finish_reason: str | None = None) -> Json:
    """A choice of a reply that is text alone: of a chat completion, and of a chunk."""
    message = {"role": "assistant", "content": text}
    rest = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
    return {**rest, "message": message, "delta": message}


def _single(prompt: object) -> object:
    return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt


def _prompts(prompt: object) -> list[str]:
    """Each prompt as text; tokens as their numbers. Raises: InvalidRequest."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return [" ".join(map(str, prompt))]
    if isinstance(prompt, list) and prompt and all(isinstance(part, str | list) for part in prompt):
        return [text for part in prompt for text in _prompts(part)]
    code = "missing_required_parameter" if prompt is None else "invalid_value"
    raise InvalidRequest("prompt: expected a text, an array of texts, or arrays of tokens", "prompt", code)
