"""The OpenAI-compatible endpoint over any `RouterBackend`, as a plain ASGI application.

POST /v1/chat/completions   `endpoint` in the dialect `dialects.chat`, streamed by `sse`
POST /v1/responses          `endpoint` in the dialect `dialects.responses`; below it `responses`
POST /v1/completions        `endpoint` in the dialect `dialects.completions`
POST /v1/embeddings         `endpoint` in the dialect `dialects.embeddings`
POST /v1/messages           `endpoint` in the dialect `dialects.messages`
POST /v1/messages/count_tokens   `counting`
POST /v1/r2/feedback        `rating`
GET  /v1/r2/events          `events`: what happens to queries, while it happens
GET  /v1/r2/keys            `budgets`: what keys have spent
GET  /v1/models[/{id}]      virtual and pool models, with prices
GET  /health, /health/ready alive; able to answer every virtual model (503 and the reason until then)
GET  /metrics               Prometheus text, for keys without limits
GET  /openapi.json          this endpoint's description

`edge` wraps them all. It is Starlette rather than FastAPI because OpenAI's errors replace the framework's on
every path.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route

from r2_serve.config import ServerConfig
from r2_serve.dialects.chat import CHAT
from r2_serve.dialects.completions import COMPLETIONS
from r2_serve.dialects.embeddings import EMBEDDINGS
from r2_serve.dialects.messages import MESSAGES
from r2_serve.dialects.messages.models import listed_model, listed_models
from r2_serve.dialects.messages.requests import VERSION_HEADER
from r2_serve.dialects.responses import ResponsesDialect
from r2_serve.dialects.wire import Dialect, encode
from r2_serve.errors import R2Error
from r2_serve.feedback import FeedbackStore
from r2_serve.http.admission import Admission
from r2_serve.http.background import ResponsesEndpoint, Running
from r2_serve.http.budgets import Budgets
from r2_serve.http.counting import CountTokens
from r2_serve.http.edge import Edge, Exchange, answer_error, no_such_route
from r2_serve.http.endpoint import Endpoint, find_model
from r2_serve.http.events import NoOthers, OtherReplicas, Watching
from r2_serve.http.keys import KeyRing
from r2_serve.http.metrics import CONTENT_TYPE, Metrics
from r2_serve.http.openai_replies import model_list, model_object
from r2_serve.http.openapi import describe
from r2_serve.http.page import PAGE, Page
from r2_serve.http.rating import Feedback, OnRated
from r2_serve.http.redaction import Redactor
from r2_serve.http.response_store import ResponseStore
from r2_serve.http.responses import KeptResponses
from r2_serve.http.spend import Purses, SpendBook
from r2_serve.router.backend import RouterBackend
from r2_serve.types import Json

Scrape = Callable[[], Awaitable[bytes]]
"""Makes a page in Prometheus' text format."""


def _new_id() -> str:
    return uuid4().hex


