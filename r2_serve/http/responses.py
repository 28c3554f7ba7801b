"""What clients do with a response after they asked for it: read it, list its input, cancel it, delete it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from r2_serve.dialects.wire import encode
from r2_serve.errors import InvalidRequest, ResponseNotFound
from r2_serve.http.background import Running, settled
from r2_serve.http.edge import Exchange
from r2_serve.http.response_store import ResponseStore
from r2_serve.router.backend import RouterBackend
from r2_serve.types import Json

MAX_PAGE, USUAL_PAGE = 100, 20
"""Items in a list: at most, and if the client does not say, as with OpenAI."""


@dataclass(frozen=True)
class KeptResponses:
    """The routes below /v1/responses/{id}."""

    store: ResponseStore
    running: Running
    backend: RouterBackend
    clock: Callable[[], float]
    """Wall-clock seconds."""

    async def one(self, request: Request) -> Response:
        """GET and DELETE /v1/responses/{id}."""
        response_id, owner = _named(request)
        if request.method == "DELETE":
            self._known(owner, response_id)
            await self.running.cancel(response_id)
            self.store.delete(owner, response_id)
            return _json({"id": response_id, "object": "response", "deleted": True})
        if request.query_params.get("stream", "false").lower() == "true":
            raise InvalidRequest("stream: a kept response is read whole", "stream", "unsupported_parameter")
        return _json(self._known(owner, response_id))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel, for a response made in the background."""
        response_id, owner = _named(request)
        response = self._known(owner, response_id)
        if not response["background"]:
            message = "a response without background: true has ended; to stop one, close its connection"
            raise InvalidRequest(message, "response_id", "response_not_cancellable")
        if response["status"] == "in_progress" and not await self.running.cancel(response_id):
            message = "the response is made by another router process, which alone can cancel it"
            raise HTTPException(409, message)
        return _json(self._known(owner, response_id))

    def _known(self, owner: str | None, response_id: str) -> Json:
        """Raises: ResponseNotFound."""
        response = self.store.response(owner, response_id)
        if response is None:
            raise _unknown(response_id)
        age_s = self.clock() - float(str(response["created_at"]))
        is_lost = response_id not in self.running.tasks and age_s > self.backend.deadline_s
        return settled(response, is_lost=is_lost)

    async def input_items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items, the newest first."""
        response_id, owner = _named(request)
        items = self.store.inputs(owner, response_id)
        if items is None:
            raise _unknown(response_id)
        asked = request.query_params
        items = items if asked.get("order", "desc") == "asc" else items[::-1]
        return _json(_page(items, asked.get("after"), _limit(asked.get("limit"))))


def _page(items: Sequence[Json], after: str | None, limit: int) -> Json:
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise InvalidRequest(f"after: no item {after[:100]!r} is in this list", "after", "invalid_value")
    start = 0 if after is None else ids.index(after) + 1
    page = items[start : start + limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": list(page), **ends, "has_more": start + limit < len(items)}


def _limit(text: str | None) -> int:
    if text is None:
        return USUAL_PAGE
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_PAGE:
        message = f"limit: got {text[:20]!r}, expected 1 to {MAX_PAGE}"
        raise InvalidRequest(message, "limit", "invalid_value")
    return int(text)


def _named(request: Request) -> tuple[str, str | None]:
    key = Exchange.of(request.scope).key
    return str(request.path_params["id"]), key.name if key else None


def _unknown(response_id: str) -> ResponseNotFound:
    return ResponseNotFound(f"no response {response_id[:100]!r} is kept for this key", "response_id")


def _json(body: Json) -> Response:
    return Response(encode(body), media_type="application/json")
