"""Clients of deployments: an engine, a decomposer and an allocator that live in other Ray Serve processes.

Facts of Ray Serve 2.60 these stand on: cancelling the task that awaits a response does not stop the replica, so
each response is cancelled by hand; a request whose replica dies is never tried again; a well-formed error arrives
as a `RayTaskError` whose `cause` is the original.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from r2_serve.allocator import AllocationResult, everything_to
from r2_serve.calls import Pool
from r2_serve.config import AllocatorConfig, DecomposerConfig, LimitsConfig
from r2_serve.decomposer import Decomposition
from r2_serve.errors import BudgetExceeded, EngineError, EngineUnavailable, R2Error
from r2_serve.ledger import Budget, lost_call
from r2_serve.types import Completion, Delta, Message, Plan, Sampling

MODEL_DEPLOYMENT = "Model"


class ServedEngine:
    """A local model, by the name of its application. Lives in the process of the router, decomposer or allocator."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._handle: DeploymentHandle | None = None
        self._stream_handle: DeploymentHandle | None = None

    async def generate(
        self, messages: Sequence[Message], sampling: Sampling, *, adapter: str | None = None, timeout_s: float | None = None
    ) -> Completion:
        response = self._handles()[0].generate.remote(tuple(messages), sampling, adapter, timeout_s)
        try:
            completion: Completion = await _awaited(response)
        except R2Error as e:
            raise _as_engine_error(e, self._app) from e
        return completion

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, *, adapter: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[Delta, None]:
        response = self._handles()[1].stream.remote(tuple(messages), sampling, adapter, timeout_s)
        is_exhausted = False
        try:
            async for delta in response:
                yield delta
            is_exhausted = True
        except asyncio.CancelledError:
            raise
        except Exception as e:
            raise _as_engine_error(unwrapped(e), self._app) from e
        finally:
            if not is_exhausted:
                response.cancel()

    def _handles(self) -> tuple[DeploymentHandle, DeploymentHandle]:
        """Made once: a new option set on the hot path would start a new router."""
        if self._handle is None or self._stream_handle is None:
            try:
                self._handle = serve.get_deployment_handle(MODEL_DEPLOYMENT, self._app)
            except Exception as e:
                raise EngineUnavailable(f"application {self._app!r} is not deployed ({e})") from e
            self._stream_handle = self._handle.options(stream=True)
        return self._handle, self._stream_handle


class ServedDecomposer:
    """The `Decomposer` deployment. If it fails twice, the one-step plan: a query is worth more than its plan."""

    def __init__(self, handle: DeploymentHandle, pool: Pool) -> None:
        self._handle, self._pool = handle, pool

    async def decompose(self, query: str, config: DecomposerConfig, limits: LimitsConfig, budget: Budget) -> Decomposition:
        try:
            made: Decomposition = await _twice(self._handle.decompose, query, config, limits, budget)
            return made
        except BudgetExceeded:
            raise
        except R2Error as e:
            messages = self._pool[config.model].codec.render_decompose(query, limits.max_subtasks)
            calls = (lost_call(self._pool[config.model].config, messages, "decompose", e),) * config.num_samples
            fallback = f"no valid plan: decomposer_failed ({e.message[:200]})"
            return Decomposition(
                plan=Plan.single(query), calls=calls, num_samples=config.num_samples, num_rejected=config.num_samples, fallback=fallback
            )


class ServedAllocator:
    """The `Allocator` deployment. If it fails twice, everything goes to the fallback model."""

    def __init__(self, handle: DeploymentHandle, pool: Pool) -> None:
        self._handle, self._pool = handle, pool

    async def allocate(
        self, query: str, plan: Plan, config: AllocatorConfig, names: Sequence[str], fallback_model: str, max_attempts: int, budget: Budget
    ) -> AllocationResult:
        try:
            made: AllocationResult = await _twice(
                self._handle.allocate, query, plan, config, tuple(names), fallback_model, max_attempts, budget
            )
            return made
        except BudgetExceeded:
            raise
        except R2Error as e:
            messages = self._pool[config.model].codec.render_allocate(query, plan, [self._pool[name].config for name in names])
            calls = (lost_call(self._pool[config.model].config, messages, "allocate", e),)
            fallback = f"allocator_failed ({e.message[:200]})"
            return AllocationResult(allocation=everything_to(fallback_model, plan), calls=calls, fallback=fallback)


async def _twice(method: Any, *args: object) -> Any:
    """Decomposing and allocating are idempotent, so a replica's death is worth one more try."""
    try:
        return await _awaited(method.remote(*args))
    except EngineUnavailable:
        return await _awaited(method.remote(*args))


async def _awaited(response: Any) -> Any:
    """The result. Raises: R2Error. Cancelled with the task that awaits it."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except Exception as e:
        raise unwrapped(e) from e


def unwrapped(error: Exception) -> R2Error:
    """The `R2Error` raised in the replica, or what the failure of the replica means to us."""
    for candidate in (error, getattr(error, "cause", None)):
        if isinstance(candidate, R2Error) and type(candidate).__module__ == R2Error.__module__:
            return candidate
    return EngineUnavailable(f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no message'}")


def _as_engine_error(error: R2Error, app: str) -> EngineError:
    return error if isinstance(error, EngineError) else EngineUnavailable(f"application {app!r}: {type(error).__name__}: {error.message}")
