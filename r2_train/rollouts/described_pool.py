"""The pool as the files describe it: models, prices and routing, with the experiments of a run. It makes no
engine."""

from __future__ import annotations

from dataclasses import dataclass

from r2_serve import EMBEDDED_CONFIG
from r2_serve.config import ModelConfig, RouterConfig, RoutingConfig, VirtualModelConfig
from r2_serve.errors import ConfigError
from r2_serve.prompts import Codec, get_codec
from r2_serve.serve_config import ServeConfig, load
from r2_serve.types import ModelCard
from r2_train.config import Module, PoolConfig


@dataclass(frozen=True)
class DescribedPool:
    """What a stage must know of the pool to write examples and manifests."""

    config: RouterConfig
    routing: RoutingConfig
    virtual_model: str

    @property
    def virtual(self) -> VirtualModelConfig:
        return self.routing.virtual_models[self.virtual_model]

    @property
    def pool(self) -> tuple[str, ...]:
        """Names of the pool's models, cheapest first."""
        return self.virtual.pool

    @property
    def cards(self) -> list[ModelCard]:
        """Cards of the pool's models, in the order of `pool`."""
        return [self.config.model(name) for name in self.pool]

    @property
    def takes_conversations(self) -> bool:
        """True if every model of the pool answers a conversation, so that a plan of one step is the query."""
        return all(get_codec(card.codec).takes_conversations for card in self.cards)

    @property
    def middle(self) -> str:
        """The cheapest model of group `mlm`; in a pool without one, the middle of the pool."""
        medium = [card.name for card in self.cards if card.group == "mlm"]
        return medium[0] if medium else self.pool[len(self.pool) // 2]

    @property
    def largest(self) -> str:
        return self.virtual.fallback_model

    def module_model(self, module: Module) -> ModelConfig:
        section = self.virtual.decomposer if module == "decomposer" else self.virtual.allocator
        return self.config.model(section.model)

    def codec_of(self, module: Module) -> Codec:
        """The dialect that the module's model reads and writes, with the texts of the virtual model."""
        return get_codec(self.module_model(module).codec).with_prompts(self.virtual.prompts)


def described(config: PoolConfig) -> DescribedPool:
    """The pool that `config` describes. Raises: ConfigError."""
    router, routing = with_experiments(load(config.serve_config or EMBEDDED_CONFIG), config)
    return DescribedPool(router, routing, config.virtual_model)


def with_experiments(served: ServeConfig, config: PoolConfig) -> tuple[RouterConfig, RoutingConfig]:
    """Applies `prices`, `without` and `call_timeout_s`; training splits every query.

    Raises: ConfigError for unknown names.
    """
    router, routing = served.router, served.routing
    if config.virtual_model not in routing.virtual_models:
        raise ConfigError(
            f"pool.virtual_model  {config.virtual_model!r}: the config has {[*routing.virtual_models]}"
        )
    virtual = routing.virtual_models[config.virtual_model]
    known = [model.name for model in router.models]
    unknown = [name for name in (*config.prices, *config.without) if name not in known]
    if unknown:
        raise ConfigError(f"pool.prices or pool.without names {unknown}; the models are {known}")
    models = tuple(_priced(model, config) for model in router.models)
    kept = tuple(name for name in virtual.pool if name not in config.without)
    default = virtual.default_model if virtual.default_model in kept else None
    routing = with_virtual(routing, config, {"pool": kept, "default_model": default, "plan": "always"})
    if config.call_timeout_s is not None:
        limits = routing.limits.model_copy(update={"deadline_s": config.call_timeout_s})
        routing = routing.model_copy(update={"limits": limits})
        models = tuple(
            model.model_copy(update={"timeout_s": max(model.timeout_s, config.call_timeout_s)})
            for model in models
        )
    return router.model_copy(update={"models": models}), routing


def with_virtual(routing: RoutingConfig, config: PoolConfig, update: dict[str, object]) -> RoutingConfig:
    virtual = routing.virtual_models[config.virtual_model].model_copy(update=update)
    models = {**routing.virtual_models, config.virtual_model: virtual}
    return routing.model_copy(update={"virtual_models": models})


def _priced(model: ModelConfig, config: PoolConfig) -> ModelConfig:
    if model.name not in config.prices:
        return model
    price = config.prices[model.name]
    return model.model_copy(update={"usd_per_mtok_in": price, "usd_per_mtok_out": price})
