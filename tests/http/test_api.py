"""The endpoint in process: every malformed request, the plain reply byte for byte, the other routes, keys."""

from __future__ import annotations

import json
import logging
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from r2_serve.config import ServerConfig
from r2_serve.errors import (
    BudgetExceeded,
    ConfigError,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    R2Error,
    SubtaskFailed,
)
from r2_serve.http.api import create_app
from r2_serve.http.openapi import describe
from tests.support.scripted_backend import ScriptedBackend, chat_body, make_client

URL = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": "hi"}


def with_message(**message: Any) -> bytes:
    return json.dumps(chat_body(messages=[USER, message])).encode()


def with_(**parameters: Any) -> bytes:
    return json.dumps(chat_body(**parameters)).encode()


def with_plan(*subtasks: dict[str, Any], **more: Any) -> bytes:
    return with_(r2={"plan": {"subtasks": subtasks}, **more})


STEP = {"id": 1, "text": "a"}
MALFORMED: list[tuple[str, bytes, str | None]] = [
    ("empty", b"", None),
    ("not json", b"{", None),
    ("array", b"[]", None),
    ("null", b"null", None),
    ("string", b'"hi"', None),
    ("empty object", b"{}", "model"),
    ("not utf-8", b'{"model":"\xff"}', None),
    ("byte order mark", b"\xef\xbb\xbf" + with_(), None),
    ("trailing text", with_() + b"x", None),
    ("depth bomb", b'{"model":' + b"[" * 10_000 + b"]" * 10_000 + b"}", None),
    ("object depth bomb", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, None),
    ("huge integer", b'{"model":"r2","seed":' + b"1" * 10_000 + b"}", None),
    ("escaped lone surrogate", with_message(role="user", content="\ud800"), None),
    ("encoded lone surrogate", b'{"model":"\xed\xa0\x80"}', None),
    ("NaN", with_(temperature=float("nan")), "temperature"),
    ("Infinity", with_(r2={"max_cost_usd": float("inf")}), "r2.max_cost_usd"),
    ("number overflow", with_().replace(b'{"model"', b'{"top_p":1e999,"model"'), "top_p"),
    (
        "NaN in a schema",
        with_(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"a": float("nan")}},
            }
        ),
        "?",
    ),
    ("model null", with_(model=None), "model"),
    ("model empty", with_(model=""), "model"),
    ("model number", with_(model=1), "model"),
    ("messages missing", b'{"model":"r2"}', "messages"),
    ("messages empty", with_(messages=[]), "messages"),
    ("messages string", with_(messages="hi"), "messages"),
    ("messages of null", with_(messages=[None]), "messages.0"),
    ("role missing", with_message(content="a"), "messages.1.role"),
    ("content empty list", with_message(role="user", content=[]), "messages.1.content"),
    ("part without text", with_message(role="user", content=[{"type": "text"}]), "messages.1.content.0.text"),
    ("url", with_(base_url="http://x"), "base_url"),
    ("both maxima", with_(max_tokens=1, max_completion_tokens=2), "max_completion_tokens"),
    ("max_tokens zero", with_(max_tokens=0), "max_tokens"),
    ("max_tokens true", with_(max_tokens=True), "max_tokens"),
    ("max_tokens half", with_(max_tokens=1.5), "max_tokens"),
    ("max_tokens text", with_(max_tokens="10"), "max_tokens"),
    ("temperature high", with_(temperature=2.1), "temperature"),
    ("stop of five", with_(stop=["a"] * 5), "stop"),
    ("stop empty", with_(stop=[""]), "stop.0"),
    ("confidence of a stream", with_(stream=True, r2={"confidence": True}), "r2.confidence"),
    ("plan only, with a plan", with_plan(STEP, plan_only=True), "r2.plan_only"),
    ("plan only of a pool model", with_(model="org/small", r2={"plan_only": True}), "r2.plan_only"),
    ("limit out of place", with_(max_cost_usd=1), "max_cost_usd"),
    ("stream text", with_(stream="yes"), "stream"),
    ("stream_options alone", with_(stream_options={"include_usage": True}), "stream_options"),
    ("stream_options unknown", with_(stream=True, stream_options={"x": 1}), "stream_options.x"),
    ("response_format unknown", with_(response_format={"type": "xml"}), "response_format.type"),
    ("schema missing", with_(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (
        "remote $ref",
        with_(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"$ref": "http://x"}},
            }
        ),
        "?",
    ),
    ("r2 unknown", with_(r2={"api_base": "http://x"}), "r2.api_base"),
    ("r2 cost zero", with_(r2={"max_cost_usd": 0}), "r2.max_cost_usd"),
    ("r2 cost exponent", with_(r2={"max_cost_usd": "1e-999999"}), "r2.max_cost_usd"),
    ("r2 plan empty", with_plan(), "r2.plan.subtasks"),
    ("r2 plan cycle", with_plan({"id": 1, "text": "#2", "depends_on": [2]}), "r2.plan.subtasks.0"),
    ("r2 plan ids", with_plan({"id": 2, "text": "a"}), "r2.plan"),
    ("r2 plan text id", with_plan({"id": "1", "text": "a"}), "r2.plan.subtasks.0.id"),
    ("r2 plan of 10,000", with_plan(*({"id": i, "text": "a"} for i in range(1, 10_001))), "r2.plan.subtasks"),
    ("r2 plan of nonsense", with_(r2={"plan": {"subtasks": [1] * 100_000}}), "r2.plan.subtasks.0"),
    ("r2 plan reference", with_plan({"id": 1, "text": "#9"}), "r2.plan.subtasks.0"),
    ("r2 pins without plan", with_(r2={"models": {"1": "org/small"}}), "r2.models"),
    ("r2 pin of no subtask", with_plan(STEP, models={"2": "org/small"}), "r2.models.2"),
    ("r2 pin of no number", with_plan(STEP, models={"one": "org/small"}), "r2.models.one"),
    ("pass-through plan", with_(model="org/small", r2={"plan": {"subtasks": [STEP]}}), "r2.plan"),
    ("pass-through policy", with_(model="org/small", r2={"policy": "random"}), "r2.policy"),
]


