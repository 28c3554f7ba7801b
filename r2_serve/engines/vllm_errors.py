"""What vLLM raises, as errors of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from r2_serve.engines.provider_errors import is_context_overflow
from r2_serve.errors import ContextOverflow, EngineError, EngineRefused, EngineUnavailable


@contextmanager
def as_engine_errors() -> Iterator[None]:
    """Raises: EngineRefused for an error that the request caused, EngineUnavailable for any other."""
    from vllm.exceptions import VLLMClientError

    try:
        yield
    except EngineError:
        raise
    except (VLLMClientError, ValueError) as e:
        refusal = ContextOverflow if is_context_overflow(str(e)) else EngineRefused
        raise refusal.of(getattr(e, "parameter", None), f"vLLM refused the request: {str(e)[:300]}") from e
    except Exception as e:
        raise EngineUnavailable(f"vLLM failed: {type(e).__name__}: {str(e)[:300]}") from e
