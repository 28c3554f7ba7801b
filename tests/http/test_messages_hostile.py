"""Bodies of Messages that no client should send are answered or refused, and never an internal error."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.support import messages_provider as provider
from tests.support.messages_stand import MessagesStand, messages_stand
from tests.support.upstream import Script, Upstream

NUM_BODIES = 400
VALUES: tuple[Any, ...] = (
    None,
    5,
    -1,
    1e400,
    "x",
    "",
    True,
    [],
    {},
    [5],
    [{}],
    {"type": 5},
    {"type": "text"},
)
GOOD: dict[str, Any] = {
    "model": "gpt",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s"}],
    "tools": [
        {"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": True},
        {"type": "web_search_1", "name": "w"},
    ],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "stop_sequences": ["a"],
    "metadata": {"user_id": "x"},
    "context_management": {"edits": [{"type": "clear_thinking_1"}]},
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
                {
                    "type": "document",
                    "title": "t",
                    "source": {"type": "text", "media_type": "text/plain", "data": "d"},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                *(provider.THOUGHT, provider.SEARCH, provider.FOUND, provider.CITED),
                provider.call(1, "Oslo"),
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "sun"}],
                }
            ],
        },
    ],
}


def changed(body: Any, dice: random.Random) -> Any:
    """A copy of `body` with another value in one of its places."""
    body = json.loads(json.dumps(body))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ():
            places.append((node, key))
            walk(node[key])

    walk(body)
    node, key = dice.choice(places)
    node[key] = dice.choice(VALUES)
    return body


def calm(upstream: Upstream) -> None:
    """The provider refuses what its script cannot read."""
    answer = upstream.script
    assert not isinstance(answer, Script)

    def script(request: dict[str, Any]) -> Script:
        try:
            return answer(request)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return provider.error(400, "this is no request")

    upstream.script = script


async def post(stand: MessagesStand, path: str, body: str) -> tuple[int, str]:
    headers = {"content-type": "application/json"}
    response = await stand.client.post(path, content=body, headers=headers)
    return response.status_code, response.json().get("error", {}).get("type", "")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_body_with_values_of_other_kinds_is_never_an_internal_error(path: str) -> None:
    dice = random.Random(13)
    async with messages_stand() as stand:
        calm(stand.anthropic)
        calm(stand.openai)
        for _ in range(NUM_BODIES):
            body = changed(GOOD, dice)
            if isinstance(body["model"], str):
                body["model"] = dice.choice(["gpt", "claude", "r2"])
            status, kind = await post(stand, path, json.dumps(body))
            assert status in (200, 400, 404), (status, kind, body)


@pytest.mark.parametrize("depth", [100, 500, 950, 990, 100_000])
@pytest.mark.parametrize("model", ["claude", "gpt"])
async def test_nested_body_is_answered_or_refused(model: str, depth: int) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    block = f'{{"type":"invented_later","more":{nested}}}'
    body = f'{{"model":"{model}","max_tokens":9,"messages":[{{"role":"user","content":[{block}]}}]}}'
    async with messages_stand() as stand:
        status, _ = await post(stand, "/v1/messages", body)
    assert status == (200 if depth == 100 and model == "claude" else 400)


@pytest.mark.parametrize("text", ['"\\ud800"', "NaN", "-Infinity"])
async def test_what_is_no_text_or_number_of_json_is_refused(text: str) -> None:
    block = f'{{"type":"thinking","thinking":"hm","signature":{text}}}'
    body = f'{{"model":"claude","max_tokens":9,"messages":[{{"role":"assistant","content":[{block}]}}]}}'
    async with messages_stand() as stand:
        assert await post(stand, "/v1/messages", body) == (400, "invalid_request_error")