def error_of(response: Any) -> dict[str, Any]:
    """The error of a response, after a check that it is an OpenAI error with a request id."""
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"] and error["type"]
    return error


@pytest.mark.parametrize(("body", "param"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
async def test_malformed_request_is_refused_and_its_parameter_named(body: bytes, param: str | None) -> None:
    backend = ScriptedBackend()
    async with make_client(backend) as client:
        response = await client.post(URL, content=body, headers=JSON)
    error = error_of(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == (param if param != "?" else "response_format.json_schema.schema")
    assert len(error["message"]) < 500
    assert not backend.queries


async def test_refusal_of_a_misspelt_or_misplaced_field_suggests_the_right_one() -> None:
    async with make_client(ScriptedBackend()) as client:
        misspelt = await client.post(URL, json=chat_body(r2={"max_cost": 1}))
        misplaced = await client.post(URL, json=chat_body(max_cost_usd=1))
    assert "did you mean max_cost_usd?" in error_of(misspelt)["message"]
    assert "did you mean r2.max_cost_usd?" in error_of(misplaced)["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {**JSON, "content-encoding": "gzip"},
        {"content-type": JSON["content-type"] + "; charset=utf-16"},
    ],
)
async def test_other_content_types_are_refused(headers: dict[str, str]) -> None:
    async with make_client(ScriptedBackend()) as client:
        response = await client.post(URL, content=with_(), headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


async def test_large_body_is_refused_unread() -> None:
    num_read = 0

    async def endless() -> Any:
        nonlocal num_read
        while True:
            num_read += 1
            yield b" " * 1000

    async with make_client(ScriptedBackend(), max_body_bytes=5_000) as client:
        counted = await client.post(URL, content=endless(), headers=JSON)
        declared = await client.post(URL, content=b" " * 20_000_000, headers=JSON)
    assert counted.status_code == declared.status_code == 413
    assert error_of(counted)["code"] == error_of(declared)["code"] == "request_too_large"
    assert num_read <= 7


async def test_plain_reply_has_exactly_these_bytes() -> None:
    async with make_client(ScriptedBackend(text='Grüße\u2028"x"')) as client:
        response = await client.post(URL, json=chat_body(), headers={"x-request-id": "mine-1"})
    assert response.status_code == 200
    assert response.content == (
        b'{"id":"chatcmpl-id1","object":"chat.completion","created":1750000000,"model":"r2",'
        b'"choices":[{"index":0,"message":{"role":"assistant",'
        b'"content":"Gr\\u00fc\\u00dfe\\u2028\\"x\\"","refusal":null,"annotations":[]},'
        b'"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":30,"completion_tokens":7,"total_tokens":37},'
        b'"r2":{"cost_usd":"0.0000022","worker_cost_usd":"0.0000015","prices_as_of":"2026-11-01",'
        b'"models":["org/small"],"subtasks":2,"policy":"learned","decision":null,"plan_fallback":null,'
        b'"allocation_fallback":null,"overhead_ms":12.5,"duration_ms":500.0}}'
    )
    assert dict(response.headers) == {
        "content-length": str(len(response.content)),
        "content-type": "application/json",
        "x-request-id": "mine-1",
        "x-r2-cost-usd": "0.0000022",
        "x-r2-models": "org/small",
        "x-r2-plan-nodes": "2",
        "x-r2-overhead-ms": "12.500",
    }


async def test_every_honoured_parameter_reaches_the_query() -> None:
    backend = ScriptedBackend()
    schema = {"type": "object", "$defs": {"a": {}}, "properties": {"b": {"$ref": "#/$defs/a"}}}
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "stop": ["a", "b"],
    }
    extras = {
        "max_cost_usd": 0.1,
        "max_subtasks": 3,
        "deadline_s": 9,
        "policy": "all:org/small",
        "models": {"1": "org/small"},
    }
    extras["plan"] = {"subtasks": [STEP, {"id": 2, "text": "b #1", "depends_on": [1]}], "answer": "#2 #1"}
    forwarded = {"prompt_cache_key": "k", "n": 1, "store": False, "logit_bias": {"1": -1}, "top_k": 5}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": "x", "tool_calls": None},
        {"role": "user", "content": parts},
    ]
    body = {
        "model": "r2",
        "messages": messages,
        "max_completion_tokens": 5,
        "response_format": form,
        "r2": extras,
        **sampling,
        **forwarded,
        "tools": None,
    }
    async with make_client(backend) as client:
        response = await client.post(URL, json=body, headers={"x-request-id": "q"})
    assert response.status_code == 200, response.text
    (query,) = backend.queries
    assert query.request_id == "q"
    assert [(m.role, m.content) for m in query.messages] == [
        ("developer", "d"),
        ("assistant", "x"),
        ("user", tuple(parts)),
    ]
    assert query.sampling.model_dump(exclude_defaults=True) == {
        **sampling,
        "stop": ("a", "b"),
        "max_tokens": 5,
        "response_format": form,
        "forwarded": forwarded,
    }
    assert query.session == "k"
    assert (query.policy, query.max_subtasks, query.max_cost_usd, query.pinned) == (
        "all:org/small",
        3,
        Decimal("0.1"),
        {1: "org/small"},
    )
    assert query.plan is not None and query.plan.answer == "#2 #1"
    assert query.deadline_s == pytest.approx(9, abs=0.1)


async def test_whole_number_may_have_a_decimal_point() -> None:
    """JSON Schema, and so our own description, calls 5.0 an integer."""
    backend = ScriptedBackend()
    async with make_client(backend) as client:
        response = await client.post(
            URL, json=chat_body(max_tokens=5.0, seed=7.0, n=1.0, r2={"max_subtasks": 3.0})
        )
    assert response.status_code == 200, response.text
    (query,) = backend.queries
    assert (query.sampling.max_tokens, query.sampling.seed, query.max_subtasks) == (5, 7, 3)


async def test_response_format_is_passed_on_unchanged_and_text_means_none() -> None:
    backend = ScriptedBackend()
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "n", "description": "d", "strict": False, "schema": {"type": "array"}},
    }
    asked = [{"type": "json_object"}, schema, {"type": "text"}]
    async with make_client(backend) as client:
        for wanted in asked:
            await client.post(URL, json=chat_body(response_format=wanted))
    assert [query.sampling.response_format for query in backend.queries] == [*asked[:2], None]


