"""The allocator of docs/extending.md, a server of the user's own, chooses the models of a plan."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    HostedEngineConfig,
    RouterConfig,
    RoutingConfig,
    VirtualModelConfig,
)
from r2_serve.engines import make_engine
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.router.router import in_process
from r2_serve.types import Query
from tests import ROOT
from tests.support.in_process import model, plan_of, user

PAGE = (ROOT / "docs" / "extending.md").read_text()


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example's server on a free port."""
    code = re.search(r"```python\n(# my_allocator\.py.*?)```", PAGE, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"__name__": "my_allocator"}
    exec(compile(code[1], "my_allocator.py", "exec"), names)
    handler: type[BaseHTTPRequestHandler] = names["Allocator"]
    monkeypatch.setattr(handler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


async def test_server_of_the_users_own_gives_each_step_its_model(address: str) -> None:
    hosted = HostedEngineConfig(kind="openai", base_url=address, model="my-allocator")
    free = {"usd_per_mtok_in": 0, "usd_per_mtok_out": 0}
    models = (model("small"), model("large"), model("mine", engine=hosted, **free))
    virtual = VirtualModelConfig(
        pool=("small", "large"),
        decomposer=DecomposerConfig(model="small"),
        allocator=AllocatorConfig(model="mine"),
        plan="always",
    )
    routing = RoutingConfig(virtual_models={"r2": virtual})

    def engine_for(card: Any) -> Any:
        return make_engine(card.engine) if card.name == "mine" else ScriptedEngine([card.name])

    router = in_process(RouterConfig(models=models), routing, engine_for)
    plan = plan_of("say yes", "write the whole story of the yes with care and love: #1")
    answer = await router.answer(Query(request_id="1", model="r2", messages=user("?"), plan=plan))
    assert answer.trace.allocation_fallback is None
    assert [result.model for result in answer.trace.results] == ["small", "large"]
