"""Which providers of a config can be reached with the keys of this machine, and which models answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from http import HTTPStatus

import httpx

from r2_serve.config import HostedEngineConfig, ModelConfig
from r2_serve.engines.hosted import HostedEngine
from r2_serve.engines.wires import wire_of
from r2_serve.errors import ConfigError, EngineError
from r2_serve.ops.setup.machine import Finding
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.document import suggestion
from r2_serve.types import EngineCall, Message, Sampling

TIMEOUT_S = 10.0
"""Seconds for a provider's list of models."""
MANY = 2_000
"""Longest list in which a name like the given one is looked for."""
ANSWER_S = 60.0
"""Seconds for a model's answer."""


def provider_findings(config: ServeConfig, *, asks: bool) -> list[Finding]:
    """One finding for each hosted model; `asks` spends a token at each, otherwise only lists are read."""
    return asyncio.run(_all(config, asks))


async def _all(config: ServeConfig, asks: bool) -> list[Finding]:
    models = [model for model in config.router.models if isinstance(model.engine, HostedEngineConfig)]
    return list(await asyncio.gather(*(_answers(model) if asks else _lists(model) for model in models)))


async def _answers(model: ModelConfig) -> Finding:
    """Asks for a reply of one token."""
    call = EngineCall(
        messages=(Message(role="user", content="Say ok."),),
        sampling=Sampling(max_tokens=16 if "responses" in model.engine.kind else 1),
        timeout_s=ANSWER_S,
    )
    try:
        assert isinstance(model.engine, HostedEngineConfig)
        engine = HostedEngine(model.engine)
        try:
            done = await engine.generate(call)
        finally:
            await engine.aclose()
    except (ConfigError, EngineError) as e:
        return Finding("error", f"model {model.name}", e.message, _advice(model, e))
    tokens = f"{done.usage.prompt_tokens} tokens in, {done.usage.completion_tokens} out"
    return Finding("ok", f"model {model.name}", f"answers ({tokens})")


async def _lists(model: ModelConfig) -> Finding:
    """Reads the provider's list of models, which costs nothing."""
    engine, what = model.engine, f"model {model.name}"
    assert isinstance(engine, HostedEngineConfig)
    key = os.environ.get(engine.api_key_env, "").strip() if engine.api_key_env else None
    if key == "":
        return Finding("error", what, f"{engine.api_key_env} is not set", f"export {engine.api_key_env}=...")
    if engine.kind == "azure":
        return Finding("ok", what, "Azure lists no deployments: --ask asks it for one token")
    url = f"{engine.base_url.rstrip('/')}/models"
    try:
        headers = dict(wire_of(engine, key).headers)
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            reply = await client.get(url, headers=headers)
    except (httpx.HTTPError, ConfigError, ValueError) as e:
        found = f"{url} cannot be reached: {type(e).__name__} {e}".rstrip()
        return Finding("error", what, found, "see whether the address is right and a proxy is needed")
    return _listed(engine, what, url, reply)


def _listed(engine: HostedEngineConfig, what: str, url: str, reply: httpx.Response) -> Finding:
    """What the list of models says of the one of `engine`."""
    if reply.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        advice = f"see whether {engine.api_key_env or 'api_key_env'} holds a key of this provider"
        return Finding("error", what, f"{url} refuses the key ({reply.status_code})", advice)
    names = _names(reply)
    if reply.status_code != HTTPStatus.OK or names is None:
        found = f"{url} answers {reply.status_code} without a list of models: --ask asks for one token"
        return Finding("ok" if reply.is_client_error or reply.is_success else "warning", what, found)
    if engine.model in names:
        return Finding("ok", what, f"{url} lists {engine.model}")
    close = suggestion(engine.model, names) if len(names) <= MANY else ""
    advice = f"see whether the name is right{close}; an alias may be left out of the list: --ask tells"
    return Finding("warning", what, f"{url} does not list {engine.model}", advice)


def _names(reply: httpx.Response) -> Sequence[str] | None:
    try:
        return [str(model["id"]) for model in reply.json()["data"]]
    except (ValueError, LookupError, TypeError):
        return None


def _advice(model: ModelConfig, error: ConfigError | EngineError) -> str:
    status = getattr(error, "status", None)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        engine = model.engine
        name = engine.api_key_env if isinstance(engine, HostedEngineConfig) else None
        return f"see whether {name or 'api_key_env'} holds a key of this provider"
    return "see whether address, name and key are right"
