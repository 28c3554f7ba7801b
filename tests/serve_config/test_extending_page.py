"""The examples of docs/extending.md work as they stand there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from r2_serve.config import ModelConfig, RouterConfig, RoutingConfig
from r2_serve.router.router import in_process
from r2_serve.serve_config.document import Document, parse_yaml
from r2_serve.serve_config.imports import import_problems
from r2_serve.types import Engine, EngineCall, Message, Query
from tests import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
POLICIES, ENGINE, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
_ARGUMENTS, SCALING, *_ = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_policies_of_the_page_pass_validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_policies.py").write_text(POLICIES)
    monkeypatch.chdir(tmp_path)
    document = parse_yaml(SCALING)
    assert isinstance(document, Document) and len(yaml.safe_load(SCALING)["deployments"]) == 2
    assert list(import_problems(document)) == []


def test_engine_of_the_page_answers_calls_and_streams() -> None:
    names: dict[str, Callable[[], Engine]] = {}
    exec(compile(ENGINE, "extending.md", "exec"), names)  # type: ignore[arg-type]
    engine = names["Shouting"]()
    call = EngineCall(messages=(Message(role="user", content="hello there"),))

    async def streamed() -> str:
        return "".join([delta.text async for delta in engine.stream(call)])

    assert asyncio.run(engine.generate(call)).text == asyncio.run(streamed()) == "HELLO THERE"


def test_in_process_router_takes_the_engine_of_the_page() -> None:
    names: dict[str, Callable[[], Engine]] = {}
    exec(compile(ENGINE, "extending.md", "exec"), names)  # type: ignore[arg-type]
    made: list[str] = []

    def engine_for(model: ModelConfig) -> Engine:
        made.append(model.name)
        return names["Shouting"]()

    card = {"name": "loud", "usd_per_mtok_in": 1, "usd_per_mtok_out": 1, "engine": {"kind": "scripted"}}
    models = (ModelConfig.model_validate(card),)
    virtual = {"pool": ["loud"], "decomposer": {"model": "loud"}, "allocator": {"model": "loud"}}
    routing = RoutingConfig.model_validate({"virtual_models": {"r2": virtual}})
    router = in_process(RouterConfig(models=models), routing, engine_for)
    query = Query(request_id="1", model="loud", messages=(Message(role="user", content="hi"),))
    assert asyncio.run(router.answer(query)).text == "HI" and made == ["loud"]
