"""Spans and metrics of queries by OpenTelemetry: `Telemetry` takes the trace of each query when it has ended.

Names follow the semantic conventions for generative AI:
https://github.com/open-telemetry/semantic-conventions-genai
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from r2_serve.config import RouterConfig

if TYPE_CHECKING:
    from r2_serve.otel.telemetry import Telemetry


def telemetry_sinks(config: RouterConfig, redact: Callable[[str], str]) -> list[Telemetry]:
    """The sink of `server.otel`, if it is set; only then is the SDK of OpenTelemetry loaded.

    Raises: ConfigError if the variable of the collector's headers is not set.
    """
    if config.server.otel is None:
        return []
    from r2_serve.otel.telemetry import Telemetry

    return [Telemetry(config.server.otel, config.models, redact=redact)]
