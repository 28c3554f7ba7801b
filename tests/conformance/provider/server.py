"""The scripted provider at one address: it checks the key, reads the dialect from the path and answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from tests.conformance.provider import chat, messages, responses
from tests.conformance.provider.conversation import Answer, Asked, Refusal, Usage
from tests.conformance.provider.memory import Memory
from tests.conformance.provider.mind import think
from tests.support.upstream import Script, Upstream, upstream_in_thread

KEY = "key-of-the-provider"
PLANNER = "planner"
"""The model that plans and allocates for the virtual model."""
DIALECTS: dict[str, ModuleType] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
}


@contextmanager
def running_provider() -> Iterator[Upstream]:
    """The provider on a loopback port, in a thread."""
    with upstream_in_thread() as upstream:
        upstream.script = answering(Memory())
        yield upstream


def answering(memory: Memory) -> Callable[[dict[str, Any]], Script]:
    """What answers each request."""

    def answer(request: dict[str, Any]) -> Script:
        path, headers = request["_path"].partition("?")[0], request["_headers"]
        if path == "/v1/models":
            return Script([json.dumps({"object": "list", "data": []}).encode()])
        is_counting = path == "/v1/messages/count_tokens"
        dialect = messages if is_counting else DIALECTS.get(path)
        if dialect is None:
            return chat.refuse(Refusal(404, f"no such path: {path}"))
        if KEY not in (headers.get("authorization", "").removeprefix("Bearer "), headers.get("x-api-key")):
            return dialect.refuse(Refusal(401, "the key of the provider is missing"))
        if is_counting:
            return messages.count(request)
        unknown = {name for name in request if name not in dialect.PARAMETERS and name[0] != "_"}
        if unknown or (dialect is messages and "max_tokens" not in request):
            return dialect.refuse(Refusal(400, f"unknown: {sorted(unknown)}, or no max_tokens"))
        try:
            asked: Asked = dialect.read(request)
        except (KeyError, ValueError, TypeError, AssertionError) as e:
            return dialect.refuse(Refusal(400, f"cannot be read: {type(e).__name__}: {e}"))
        reply = _plan(asked, memory) if asked.model == PLANNER else think(asked, memory)
        return dialect.refuse(reply) if isinstance(reply, Refusal) else dialect.write(reply, request)

    return answer


def _plan(asked: Asked, memory: Memory) -> Answer:
    """Two steps for a decomposer, and for an allocator the first model of its pool for each step."""
    prompt = "\n".join(each.text for each in asked.said)
    names = re.findall(r"^- (\S+) \(", prompt, re.MULTILINE)
    steps = [{"id": 1, "text": "the first half", "depends_on": []}]
    steps.append({"id": 2, "text": "join it with #1", "depends_on": [1]})
    wanted = {"models": names[:1] * prompt.count('"depends_on"')} if names else {"subtasks": steps}
    return Answer(next(memory.numbers), Usage(len(prompt) // 4, 0, 0, 40, 0), json.dumps(wanted))
