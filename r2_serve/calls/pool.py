"""The model pool: each model's config, the engine that runs it, and what is known of its failures.

Engines are made on their first call. A hosted model whose key is missing must not keep the others from
serving, so a failure to make an engine is a refused call of that model, which its fallbacks may take over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from r2_serve.calls.cooldown import Cooldown
from r2_serve.calls.estimates import Prompt
from r2_serve.calls.quarantine import Quarantine
from r2_serve.calls.token_rates import TokenRate
from r2_serve.config import EngineConfig, ModelConfig, ModelServerConfig
from r2_serve.engines import make_engine
from r2_serve.errors import ConfigError, OperatorFault
from r2_serve.prompts import Codec, get_codec
from r2_serve.types import Completion, CountingEngine, Delta, Engine, EngineCall, Json, Message

EngineFor = Callable[[ModelConfig], Engine]
"""Makes the engine of a model. Raises: ConfigError."""


@dataclass
class Choices:
    """Whether a model gives several replies to one prompt (`n`), as far as its provider has shown."""

    are_taken: bool | None = None
    """None until it was asked for."""


@dataclass(frozen=True)
class PoolMember:
    """A model that can be called."""

    config: ModelConfig
    engine: Engine
    cooldown: Cooldown = field(default_factory=Cooldown)
    quarantine: Quarantine = field(default_factory=Quarantine)
    rate: TokenRate = field(default_factory=TokenRate)
    choices: Choices = field(default_factory=Choices)

    @property
    def codec(self) -> Codec:
        return get_codec(self.config.codec)

    def prompt(
        self,
        messages: Sequence[Message],
        format_sent: Mapping[str, object] | None = None,
        forwarded: Json | None = None,
    ) -> Prompt:
        """The prompt of `messages` to this model, counted as well as is known of it."""
        num_tokens = _num_prompt_tokens(self.engine, messages)
        return Prompt.to(self.config, messages, format_sent, forwarded, num_tokens=num_tokens, rate=self.rate)

    @property
    def may_take_choices(self) -> bool:
        """Whether to ask for several replies at once: a hosted model that has not refused it."""
        is_hosted = self.config.is_forwarding and "choices" in self.config.abilities
        return is_hosted and self.choices.are_taken is not False


Pool = Mapping[str, PoolMember]
"""Models by name."""


class LazyEngine:
    """An engine made on its first call, and kept."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None

    async def generate(self, call: EngineCall) -> Completion:
        return await self._made().generate(call)

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        async for delta in self._made().stream(call):
            yield delta

    def num_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        """The engine's count, once the engine is made."""
        return _num_prompt_tokens(self._engine, messages)

    async def count_tokens(self, call: EngineCall) -> int | None:
        engine = self._made()
        return await engine.count_tokens(call) if isinstance(engine, CountingEngine) else None

    def _made(self) -> Engine:
        if self._engine is None:
            try:
                self._engine = self._make()
            except ConfigError as e:
                raise OperatorFault(e.message) from e
        return self._engine


def _num_prompt_tokens(engine: Engine | None, messages: Sequence[Message]) -> int | None:
    """Tokens of the rendered conversation; None for an engine that has no tokenizer at hand."""
    count: Callable[[Sequence[Message]], int | None] | None = getattr(engine, "num_prompt_tokens", None)
    return None if count is None else count(messages)


def build_pool(models: Iterable[ModelConfig], engine_for: EngineFor) -> Pool:
    """Every model by name; `engine_for` is called on a model's first call."""
    return {model.name: PoolMember(model, LazyEngine(partial(engine_for, model))) for model in models}


def in_process_engines(model_apps: Mapping[str, ModelServerConfig]) -> EngineFor:
    """Makes engines in this process; a served model runs here by the config of its application."""

    def engine_for(model: ModelConfig) -> Engine:
        config: EngineConfig = model.engine
        if config.kind == "served":
            if config.app not in model_apps:
                raise ConfigError(
                    f"model {model.name!r} is served by application {config.app!r}, which is not in the file"
                )
            config = model_apps[config.app].engine
        return make_engine(config)

    return engine_for
