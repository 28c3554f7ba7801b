"""Content blocks of Messages as parts of chat completions, and back."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TypeVar

from r2_serve.errors import InvalidRequest
from r2_serve.types import Json

T = TypeVar("T")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)
PDF = "application/pdf"
_SAID: dict[str, frozenset[str]] = {
    "text": frozenset({"text", "citations"}),
    "image": frozenset({"source"}),
    "document": frozenset({"source", "title", "context"}),
    "tool_use": frozenset({"id", "name", "input", "caller"}),
    "tool_result": frozenset({"tool_use_id", "content", "is_error"}),
    "thinking": frozenset({"thinking", "signature"}),
    "redacted_thinking": frozenset({"data"}),
}
"""Keys of each block that chat completions can say, or that say nothing to the model of another provider."""
_HINTS = frozenset({"type", "cache_control"})


def held(value: object, kind: type[T], place: str) -> T:
    """`value`, if it is of that kind. Raises: InvalidRequest naming the place."""
    if not isinstance(value, kind):
        wanted = {dict: "an object", list: "an array", str: "a string", int: "an integer"}[kind]
        message = f"{place} is missing" if value is None else f"{place} must be {wanted}"
        raise InvalidRequest(
            message, place, "missing_required_parameter" if value is None else "invalid_type"
        )
    return value


def unsaid(block: Json) -> str | None:
    """What chat completions cannot say of a block: its type or a key; None if they can say all."""
    kind = str(block["type"])
    if kind not in _SAID or (kind in ("image", "document") and part_of(block) is None):
        return kind
    citations = block.get("citations")
    if kind == "document" and isinstance(citations, dict) and citations.get("enabled"):
        return "citations"
    known = _SAID[kind] | _HINTS | ({"citations"} if kind == "document" else set())
    return next((key for key, value in block.items() if value is not None and key not in known), None)


def part_of(block: Json) -> Json | None:
    """The part of a text, an image or a document; None for all else."""
    source = block.get("source")
    match block["type"]:
        case "text":
            return {"type": "text", "text": block.get("text")}
        case "image" if isinstance(source, dict):
            return _image_part(source)
        case "document" if isinstance(source, dict):
            return _file_part(block, source)
    return None


def _image_part(source: Json) -> Json | None:
    url = source.get("url") if source.get("type") == "url" else None
    if source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "image_url", "image_url": {"url": url}} if url else None


def _file_part(block: Json, source: Json) -> Json | None:
    """A PDF as a file, and a plain text as text, after its title and context."""
    title, context = block.get("title"), block.get("context")
    if source.get("type") == "base64" and source.get("media_type") == PDF and context is None:
        named = {} if title is None else {"filename": title}
        return {"type": "file", "file": {**named, "file_data": f"data:{PDF};base64,{source.get('data')}"}}
    if source.get("type") == "text":
        lines = [str(text) for text in (title, context, source.get("data")) if text]
        return {"type": "text", "text": "\n".join(lines)}
    return None


def blocks_of(content: object, place: str) -> list[Json]:
    """The blocks of a chat message's content. Empty texts, which Messages refuses, are left out.

    Raises: InvalidRequest for a part that Messages cannot say.
    """
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())  # type: ignore[call-overload]
    blocks = (_block_of(part, f"{place}.content.{index}") for index, part in enumerate(parts))
    return [block for block in blocks if block != {"type": "text", "text": ""}]


def _block_of(part: Json, place: str) -> Json:
    mark = {"cache_control": part["cache_control"]} if part.get("cache_control") else {}
    match part.get("type"):
        case "text":
            return {"type": "text", "text": part.get("text"), **mark}
        case "refusal":
            return {"type": "text", "text": part.get("refusal"), **mark}
        case "image_url":
            return {"type": "image", "source": _image_source(part, place), **mark}
        case "file":
            return {**_document(part, place), **mark}
    raise cannot_say(place, f"a part of type {str(part.get('type'))[:40]!r}")


def _image_source(part: Json, place: str) -> Json:
    image = held(part.get("image_url"), dict, f"{place}.image_url")
    if image.get("detail") not in (None, "auto", "high"):
        raise cannot_say(f"{place}.image_url.detail", f"detail {image['detail']!r}")
    url = held(image.get("url"), str, f"{place}.image_url.url")
    found = _DATA_URL.match(url)
    if found:
        return {"type": "base64", "media_type": found[1], "data": url[found.end() :]}
    return {"type": "url", "url": url}


def _document(part: Json, place: str) -> Json:
    file = held(part.get("file"), dict, f"{place}.file")
    url = file.get("file_data")
    found = _DATA_URL.match(url) if isinstance(url, str) else None
    if found is None or not isinstance(url, str) or found[1] not in (PDF, "text/plain"):
        raise cannot_say(f"{place}.file", "a file that is no PDF or plain text in a data URL")
    data = url[found.end() :]
    source: Json = {"type": "base64", "media_type": PDF, "data": data}
    if found[1] != PDF:
        source = {"type": "text", "media_type": found[1], "data": _decoded(data, f"{place}.file.file_data")}
    named = {"title": file["filename"]} if file.get("filename") else {}
    return {"type": "document", "source": source, **named}


def _decoded(data: str, place: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidRequest(f"{place} must be UTF-8 text in base64", place, "invalid_value") from None


def cannot_say(place: str, what: str) -> InvalidRequest:
    """The refusal of something that chat completions say and Messages does not."""
    message = f"{place}: the provider of this model speaks Anthropic's Messages, which cannot say {what}"
    return InvalidRequest(f"{message}: leave it out", place, "unsupported_parameter")
