"""Parts of a message: those of the Responses API as those of chat completions, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from r2_serve.dialects.shapes import as_object
from r2_serve.errors import InvalidRequest
from r2_serve.types import Json

_TEXTS = ("input_text", "output_text", "text")
_NOTES = frozenset({"annotations", "logprobs"})
"""What a model's text says of itself; no model reads it back."""
_HINTS = frozenset({"cache_control"})
"""Hints on a provider's cache. They cannot change a reply, and providers of Responses cache by themselves."""


def cannot_say(param: str, what: str) -> InvalidRequest:
    """The refusal of a field of chat completions for which the Responses API has no word."""
    return InvalidRequest(f"{param}: the Responses API has no {what}", param, "unsupported_parameter")


def chat_content(content: object, where: str) -> str | list[Json] | None:
    """The content of a chat message. A single text without any extra becomes a string.

    Raises: InvalidRequest for a part that chat completions cannot say.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequest(f"{where} must be a string or a list of parts", where, "invalid_type")
    parts = [chat_part(part, f"{where}.{position}") for position, part in enumerate(content)]
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def chat_part(part: object, where: str) -> Json:
    """Raises: InvalidRequest."""
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        text = f'{where}: expected a part with a type, such as {{"type": "input_text", "text": "..."}}'
        raise InvalidRequest(text, where, "invalid_value")
    kind, held = str(part["type"]), {key: value for key, value in part.items() if value is not None}
    if kind in _TEXTS:
        _need(held, "text", where)
        return {**{key: held[key] for key in held if key not in _NOTES}, "type": "text"}
    if kind == "refusal":
        _need(held, "refusal", where)
        return {"type": "refusal", "refusal": held["refusal"]}
    if kind == "input_image":
        return _chat_image(held, where)
    if kind == "input_file":
        _refuse(held, "file_url", where, "send the file itself in file_data")
        return {"type": "file", "file": {key: held[key] for key in held if key not in ("type", "detail")}}
    if kind == "input_audio":
        return dict(held)
    raise InvalidRequest(f"{where}.type: {kind!r} is not a part that is known here", where, "invalid_value")


def _chat_image(part: Json, where: str) -> Json:
    _refuse(part, "file_id", where, "send the image itself in image_url, as a URL or in base64")
    _need(part, "image_url", where)
    detail: Json = {} if part.get("detail") is None else {"detail": part["detail"]}
    rest = {key: value for key, value in part.items() if key not in ("type", "image_url", "detail")}
    return {**rest, "type": "image_url", "image_url": {"url": part["image_url"], **detail}}


def _refuse(part: Json, key: str, where: str, hint: str) -> None:
    if key in part:
        text = f"{where}.{key}: only a model whose engine is of kind openai-responses takes it; {hint}"
        raise InvalidRequest(text, f"{where}.{key}", "unsupported_parameter")


def _need(part: Json, key: str, where: str) -> None:
    if not isinstance(part.get(key), str):
        raise InvalidRequest(f"{where}.{key} is missing", f"{where}.{key}", "missing_required_parameter")


def response_content(content: object, role: str, where: str) -> str | list[Json]:
    """The content of an item. Raises: InvalidRequest for a part that the Responses API cannot say."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, Sequence) else ()
    return [response_part(part, role, f"{where}.{position}") for position, part in enumerate(parts)]


def response_part(part: Json, role: str, where: str) -> Json:
    """Raises: InvalidRequest."""
    kind, rest = part.get("type"), {key: value for key, value in part.items() if key not in _HINTS}
    match kind:
        case "text" if role == "assistant":
            return {"annotations": [], **rest, "type": "output_text"}
        case "text":
            return {**rest, "type": "input_text"}
        case "refusal" | "input_audio":
            return rest
        case "image_url":
            image = part.get("image_url")
            url = dict(image) if isinstance(image, dict) else {"url": image}
            others = {key: value for key, value in rest.items() if key not in ("type", "image_url")}
            return {**others, "type": "input_image", "image_url": url.pop("url", None), **url}
        case "file":
            return {"type": "input_file", **as_object(part.get("file"))}
    raise cannot_say(f"{where}.type", f"part of type {str(kind)[:40]!r}")
