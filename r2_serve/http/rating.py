"""POST /v1/r2/feedback: what clients think of answers that they got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, ValidationError
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from r2_serve.dialects.wire import encode
from r2_serve.feedback import FeedbackStore, Rated, Rating, ScoreSource
from r2_serve.http.edge import Exchange
from r2_serve.http.endpoint import read_json
from r2_serve.http.openai_wire import WholeNumber, Wire
from r2_serve.http.refusals import refusal

MAX_COMMENT_CHARS = 2_000
MAX_BODY_BYTES = 32_768
BODY_TIMEOUT_S = 10.0

OnRated = Callable[[Rated], None]
"""Takes each rating that was accepted."""


class FeedbackRequest(Wire):
    """A body of POST /v1/r2/feedback."""

    request_id: Annotated[str, Field(min_length=1, max_length=200)]
    """The `id` of a reply in any dialect, or its header `x-request-id`."""
    score: float = Field(ge=0, le=1, allow_inf_nan=False)
    """1 for a right answer, 0 for a wrong one, or a value between them."""
    comment: str | None = Field(default=None, max_length=MAX_COMMENT_CHARS)
    step: WholeNumber | None = Field(default=None, ge=1)
    """The step of the plan that is rated, counted from 1; the whole answer if it is left out."""
    source: ScoreSource = "user"
    """`user` for a person's opinion, `check` for the verdict of a program."""


@dataclass(frozen=True)
class Feedback:
    """The endpoint, as an ASGI application. It costs nothing and takes no place in the queue."""

    store: FeedbackStore
    on_rated: tuple[OnRated, ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        body = await read_json(Headers(scope=scope), receive, MAX_BODY_BYTES, BODY_TIMEOUT_S)
        rating = parse_feedback(body)
        rated = self.store.rate(exchange.key.name if exchange.key else "", rating)
        exchange.model = rated.model
        for take in self.on_rated:
            take(rated)
        taken = rating.model_dump(exclude={"comment"})
        reply = {"object": "r2.feedback", **taken, "replaced": rated.before not in (None, rating.score)}
        response = Response(encode(reply), media_type="application/json")
        await response(scope, receive, send)


def parse_feedback(body: bytes) -> Rating:
    """Raises: InvalidRequest naming the first field at fault."""
    try:
        return Rating(**FeedbackRequest.model_validate_json(body).model_dump())
    except ValidationError as e:
        known = FeedbackRequest.model_fields
        raise refusal(e.errors(include_url=False)[0], known, "request_id and score") from None
