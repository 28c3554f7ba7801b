"""Clients of deployments: an engine, a decomposer and an allocator that live in other Ray Serve processes.

They rely on these facts of Ray Serve 2.60. Cancelling the task that awaits a response does not stop the
replica, so each response is cancelled by hand. A request whose replica dies is never tried again. A
well-formed error arrives as a `RayTaskError` whose `cause` is the original.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ray import serve
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from r2_serve.calls.budget import Budget
from r2_serve.calls.estimates import Prompt
from r2_serve.calls.ledger import Ledger
from r2_serve.calls.pool import Pool, PoolMember
from r2_serve.cluster.deaths import Deaths
from r2_serve.cluster.stages import StageReport
from r2_serve.config import DecomposerConfig, LimitsConfig
from r2_serve.errors import (
    BudgetExceeded,
    EngineError,
    EngineUnavailable,
    NotStarted,
    PoisonousRequest,
    R2Error,
    ReplicaDied,
)
from r2_serve.prompts.conversation import conversation_text
from r2_serve.router.allocator import AllocationResult, AllocationTask, everything_to
from r2_serve.router.decomposer import Decomposition, Messages
from r2_serve.serve_config.applications import MODEL
from r2_serve.types import CallRecord, CallStage, Completion, Delta, EngineCall, Plan

Result = TypeVar("Result")
T_co = TypeVar("T_co", covariant=True)


class _Response(Protocol[T_co]):
    """A response of Ray Serve's handle."""

    def __await__(self) -> Generator[object, None, T_co]: ...
    def cancel(self) -> None: ...


class ServedEngine:
    """A local model, by the name of its application, as the router, decomposer or allocator calls it."""

    def __init__(self, app: str) -> None:
        self._app, self._deaths = app, Deaths(app)
        self._handle: DeploymentHandle | None = None
        self._stream_handle: DeploymentHandle | None = None

    async def generate(self, call: EngineCall) -> Completion:
        response: _Response[Completion] = self._handles()[0].generate.remote(call)
        try:
            return await _awaited(response)
        except R2Error as e:
            raise await self._explained(e) from e

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        response = self._handles()[1].stream.remote(call)
        is_exhausted = False
        try:
            async for delta in response:
                yield delta
            is_exhausted = True
        except asyncio.CancelledError:
            raise
        except Exception as e:
            raise await self._explained(unwrapped(e)) from e
        finally:
            if not is_exhausted:
                response.cancel()

    async def _explained(self, error: R2Error) -> EngineError:
        if isinstance(error, ReplicaDied) and error.is_suspicious:
            return await self._deaths.explained(error)
        if isinstance(error, EngineError):
            return error
        return EngineUnavailable(f"application {self._app!r}: {type(error).__name__}: {error.message}")

    def _handles(self) -> tuple[DeploymentHandle, DeploymentHandle]:
        """The handles for plain and streamed calls, made once, as new options would start a new router."""
        if self._handle is None or self._stream_handle is None:
            try:
                self._handle = serve.get_deployment_handle(MODEL, self._app)
            except Exception as e:
                raise NotStarted(f"application {self._app!r} is not deployed ({e})") from e
            self._stream_handle = self._handle.options(stream=True)
        return self._handle, self._stream_handle


class ServedDecomposer:
    """The `Decomposer` deployment. If it fails twice, the plan is the query itself as its only subtask."""

    def __init__(self, handle: DeploymentHandle, pool: Pool) -> None:
        self._handle, self._pool = handle, pool

    async def decompose(
        self, messages: Messages, config: DecomposerConfig, limits: LimitsConfig, ledger: Ledger
    ) -> Decomposition:
        member, cards = self._pool[config.model], [self._pool[name].config for name in config.pool]
        codec = member.codec.with_prompts(config.prompts)
        rendered = codec.render_decompose(messages, limits.max_subtasks, cards)
        prompt = member.prompt(rendered, member.codec.plan_schema(limits.max_subtasks, cards))
        count = config.num_samples
        stage = _Stage[Decomposition](self._handle.decompose, ledger, "decompose", config.max_tokens, count)
        try:
            made = await stage.run(member, prompt, messages, config, limits)
            member.choices.are_taken = made.takes_choices
            return made
        except (BudgetExceeded, PoisonousRequest):
            raise
        except R2Error as e:
            reason = f"no valid plan: decomposer_failed ({e.message[:200]})"
            plan = Plan.single(conversation_text(messages))
            return Decomposition(plan=plan, num_samples=count, num_rejected=count, fallback=reason)