async def test_trace_is_returned_on_request() -> None:
    async with make_client(ScriptedBackend()) as client:
        asked = await client.post(URL, json=chat_body(r2={"trace": True}))
        unasked = await client.post(URL, json=chat_body())
    assert [call["cost_usd"] for call in asked.json()["r2"]["trace"]["calls"]] == ["7E-7", "0.0000015"]
    assert "trace" not in unasked.json()["r2"]


async def test_confidence_is_returned_on_request_if_there_is_one() -> None:
    backend = ScriptedBackend(confidence=0.75)
    async with make_client(backend) as client:
        plain = await client.post(URL, json=chat_body())
        asked = await client.post(URL, json=chat_body(model="org/small", r2={"confidence": True}))
    assert "confidence" not in plain.json()["r2"]
    assert asked.json()["r2"]["confidence"] == 0.75
    assert [query.sampling.logprobs for query in backend.queries] == [False, True]


async def test_plan_only_reaches_the_query() -> None:
    backend = ScriptedBackend()
    async with make_client(backend) as client:
        await client.post(URL, json=chat_body(r2={"plan_only": True}))
    assert backend.queries[0].is_plan_only


async def test_pool_model_request_takes_limits() -> None:
    backend = ScriptedBackend()
    async with make_client(backend) as client:
        response = await client.post(
            URL, json=chat_body(model="org/small", r2={"max_cost_usd": "0.5", "deadline_s": 5, "trace": True})
        )
    assert response.status_code == 200
    assert backend.queries[0].model == "org/small"


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (
            InvalidRequest("bad", "r2.policy", "invalid_value"),
            400,
            "invalid_request_error",
            "invalid_value",
            "r2.policy",
        ),
        (BudgetExceeded("too dear"), 400, "invalid_request_error", "budget_exceeded", None),
        (Overloaded("full", 2.5), 429, "rate_limit_error", "overloaded", None),
        (SubtaskFailed("subtask 2 failed", 2, "org/small"), 502, "api_error", "subtask_failed", None),
        (EngineUnavailable("down"), 503, "api_error", "upstream_unavailable", None),
        (DeadlineExceeded("late"), 504, "timeout_error", "deadline_exceeded", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_backend_errors_keep_their_status(
    error: R2Error, status: int, kind: str, code: str, param: str | None, stream: bool
) -> None:
    async with make_client(ScriptedBackend(error=error, pieces=())) as client:
        response = await client.post(URL, json=chat_body(stream=stream))
    assert response.status_code == status
    assert error_of(response) == {"message": error.message, "type": kind, "param": param, "code": code}
    assert response.headers.get("retry-after") == {429: "3", 503: "1"}.get(status)


@pytest.mark.parametrize("error", [RuntimeError("secret"), ConfigError("secret"), ValueError("secret")])
async def test_internal_errors_reveal_nothing(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with make_client(ScriptedBackend(error=error)) as client:
        response = await client.post(URL, json=chat_body())
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "secret" not in response.text + caplog.text
    assert response.headers["x-request-id"] in response.text


async def test_unknown_model_is_not_found() -> None:
    async with make_client(ScriptedBackend()) as client:
        asked = await client.post(URL, json=chat_body(model="org/smal"))
        shown = await client.get("/v1/models/nothing")
    assert asked.status_code == shown.status_code == 404
    assert error_of(asked)["code"] == error_of(shown)["code"] == "model_not_found"
    assert "did you mean 'org/small'?" in error_of(asked)["message"]


async def test_models_are_listed_with_prices() -> None:
    async with make_client(ScriptedBackend()) as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/org/small")).json()
    assert [model["id"] for model in listed["data"]] == ["r2", "org/small"]
    assert listed["object"] == "list"
    assert listed["data"][1] == one
    r2 = {
        "is_virtual": False,
        "description": "cheap",
        "capabilities": ["chat", "json_schema"],
        "group": "slm",
        "context_tokens": 4096,
        "usd_per_mtok_in": "0.05",
    }
    r2 |= {"usd_per_mtok_out": "0.1", "prices_as_of": "2026-11-01"}
    assert one == {"id": "org/small", "object": "model", "created": 1_750_000_000, "owned_by": "r2", "r2": r2}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("GET", URL, 405),
        ("PUT", URL, 405),
        ("POST", "/v1/models", 405),
        ("POST", URL + "/", 404),
    ],
)
async def test_wrong_routes_and_methods_get_typed_errors(method: str, path: str, status: int) -> None:
    async with make_client(ScriptedBackend()) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    error_of(response)
    assert (response.headers.get("allow") is not None) == (status == 405)


