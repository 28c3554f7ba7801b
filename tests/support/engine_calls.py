"""One line per call in tests of engines."""

from __future__ import annotations

from collections.abc import Sequence

from r2_serve.types import EngineCall, Message, Sampling


def engine_call(
    messages: Sequence[Message],
    sampling: Sampling | None = None,
    *,
    adapter: str | None = None,
    timeout_s: float | None = None,
) -> EngineCall:
    """`EngineCall` with positional messages and sampling."""
    return EngineCall(
        messages=tuple(messages), sampling=sampling or Sampling(), adapter=adapter, timeout_s=timeout_s
    )
