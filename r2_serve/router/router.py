"""The router as the HTTP layer sees it: a pipeline with its names, prices and readiness. No Ray, no torch.

`in_process` builds one without a cluster, with every engine in this process, for batch evaluation and dry
runs."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

from pydantic import ValidationError

from r2_serve.calls.budget import Purse
from r2_serve.calls.estimates import Prompt
from r2_serve.calls.pool import EngineFor, build_pool
from r2_serve.config import RouterConfig, RoutingConfig
from r2_serve.errors import ConfigError, EngineUnavailable, R2Error
from r2_serve.feedback import Rated
from r2_serve.router.allocator import Allocator
from r2_serve.router.backend import ModelListing
from r2_serve.router.decomposer import Decomposer
from r2_serve.router.events import EventBus
from r2_serve.router.pipeline import Pipeline, Sink
from r2_serve.router.trials import PurseFor, Trials, apart, in_memory
from r2_serve.traces import latest_traces
from r2_serve.types import Ability, Answer, CountingEngine, EngineCall, OnDelta, Query

Readiness = Callable[[RoutingConfig], Awaitable[tuple[bool, str]]]
"""Says whether each virtual model can be answered, and what is not well."""


def _virtual_abilities(pool: Iterable[frozenset[Ability]]) -> frozenset[Ability]:
    """What a virtual model can do: all that its pool can, but no embeddings; and it answers a prompt of text
    completions as the message of a conversation."""
    extra = frozenset[Ability]({"completions"})
    return extra.union(*pool) - {"embeddings"}


class Router:
    """A `RouterBackend`. Until it has a routing, it is not ready and answers no query."""

    def __init__(
        self,
        config: RouterConfig,
        make_pipeline: Callable[[RoutingConfig], Pipeline],
        readiness: Readiness | None = None,
        shadow_purse: PurseFor = in_memory,
    ) -> None:
        self.prices_as_of = config.prices_as_of
        self.events = EventBus(config.server.events.recent)
        if config.server.trace_dir is not None:
            for trace in latest_traces(Path(config.server.trace_dir), config.server.events.recent):
                self.events.past(trace)
        self._config, self._make_pipeline, self._readiness = config, make_pipeline, readiness
        self._pipeline: Pipeline | None = None
        self._shadow_purse = shadow_purse
        self.trials: Trials | None = None
        """The candidates on trial; None until there is a routing."""
        self._listings: tuple[ModelListing, ...] = ()

    def route_by(self, routing: RoutingConfig) -> None:
        """Use `routing` for all later queries. Raises: ConfigError, and the old routing stays."""
        try:
            routing.check_against(self._config.models)
        except ValueError as e:
            raise ConfigError(str(e)) from e
        pipeline, trials = self._pipeline, self.trials
        if pipeline is None or trials is None:
            pipeline, trials = self._made(routing)
        pipeline.route_by(routing)
        trials.route_by(routing)
        self._pipeline, self.trials = pipeline, trials
        abilities = {model.name: model.abilities for model in self._config.models}
        virtual = (
            ModelListing(
                name,
                True,
                model.description,
                model.example,
                abilities=_virtual_abilities([abilities[name] for name in model.pool]),
                gates=tuple(model.gates),
            )
            for name, model in routing.virtual_models.items()
        )
        real = (
            ModelListing(model.name, False, model.description, card=model, abilities=abilities[model.name])
            for model in self._config.models
        )
        self._listings = (*virtual, *real)

    def _made(self, routing: RoutingConfig) -> tuple[Pipeline, Trials]:
        pipeline = replace(self._make_pipeline(routing), events=self.events)
        trials = Trials(apart(pipeline), self._shadow_purse)
        pipeline.sinks = trials.shadows.sinks = [*pipeline.sinks, trials.observe]
        pipeline.sinks = [*pipeline.sinks, self.events.past]
        return pipeline, trials

    @property
    def deadline_s(self) -> float:
        return math.inf if self._pipeline is None else self._pipeline.routing.limits.deadline_s

    def models(self) -> Sequence[ModelListing]:
        return self._listings

    async def answer(
        self, query: Query, on_delta: OnDelta | None = None, purse: Purse | None = None
    ) -> Answer:
        if self._pipeline is None or self.trials is None:
            raise EngineUnavailable("the router has no routing yet: give the Router deployment a user_config")
        query = self.trials.assigned(query)
        try:
            answer = await self._pipeline.answer(query, on_delta, purse)
        except R2Error as e:
            if e.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                self.trials.follow(query)
            raise
        self.trials.follow(query)
        return answer

    def rated(self, rated: Rated) -> None:
        """A client has rated an answer."""
        if self.trials is not None:
            self.trials.rate(rated.model, rated.candidate, rated.arm, rated.rating.score)

    async def count_tokens(self, query: Query) -> int:
        """A virtual model's plan is not known yet, so that its count is an estimate, as for local models."""
        sampling = query.sampling
        asked = (query.messages, sampling.format_sent, sampling.forwarded)
        member = None if self._pipeline is None else self._pipeline.pool.get(query.model)
        if member is None:
            return Prompt(*asked).likely_prompt_tokens
        if isinstance(member.engine, CountingEngine):
            timeout_s = member.config.timeout_s
            call = EngineCall(messages=query.messages, sampling=sampling, timeout_s=timeout_s)
            if (count := await member.engine.count_tokens(call)) is not None:
                return count
        return member.prompt(*asked).likely_prompt_tokens

    async def ready(self) -> tuple[bool, str]:
        if self._pipeline is None:
            return False, "no routing yet: the Router deployment has had no user_config"
        return (True, "") if self._readiness is None else await self._readiness(self._pipeline.routing)


def parse_routing(user_config: object) -> RoutingConfig:
    """Raises: ConfigError with the key at fault."""
    try:
        return RoutingConfig.model_validate(user_config)
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(f"user_config of Router: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def in_process(
    config: RouterConfig, routing: RoutingConfig, engine_for: EngineFor, sinks: Sequence[Sink] = ()
) -> Router:
    """A router whose decomposer, allocator and engines live in this process."""
    pool = build_pool(config.models, engine_for)
    router = Router(config, lambda given: Pipeline(pool, given, Decomposer(pool), Allocator(pool), sinks))
    router.route_by(routing)
    return router
