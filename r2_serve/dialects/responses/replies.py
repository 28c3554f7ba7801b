"""Answers as responses: the object, and the stream of typed events around its output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from r2_serve.dialects.responses.names import ToolNames
from r2_serve.dialects.responses.output import Output
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.dialects.wire import ErrorReply, encode, event
from r2_serve.types import Answer, Delta, FinishReason, Json

_CUT: dict[FinishReason, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Reasons of an incomplete response, by the finish reason of chat completions."""


@dataclass
class ResponseReply:
    """Writes one response, whole or as events."""

    id: str
    created: int
    model: str
    """The name that the client gave."""
    body: Json
    """The client's request."""
    names: ToolNames
    keep: Callable[[Json], bool]
    """Takes the finished response; tells whether it can be retrieved later."""
    output: Output = field(init=False)
    _num_events: int = 0
    _native: Json | None = None
    """The response of a provider that speaks the Responses API, as far as it came."""

    def __post_init__(self) -> None:
        wants_summary = bool(as_object(self.body.get("reasoning")).get("summary"))
        self.output = Output(self.id.removeprefix("resp_"), self.names, wants_summary)

    def whole(self, answer: Answer, r2: Json) -> bytes:
        self._native = native_of(answer.body)
        if self._native is None:
            message, logprobs = _message(answer)
            for _ in (*self.output.take(message, logprobs), *self.output.end(is_cut=_is_cut(answer))):
                pass
        return encode(self._finished(answer, r2))

    def piece(self, piece: Delta) -> bytes:
        if piece.body is None:
            return self._events(self.output.take({"content": piece.text})) if piece.text else b""
        native = native_of(piece.body)
        if native is not None:
            return self._native_event(native)
        return b"".join(self._events(self.output.take(*pair)) for pair in _deltas(piece.body))

    def end(self, answer: Answer, rest: str, r2: Json) -> bytes:
        events = self._events(self.output.take({"content": rest})) if rest else self._events(())
        if self._native is None:
            events += self._events(self.output.end(is_cut=_is_cut(answer)))
        response = self._finished(answer, r2)
        return events + self._events([{"type": f"response.{response['status']}", "response": response}])

    def failure(self, error: ErrorReply) -> bytes:
        failed = self._head("failed") | {"error": _fault(error)}
        fault: Json = {"type": "error", **_fault(error), "param": error.param}
        return self._events([fault, {"type": "response.failed", "response": failed}])

    def at(self, status: str, error: ErrorReply | None = None) -> Json:
        """The response without output, as far as it is now, and kept so."""
        response = self._head(status) | {"error": _fault(error) if error else None}
        return {**response, "store": self.keep(response)}

    def _finished(self, answer: Answer, r2: Json) -> Json:
        native = self._native
        reason = _CUT.get(answer.finish_reason)
        head: Json = self._head("incomplete" if reason else "completed")
        if native is not None:
            head |= {key: native[key] for key in native.keys() - _OURS if native[key] is not None}
        if self.names.left_out:
            r2 = {**r2, "left_out": list(self.names.left_out)}
        response: Json = {
            **head,
            "incomplete_details": {"reason": reason} if reason else None,
            "output": self.output.items if native is None else native["output"],
            "usage": response_usage(answer),
            "r2": r2,
        }
        response["store"] = self.keep({key: response[key] for key in response if key != "r2"})
        return response

    def _head(self, status: str) -> Json:
        """The response without its output, with what the request asked for."""
        asked = self.body.get
        tools = [tool for i, tool in enumerate(as_objects(asked("tools"))) if not self._is_left_out(i)]
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": bool(asked("background")),
            "error": None,
            "incomplete_details": None,
            "instructions": asked("instructions"),
            "max_output_tokens": asked("max_output_tokens"),
            "metadata": asked("metadata") or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": asked("parallel_tool_calls") is not False,
            "previous_response_id": asked("previous_response_id"),
            "prompt_cache_key": asked("prompt_cache_key"),
            "reasoning": asked("reasoning"),
            "service_tier": asked("service_tier"),
            "store": asked("store") is not False,
            "temperature": asked("temperature"),
            "text": asked("text") or {"format": {"type": "text"}},
            "tool_choice": asked("tool_choice") or "auto",
            "tools": tools,
            "top_p": asked("top_p"),
            "truncation": asked("truncation") or "disabled",
            "usage": None,
            "user": asked("user"),
        }

    def _is_left_out(self, position: int) -> bool:
        return any(path.startswith(f"tools.{position} (") for path in self.names.left_out)

    def _native_event(self, passed: Json) -> bytes:
        """An event of the provider as it came, under our numbers. Those of the whole response are ours."""
        self._native = self._native or {"output": []}
        if isinstance(response := passed.get("response"), dict):
            self._native |= {key: response[key] for key in response if key != "output"}
            return b""
        if passed.get("type") == "response.output_item.done":
            self._native["output"] = [*as_objects(self._native["output"]), as_object(passed.get("item"))]
        return self._events([passed])

    def _events(self, events: Iterable[Json]) -> bytes:
        """The events with their numbers, after those that begin the stream."""
        return b"".join(self._numbered(events))

    def _numbered(self, events: Iterable[Json]) -> Iterator[bytes]:
        if self._num_events == 0:
            response = self._head("in_progress")
            begun: Json = {"type": "response.created", "response": response}
            events = (begun, {**begun, "type": "response.in_progress"}, *events)
        for made in events:
            numbered = {**made, "sequence_number": self._num_events}
            self._num_events += 1
            yield event(numbered, str(made["type"]))


_OURS = frozenset(
    {"id", "object", "created_at", "status", "background", "model", "output", "previous_response_id", "store"}
    | {"usage", "user", "metadata", "prompt_cache_key", "instructions", "incomplete_details", "error"}
)
"""Fields of a response that the router writes itself."""


def _fault(error: ErrorReply) -> Json:
    return {"code": error.code or "server_error", "message": error.message}


def native_of(body: Json | None) -> Json | None:
    """What a provider of the Responses API sent, in the body of a reply or of a piece."""
    found = (body or {}).get("responses")
    return found if isinstance(found, dict) else None


def response_usage(answer: Answer) -> Json:
    """The usage of all calls, in the names of the Responses API."""
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_read_tokens,
            "cache_write_tokens": usage.cached_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _is_cut(answer: Answer) -> bool:
    return answer.finish_reason in _CUT


def _message(answer: Answer) -> tuple[Json, list[Json]]:
    for choice in as_objects((answer.body or {}).get("choices"))[:1]:
        return as_object(choice.get("message")), as_objects(as_object(choice.get("logprobs")).get("content"))
    return {"content": answer.text}, []


def _deltas(chunk: Json) -> Iterator[tuple[Json, list[Json]]]:
    for choice in as_objects(chunk.get("choices"))[:1]:
        yield as_object(choice.get("delta")), as_objects(as_object(choice.get("logprobs")).get("content"))
