"""The output of a response: items and typed events, made from the pieces of a chat completion.

Events follow https://platform.openai.com/docs/api-reference/responses-streaming. They are made here without
`sequence_number`, which the writer of the stream counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from r2_serve.dialects.responses.names import ToolNames
from r2_serve.dialects.sealing import KEYS, join_thoughts, sealed
from r2_serve.dialects.shapes import as_object, as_objects
from r2_serve.types import Json

Events = Iterator[Json]


@dataclass
class _Item:
    """An item under way."""

    index: int
    body: Json

    def event(self, kind: str, **fields: object) -> Json:
        return {
            "type": f"response.{kind}",
            "item_id": self.body["id"],
            "output_index": self.index,
            **fields,
        }

    def whole(self, kind: str) -> Json:
        return {"type": f"response.output_item.{kind}", "output_index": self.index, "item": dict(self.body)}


@dataclass
class _Message(_Item):
    """A message of text and refusals."""

    parts: list[Json] = field(default_factory=list)

    def add(self, kind: str, text: str, logprobs: list[Json]) -> Events:
        """`kind` is `output_text` or `refusal`."""
        if not self.parts or self.parts[-1]["type"] != kind:
            yield from self.end_part()
            self.parts.append(_part(kind))
            yield self._about("content_part.added", part=dict(self.parts[-1]))
        part, key = self.parts[-1], _text_key(kind)
        part[key] = f"{part[key]}{text}"
        fields: Json = {"logprobs": logprobs} if kind == "output_text" else {}
        if logprobs:
            part["logprobs"] = [*as_objects(part.get("logprobs")), *logprobs]
        yield self._about(f"{kind}.delta", delta=text, **fields)

    def note(self, annotations: list[Json]) -> Events:
        """Adds annotations to the text so far."""
        if not self.parts or self.parts[-1]["type"] != "output_text":
            return
        for annotation in annotations:
            known = as_objects(self.parts[-1]["annotations"])
            self.parts[-1]["annotations"] = [*known, (new := _annotation(annotation))]
            yield self._about("output_text.annotation.added", annotation=new, annotation_index=len(known))

    def end_part(self) -> Events:
        if self.parts:
            part = self.parts[-1]
            key = _text_key(str(part["type"]))
            fields: Json = {"logprobs": part.get("logprobs", [])} if key == "text" else {}
            yield self._about(f"{part['type']}.done", **{key: part[key]}, **fields)
            yield self._about("content_part.done", part=dict(part))

    def end(self, status: str) -> Events:
        yield from self.end_part()
        self.body |= {"content": self.parts, "status": status}
        yield self.whole("done")

    def _about(self, kind: str, **fields: object) -> Json:
        return self.event(kind, content_index=len(self.parts) - 1, **fields)


@dataclass
class _Thoughts(_Item):
    """A reasoning item. Its text is its content, or its summary if the client asked for one."""

    is_summary: bool
    keys: Json = field(default_factory=dict)
    text: str = ""

    def add(self, keys: Json) -> Events:
        join_thoughts(self.keys, keys)
        text = keys.get("reasoning_content") or keys.get("reasoning")
        if not isinstance(text, str):
            return
        if not self.text:
            yield self._about("part.added", part=self._part(""))
        self.text += text
        yield self._about("text.delta", delta=text)

    def end(self, status: str) -> Events:
        if self.text:
            part = self._part(self.text)
            yield self._about("text.done", text=self.text)
            yield self._about("part.done", part=part)
            self.body["summary" if self.is_summary else "content"] = [part]
        self.body |= {"encrypted_content": sealed(self.keys), "status": status}
        yield self.whole("done")

    def _part(self, text: str) -> Json:
        return {"type": "summary_text" if self.is_summary else "reasoning_text", "text": text}

    def _about(self, kind: str, **fields: object) -> Json:
        """An event of the only part; `kind` begins with `part` or `text`."""
        if self.is_summary:
            return self.event(f"reasoning_summary_{kind}", summary_index=0, **fields)
        prefix = "content" if kind.startswith("part") else "reasoning"
        return self.event(f"{prefix}_{kind}", content_index=0, **fields)


@dataclass
class _Call(_Item):
    """A call of a function."""

    name: str
    call_id: str
    names: ToolNames
    arguments: str = ""

    def add(self, arguments: str) -> Events:
        self.arguments += arguments
        if arguments and self.names.is_plain(self.name):
            yield self.event("function_call_arguments.delta", delta=arguments)

    def end(self, status: str) -> Events:
        self.body |= self.names.call_item(self.name, self.call_id, self.arguments)
        if self.names.is_plain(self.name):
            yield self.event("function_call_arguments.done", name=self.name, arguments=self.arguments)
        elif self.name in self.names.custom:
            text = self.body["input"]
            yield self.event("custom_tool_call_input.delta", delta=text)
            yield self.event("custom_tool_call_input.done", input=text)
        self.body["status"] = status
        yield self.whole("done")


@dataclass
class Output:
    """Turns the deltas of a chat completion into items and events. `suffix` makes the ids of items unique."""

    suffix: str
    names: ToolNames
    wants_summary: bool = False
    """Whether the client asked for a summary of the thoughts: it gets them all."""
    items: list[Json] = field(default_factory=list)
    """The items begun so far; those under way are not whole."""
    _message: _Message | None = None
    _thoughts: _Thoughts | None = None
    _calls: dict[str, _Call] = field(default_factory=dict)

    def take(self, delta: Json, logprobs: list[Json] | None = None) -> Events:
        """The events of a chunk's `delta`, or of a whole message."""
        if thoughts := {key: delta[key] for key in KEYS if delta.get(key)}:
            yield from self._take_thoughts(thoughts)
        for key, kind in (("content", "output_text"), ("refusal", "refusal")):
            if isinstance(text := delta.get(key), str) and text:
                yield from self._take_text(kind, text, logprobs or [] if key == "content" else [])
        if self._message and isinstance(notes := delta.get("annotations"), list):
            yield from self._message.note(notes)
        for position, call in enumerate(as_objects(delta.get("tool_calls"))):
            yield from self._take_call(call, position)

    def end(self, *, is_cut: bool) -> Events:
        """The events that end all items; an item that the reply's limit cut is `incomplete`."""
        status = "incomplete" if is_cut else "completed"
        yield from self._end_thoughts()
        yield from self._end_message(status)
        for call in self._calls.values():
            yield from call.end(status)
        self._calls.clear()

    def _take_thoughts(self, thoughts: Json) -> Events:
        yield from self._end_message("completed")
        if self._thoughts is None:
            begun = self._begun("rs", {"type": "reasoning", "summary": []})
            self._thoughts = _Thoughts(*begun, self.wants_summary)
            yield self._thoughts.whole("added")
        yield from self._thoughts.add(thoughts)

    def _take_text(self, kind: str, text: str, logprobs: list[Json]) -> Events:
        yield from self._end_thoughts()
        if self._message is None:
            body: Json = {"type": "message", "role": "assistant", "content": [], "status": "in_progress"}
            self._message = _Message(*self._begun("msg", body))
            yield self._message.whole("added")
        yield from self._message.add(kind, text, logprobs)

    def _take_call(self, call: Json, position: int) -> Events:
        function = as_object(call.get("function"))
        key = str(call.get("index", position))
        if key not in self._calls:
            yield from self._end_thoughts()
            yield from self._end_message("completed")
            name, call_id = str(function.get("name") or ""), str(call.get("id") or f"call_{self._next_id}")
            item = {**self.names.call_item(name, call_id, ""), "status": "in_progress"}
            self._calls[key] = _Call(*self._begun("fc", item), name, call_id, self.names)
            yield self._calls[key].whole("added")
        yield from self._calls[key].add(str(function.get("arguments") or ""))

    def _end_thoughts(self) -> Events:
        if self._thoughts is not None:
            yield from self._thoughts.end("completed")
            self._thoughts = None

    def _end_message(self, status: str) -> Events:
        if self._message is not None:
            yield from self._message.end(status)
            self._message = None

    def _begun(self, prefix: str, body: Json) -> tuple[int, Json]:
        item = {"id": f"{prefix}_{self._next_id}", **body}
        self.items.append(item)
        return len(self.items) - 1, item

    @property
    def _next_id(self) -> str:
        return f"{self.suffix}{len(self.items):03}"


def _text_key(kind: str) -> str:
    return "text" if kind == "output_text" else "refusal"


def _part(kind: str) -> Json:
    if kind == "refusal":
        return {"type": kind, "refusal": ""}
    return {"type": kind, "text": "", "annotations": [], "logprobs": []}


def _annotation(annotation: Json) -> Json:
    """A citation, whose fields chat completions put into an object of their own."""
    kind = annotation.get("type")
    held = annotation.get(str(kind))
    return {"type": kind, **held} if isinstance(held, dict) else annotation
