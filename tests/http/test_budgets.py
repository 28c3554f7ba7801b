"""`GET /v1/r2/keys`: each key sees what it has spent of its budget; a key without limits sees all keys."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from r2_serve.config import ServerConfig
from r2_serve.http.api import create_app
from r2_serve.http.keys import new_key
from tests.http.test_events import app_of
from tests.support.scripted_backend import ScriptedBackend, chat_body

URL = "/v1/r2/keys"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[ServerConfig, dict[str, str]]:
    made = {
        "admin": new_key(name="admin"),
        "one": new_key(name="one", budget_usd="2", budget_period="day"),
        "two": new_key(name="two", models=["r2"], budget_usd="3", budget_period="month"),
    }
    path = tmp_path / "keys.yaml"
    path.write_text(
        yaml.safe_dump([entry.model_dump(mode="json", exclude_none=True) for _, entry in made.values()])
    )
    path.chmod(0o600)
    return ServerConfig(keys_file=str(path)), {name: key for name, (key, _) in made.items()}


def client_of(app: Any, key: str = "") -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2", headers=headers)


async def test_key_with_limits_sees_its_own_spend_alone(keys: tuple[ServerConfig, dict[str, str]]) -> None:
    app = app_of(keys[0])
    async with client_of(app, keys[1]["one"]) as one, client_of(app, keys[1]["admin"]) as admin:
        reply = await one.post("/v1/chat/completions", json=chat_body())
        (own,) = (await one.get(URL)).json()["data"]
        all_ = {entry["name"]: entry for entry in (await admin.get(URL)).json()["data"]}
    assert Decimal(own["spent_usd"]) == Decimal(reply.json()["r2"]["cost_usd"]) > 0
    assert (own["name"], own["budget_usd"], own["budget_period"]) == ("one", "2", "day")
    assert own["resets_at"].endswith("T00:00:00Z")
    assert list(all_) == ["admin", "one", "two"]
    assert all_["one"] == own
    assert (all_["admin"]["budget_usd"], all_["admin"]["resets_at"]) == (None, None)
    assert all_["two"]["models"] == ["r2"]


async def test_open_endpoint_has_no_keys() -> None:
    async with client_of(app_of()) as client:
        assert (await client.get(URL)).json() == {"object": "list", "data": []}


async def test_highest_count_of_all_router_replicas_is_shown(
    keys: tuple[ServerConfig, dict[str, str]],
) -> None:
    """Each counts for itself without `server.spend_file`, and refuses by its own count."""

    async def scrape() -> bytes:
        return (
            b'r2_key_spent_usd{replica="a",key="one"} 0.5\nr2_key_spent_usd{replica="b",key="one"} 1.25e-05\n'
            b'r2_key_spent_usd{replica="b",key="two"} 1.0\nr2_key_budget_usd{key="one",period="day"} 9.0\n'
        )

    app = create_app(ScriptedBackend(), keys[0], environment={}, scrape=scrape)
    async with client_of(app, keys[1]["one"]) as one:
        (own,) = (await one.get(URL)).json()["data"]
    assert own["spent_usd"] == "0.5"


async def test_unknown_key_is_refused(keys: tuple[ServerConfig, dict[str, str]]) -> None:
    async with client_of(app_of(keys[0]), "wrong") as client:
        assert (await client.get(URL)).status_code == 401