async def test_readiness_gives_the_reason() -> None:
    backend = ScriptedBackend(unready="model org/small is loading")
    async with make_client(backend) as client:
        unready = await client.get("/health/ready")
        backend.unready = ""
        assert (await client.get("/health/ready")).json() == {"status": "ready"}
        assert (await client.get("/health")).json() == {"status": "ok"}
    assert unready.status_code == 503
    assert "model org/small is loading" in error_of(unready)["message"]
    assert unready.headers["retry-after"] == "1"


async def test_router_that_is_ready_says_what_is_not_well() -> None:
    async with make_client(ScriptedBackend(unwell="1 of 3 local models take no calls")) as client:
        reply = await client.get("/health/ready")
    assert reply.status_code == 200
    assert reply.json() == {"status": "ready", "detail": "1 of 3 local models take no calls"}


@pytest.mark.parametrize("given", ["has space", "a" * 129, "umlaut-ü".encode("latin-1"), ""])
async def test_unsafe_request_id_is_replaced(given: Any) -> None:
    async with make_client(ScriptedBackend()) as client:
        response = await client.get("/health", headers={"x-request-id": given})
    assert re.fullmatch(r"req_id\d+", response.headers["x-request-id"])


KEYED = {"api_keys_env": "CLIENT_KEYS"}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        "Bearer wrong",
        "Basic key-one",
        "key-one",
        "Bearer key-one,",
        "Bearer ",
        "Bearer key-on",
    ],
)
@pytest.mark.parametrize(
    "path", [URL, "/v1/models", "/v1/models/r2", "/metrics", "/v1/nothing", "//v1/models", "/health/"]
)
async def test_only_health_is_open_without_a_key(header: str | None, path: str) -> None:
    async with make_client(ScriptedBackend(), **KEYED) as client:
        response = await client.request(
            "POST" if path == URL else "GET", path, headers={"authorization": header} if header else {}
        )
        assert (
            (await client.get("/health")).status_code
            == (await client.get("/health/ready")).status_code
            == 200
        )
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", ["key-one", "key-two"])
async def test_every_configured_key_opens_the_endpoint(key: str) -> None:
    async with make_client(ScriptedBackend(), **KEYED) as client:
        response = await client.post(URL, json=chat_body(), headers={"authorization": f"bearer {key}"})
    assert response.status_code == 200


