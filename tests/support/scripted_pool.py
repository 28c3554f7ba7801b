"""A Serve config of scripted models, as text, for cluster tests. None of them is a real model."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tests.support.serve_apps import FREE, model_app, router_app, served_card

DIAMOND = {
    "subtasks": [
        {"id": 1, "text": "left", "depends_on": []},
        {"id": 2, "text": "right", "depends_on": []},
        {"id": 3, "text": "join #1 and #2", "depends_on": [1, 2]},
    ]
}
SMALL, LARGE, PLANNER, PICKER = "small", "large", "planner", "picker"


def scripted_config(**changes: Any) -> dict[str, Any]:
    """Two workers, a decomposer that plans two subtasks and their join, and an allocator that sends the join
    to `large`.

    By model name, `replies` and `delay_s` change a model's answers and their time, and `dies_on` names a text
    in a prompt that kills it. `limits` and `server` are as in the config; `more_models` are further entries
    of `models`, and `more_virtual` further virtual models by name.
    """
    replies = {
        SMALL: ["half"],
        LARGE: ["the whole answer of four"],
        PLANNER: [json.dumps(DIAMOND)],
        PICKER: [json.dumps({"models": [SMALL, SMALL, LARGE]})],
        **changes.get("replies", {}),
    }
    delay_s, dies_on = changes.get("delay_s", {}), changes.get("dies_on", {})
    engines = {
        name: {
            "kind": "scripted",
            "replies": replies[name],
            "delay_s": delay_s.get(name, 0.0),
            "dies_on": dies_on.get(name),
        }
        for name in replies
    }
    options = {"max_ongoing_requests": 64, **FREE, **changes.get("model_options", {})}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [
            *(model_app(name, engine, **options) for name, engine in engines.items()),
            _router_app(list(engines), changes),
        ],
    }


def scripted_yaml(**changes: Any) -> str:
    """`scripted_config` as YAML."""
    return yaml.safe_dump(scripted_config(**changes), sort_keys=False)


def _router_app(names: list[str], changes: dict[str, Any]) -> dict[str, Any]:
    fallbacks = {SMALL: [LARGE]}
    models = [served_card(name, fallbacks=fallbacks.get(name, [])) for name in names]
    virtual = {
        "pool": [SMALL, LARGE],
        "decomposer": {"model": PLANNER, "num_samples": 1},
        "allocator": {"model": PICKER},
        "plan": "always",
        **changes.get("virtual", {}),
    }
    routing = {
        "virtual_models": {"r2": virtual, **changes.get("more_virtual", {})},
        "limits": changes.get("limits", {}),
    }
    args = {
        "models": [*models, *changes.get("more_models", ())],
        "prices_as_of": changes.get("prices_as_of", "2026-11"),
        "server": changes.get("server", {}),
    }
    return router_app(args, routing, is_free=True)
