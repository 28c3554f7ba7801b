"""Models as Anthropic lists them. Source: https://docs.anthropic.com/en/api/models-list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from r2_serve.types import Json


def listed_model(model: Json) -> Json:
    """A model of OpenAI's list, which has `created` and `r2`, in Anthropic's shape."""
    created, r2 = model["created"], model["r2"]
    assert isinstance(created, int)
    assert isinstance(r2, dict)
    return {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": r2.get("context_tokens"),
        "r2": r2,
    }


def listed_models(models: Sequence[Json]) -> Json:
    """All of them on one page."""
    ends = (models[0]["id"], models[-1]["id"]) if models else (None, None)
    page = [listed_model(model) for model in models]
    return {"data": page, "has_more": False, "first_id": ends[0], "last_id": ends[1]}