def test_named_but_empty_keys_do_not_open_the_endpoint() -> None:
    with pytest.raises(ConfigError, match="NO_KEYS"):
        make_client(ScriptedBackend(), api_keys_env="NO_KEYS")


async def test_each_request_logs_one_line_without_prompt_or_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "r2_serve")
    headers = {"authorization": "Bearer key-one", "x-request-id": "mine"}
    async with make_client(ScriptedBackend(), **KEYED) as client:
        await client.post(
            URL, json=chat_body(messages=[{"role": "user", "content": "a private matter"}]), headers=headers
        )
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    request = r"request mine route=/v1/chat/completions key=env-1 model=r2"
    outcome = r" status=200 ms=[\d.]+ cost_usd=0.0000022 error=-"
    assert re.fullmatch(request + outcome, record.getMessage())


async def test_openapi_describes_what_is_honoured() -> None:
    async with make_client(ScriptedBackend()) as client:
        described = (await client.get("/openapi.json")).json()
    parameters = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"model", "messages", "temperature", "r2"} <= set(parameters)
    assert "tools" not in parameters
    named = re.findall(r"#/components/schemas/(\w+)", json.dumps(described))
    assert set(named) <= set(described["components"]["schemas"])


def routes() -> set[tuple[str, str]]:
    """Method and path of every route of the endpoint."""
    app = create_app(ScriptedBackend(), ServerConfig())
    given = [route for route in app.routes if isinstance(route, Route)]
    return {
        (method, route.path.replace(":path", ""))
        for route in given
        for method in (route.methods or set()) - {"HEAD"}
    }


def test_openapi_describes_every_route_and_its_body() -> None:
    paths: Any = describe()["paths"]
    described = {(method.upper(), path): paths[path][method] for path in paths for method in paths[path]}
    assert set(described) == routes()
    with_body = {path for (_, path), operation in described.items() if "requestBody" in operation}
    assert with_body == {path for method, path in routes() if method == "POST" and "{id}" not in path}


def test_api_page_names_every_route() -> None:
    page = Path("docs/api.md").read_text(encoding="utf-8")
    assert [f"{method} {path}" for method, path in sorted(routes()) if f"`{method} {path}`" not in page] == []