def create_app(
    backend: RouterBackend,
    server: ServerConfig,
    *,
    metrics: Metrics | None = None,
    redact: Callable[[str], str] | None = None,
    admission: Admission | None = None,
    feedback: FeedbackStore | None = None,
    on_rated: OnRated | None = None,
    environment: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = _new_id,
    scrape: Scrape | None = None,
    others: OtherReplicas | None = None,
) -> Starlette:
    """The application. Give the backend `metrics.observe` as a trace sink, and the same `metrics` here.

    `redact` takes secrets out of error messages; by default those in the environment. `scrape` makes the page
    of `/metrics`; by default from `metrics`, those of this process. Queries can be rated if the backend has
    `feedback.note` as a sink too; `on_rated` takes each rating. `others` are the other router replicas, whose
    queries are shown too.

    Raises: ConfigError if `server` names a variable or a file without keys, or a file that cannot be used.
    """
    metrics, redact = metrics or Metrics(), redact or Redactor.of(environment, [server.api_keys_env])
    keys = KeyRing.of(server, environment)
    purses = Purses(SpendBook(Path(server.spend_file) if server.spend_file else None))
    admission = admission or Admission(server.max_running, server.max_queued)
    metrics.watch(admission)
    metrics.watch_spend(purses, keys)
    store, running = ResponseStore(server.responses, clock), Running()
    kept = KeptResponses(store, running, backend, clock)
    rating = Feedback(
        feedback or FeedbackStore(server, clock), tuple(filter(None, (metrics.count_rating, on_rated)))
    )
    scrape = scrape or _rendered(metrics)
    pages = _Pages(backend, scrape, created=int(clock()))

    rest = (backend, server, admission, purses, clock, new_id)

    def endpoint(dialect: Dialect) -> Endpoint:
        return Endpoint(dialect, *rest)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", endpoint(CHAT), methods=["POST"]),
            Route("/v1/completions", endpoint(COMPLETIONS), methods=["POST"]),
            Route("/v1/embeddings", endpoint(EMBEDDINGS), methods=["POST"]),
            Route(
                "/v1/responses", ResponsesEndpoint(ResponsesDialect(store), *rest, running), methods=["POST"]
            ),
            Route("/v1/responses/{id}", kept.one, methods=["GET", "DELETE"]),
            Route("/v1/responses/{id}/cancel", kept.cancel, methods=["POST"]),
            Route("/v1/responses/{id}/input_items", kept.input_items),
            Route("/v1/messages", endpoint(MESSAGES), methods=["POST"]),
            Route("/v1/messages/count_tokens", CountTokens(endpoint(MESSAGES)), methods=["POST"]),
            Route("/v1/r2/feedback", rating, methods=["POST"]),
            Route("/v1/r2/events", Watching(backend, server, others or NoOthers()), methods=["GET"]),
            Route("/v1/r2/keys", Budgets(keys, purses, scrape).listed),
            Route("/v1/models", pages.models),
            Route("/v1/models/{id:path}", pages.model),
            Route("/health", pages.health),
            Route("/health/ready", pages.ready),
            Route("/metrics", pages.metrics_text),
            Route("/openapi.json", pages.openapi),
            Route(PAGE, _to_page),
            Mount(PAGE, Page()),
        ],
        middleware=[Middleware(Edge, keys=keys, metrics=metrics, new_id=new_id, redact=redact)],
        exception_handlers={HTTPException: answer_error, R2Error: answer_error},
    )
    app.router.redirect_slashes = False
    app.router.default = no_such_route
    return app


@dataclass(frozen=True)
class _Pages:
    """The routes that read only."""

    backend: RouterBackend
    scrape: Scrape
    created: int

    async def models(self, request: Request) -> Response:
        key = Exchange.of(request.scope).key
        listings = [listing for listing in self.backend.models() if key is None or key.may_ask(listing.id)]
        objects = [model_object(listing, self.created, self.backend.prices_as_of) for listing in listings]
        is_anthropics = VERSION_HEADER in request.headers
        return _json(encode(listed_models(objects) if is_anthropics else model_list(objects)))

    async def model(self, request: Request) -> Response:
        listing = find_model(self.backend, request.path_params["id"], Exchange.of(request.scope).key)
        model = model_object(listing, self.created, self.backend.prices_as_of)
        return _json(encode(listed_model(model) if VERSION_HEADER in request.headers else model))

    async def health(self, request: Request) -> Response:
        return _json(b'{"status":"ok"}')

    async def ready(self, request: Request) -> Response:
        is_ready, detail = await self.backend.ready()
        if not is_ready:
            raise HTTPException(503, f"not ready: {detail}", {"retry-after": "1"})
        shown: Json = {"status": "ready", "detail": detail} if detail else {"status": "ready"}
        return _json(encode(shown))

    async def metrics_text(self, request: Request) -> Response:
        key = Exchange.of(request.scope).key
        if key is not None and key.is_restricted:
            reason = "which shows every key's spend: use one without models and budget_usd"
            raise HTTPException(403, f"key {key.name!r} may not read /metrics, {reason}")
        return Response(await self.scrape(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return _json(encode(describe()))


async def _to_page(request: Request) -> Response:
    """The page's links are relative, so its address ends with a slash."""
    return RedirectResponse(f"{PAGE}/")


def _rendered(metrics: Metrics) -> Scrape:
    async def scrape() -> bytes:
        return metrics.render()

    return scrape


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
