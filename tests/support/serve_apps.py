"""The parts of Serve configs: applications of one model each, the router's, and the models' cards."""

from __future__ import annotations

from typing import Any

FREE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}}
"""A deployment that reserves no CPU, so that many fit on one machine."""


def model_app(name: str, engine: dict[str, Any], **deployment: Any) -> dict[str, Any]:
    """The application `m-NAME`, whose deployment has these options."""
    return {
        "name": f"m-{name}",
        "route_prefix": None,
        "import_path": "r2_serve.app:build_model",
        "args": {"engine": engine},
        "deployments": [{"name": "Model", **deployment}],
    }


def served_card(name: str, **fields: Any) -> dict[str, Any]:
    """The model at the application `m-NAME`, at 1 USD per 1M tokens in and 2 out."""
    price = {"usd_per_mtok_in": "1", "usd_per_mtok_out": "2"}
    return {"name": name, **price, "engine": {"kind": "served", "app": f"m-{name}"}, **fields}


def router_app(args: dict[str, Any], routing: dict[str, Any], *, is_free: bool = False) -> dict[str, Any]:
    """The router's application; `is_free` for clusters of few CPUs: none of its deployments reserves one."""
    options = FREE if is_free else {}
    stages = [{"name": name, **options} for name in ("Decomposer", "Allocator") if is_free]
    return {
        "name": "r2",
        "route_prefix": "/",
        "import_path": "r2_serve.app:build",
        "args": args,
        "deployments": [{"name": "Router", "user_config": routing, **options}, *stages],
    }