class ServedAllocator:
    """The `Allocator` deployment. If it fails twice, everything goes to the fallback model."""

    def __init__(self, handle: DeploymentHandle, pool: Pool) -> None:
        self._handle, self._pool = handle, pool

    async def allocate(self, task: AllocationTask, ledger: Ledger) -> AllocationResult:
        member = self._pool[task.config.model]
        cards = [self._pool[name].config for name in task.names]
        codec = member.codec.with_prompts(task.config.prompts)
        messages = codec.render_allocate(task.messages, task.plan, cards)
        prompt = member.prompt(messages, member.codec.allocation_schema(task.plan, cards))
        stage = _Stage[AllocationResult](self._handle.allocate, ledger, "allocate", task.config.max_tokens)
        try:
            return await stage.run(member, prompt, task)
        except (BudgetExceeded, PoisonousRequest):
            raise
        except R2Error as e:
            reason = f"allocator_failed ({e.message[:200]})"
            return AllocationResult(allocation=everything_to(task.fallback_model, task.plan), fallback=reason)


@dataclass(frozen=True)
class _Stage(Generic[Result]):
    """A stage that keeps its ledger in another process and reports its calls with its result or error."""

    method: DeploymentHandle
    ledger: Ledger
    name: CallStage
    max_tokens: int
    num_calls: int = 1

    async def run(self, member: PoolMember, prompt: Prompt, *args: object) -> Result:
        """The stage's result. If a replica dies it tries once more: a stage may safely run twice.

        A try that dies or is cancelled is booked as an estimate: `num_calls` of `prompt` to `member`.
        """
        try:
            return await self._once(member, prompt, *args)
        except EngineUnavailable:
            return await self._once(member, prompt, *args)

    async def _once(self, member: PoolMember, prompt: Prompt, *args: object) -> Result:
        started_s, allowance = self.ledger.elapsed_s(), self.ledger.allowance
        budget = allowance.remaining()
        most_usd = self.num_calls * member.config.cost_usd(prompt.most_usage(self.max_tokens))
        try:
            with allowance.held(most_usd):
                response: _Response[StageReport[Result]] = self.method.remote(
                    *args, budget, self.ledger.context
                )
                report = await _awaited(response)
        except BaseException as e:
            lost = self._lost_call(member, prompt, e, self.ledger.elapsed_s() - started_s)
            self.ledger.absorb([lost] * self.num_calls, shift_s=started_s)
            raise
        self.ledger.absorb(report.calls, shift_s=started_s)
        if isinstance(report.error, BudgetExceeded):
            raise allowance.refusal(report.error) from report.error
        if report.error is not None:
            raise report.error
        assert report.result is not None
        return report.result

    def _lost_call(
        self, member: PoolMember, prompt: Prompt, error: BaseException, duration_s: float
    ) -> CallRecord:
        """A call that the other process made, or was about to make, when the try ended."""
        ledger = Ledger(Budget())
        ledger.reserve(member.config, prompt, self.max_tokens, stage=self.name).fail(error)
        return ledger.calls[0].model_copy(update={"start_s": 0.0, "end_s": duration_s})


async def _awaited(response: _Response[Result]) -> Result:
    """The result; the response is cancelled with the task that awaits it. Raises: R2Error."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except Exception as e:
        raise unwrapped(e) from e


def unwrapped(error: Exception) -> R2Error:
    """The `R2Error` that the replica raised, or one for the failure of the replica itself."""
    candidates = (error, getattr(error, "cause", None))
    for candidate in candidates:
        if isinstance(candidate, R2Error) and type(candidate).__module__ == R2Error.__module__:
            return candidate
    message = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no message'}"
    for candidate in candidates:
        if isinstance(candidate, RayActorError):
            return ReplicaDied(message, None, str(candidate.actor_id))
        if isinstance(candidate, OutOfMemoryError):  # Ray's memory monitor; the message has the process id
            return ReplicaDied(message, None, str(candidate), False)
        if isinstance(candidate, BackPressureError | DeploymentUnavailableError):
            return NotStarted(message)
    return EngineUnavailable(message)
