"""The routing, which changes while the router runs: virtual models, their modules, limits and trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from r2_serve.config.engines import Config
from r2_serve.config.gates import GateConfig
from r2_serve.config.limits import LimitsConfig
from r2_serve.config.prompts import Prompts, read_prompts
from r2_serve.config.rollout import RolloutConfig, merged
from r2_serve.config.scaling import SpillConfig
from r2_serve.config.stages import AllocatorConfig, DecomposerConfig

if TYPE_CHECKING:
    from r2_serve.config import ModelConfig


GateName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class VirtualModelConfig(Config):
    """A name clients may ask for that is routed, such as `r2`."""

    pool: tuple[str, ...] = Field(min_length=1)
    """Models that may answer subtasks, cheapest first: a compact allocator numbers them in this order."""
    decomposer: DecomposerConfig
    allocator: AllocatorConfig
    baseline: str | None = None
    """The model that savings are measured against (`x-r2-saved-usd`); None for the default model. It may be
    any of `models`, also one outside the pool."""
    default_model: str | None = None
    """Model used if no plan or no allocation can be made; None for the last of the pool, the strongest."""
    policy: str = "learned"
    """How subtasks get models if the request names no policy: `learned`, `cheapest`, `all:MODEL`, `random`;
    or `one:MODEL` and `one:auto`, which send every query whole to one model."""
    gates: dict[GateName, GateConfig] = Field(default={})
    """Gates by name. A gate may stand where a model's name may: in `policy` (`one:GATE`, `all:GATE`), in
    `whole`, in the choice of an instruct allocator, and in requests (`r2.gate`, `r2.policy`, `r2.models`)."""
    whole: str | None = None
    """A gate that answers queries which are not split. It is used where it is expected to cost less than the
    direct call. None: the default model answers them."""
    plan: Literal["auto", "always", "never"] = "auto"
    """Whether queries are split: `auto` splits one if that is expected to cost less than asking the default
    model for all of it; `never` sends each whole to one model, as the policy `one:auto` does."""
    planning_share: Decimal = Field(default=Decimal("0.1"), gt=0, le=1)
    """Most that a plan and its allocation may cost with `plan: auto`, as a share of the direct call. The bill
    exceeds that of the direct call by no more than this share, unless calls fail."""
    plan_file: str | None = None
    """What `r2-train fit RUN --planned NAME --direct NAME` wrote: JSON, at a path that every router process
    can read. With `plan: auto` it says which prompts are worth a plan. None: arithmetic alone decides, with
    lengths of answers that are assumed. It is read once, so a new fit gets a new path;
    `r2-serve publish` writes it here."""
    earlier_plan_files: tuple[str, ...] = ()
    """Files that were used before, the latest last, to which `r2-serve rollback --plan` goes back."""
    explore: float = Field(default=0.0, ge=0, le=0.5)
    """The share of choices that go to another model of the pool than the one chosen, drawn at random among
    those that are no dearer than the default model. The trace has the probability of each choice, so that
    books of served traffic give estimates for every model. 0.05 gives thirty replies of each of two other
    models in 1,200 queries. 0: nothing is drawn, as each draw may cost an answer its quality."""
    context: Literal["full", "needed", "stated"] = "full"
    """What steps read of the client's conversation. `needed`: inner steps read its system messages, and all
    of it only where the plan says that a step needs it; the allocator then reads the plan alone. `stated`:
    this holds for the last step too. `full` is the default as plans that are wrong about this give wrong
    answers."""
    fallbacks: Literal["pool", "typed"] = "pool"
    """Models asked when one is rate-limited, down or gives no answer: its own `fallbacks`, then with `pool`
    the other capable models of the pool, the next dearer ones first. `typed`: its own `fallbacks` alone.
    Where a request names the model (`r2.models`, `r2.policy`), the pool does not stand in for it."""
    spill: SpillConfig | None = None
    """None: subtasks wait for the model chosen for them."""
    prompts: Prompts | None = None
    """A YAML file with the texts of the prompts and with examples, which every router node must see; or the
    texts themselves. None: the built-in texts. Adapters name the texts that they were trained with."""
    description: str = ""
    """One line for clients that list the models."""
    example: str = ""
    """A question that shows what the model does; the page offers it to those who have none."""

    @model_validator(mode="before")
    @classmethod
    def _prompts_reach_both_modules(cls, given: object) -> object:
        if not isinstance(given, Mapping) or not (prompts := given.get("prompts")):
            return given
        texts = read_prompts(prompts) if isinstance(prompts, str) else prompts
        changed: dict[str, object] = {**given, "prompts": texts}
        for module in ("decomposer", "allocator"):
            if isinstance(section := given.get(module), Mapping):
                changed[module] = {**section, "prompts": texts}
            elif isinstance(section, Config):
                changed[module] = section.model_copy(update={"prompts": Prompts.model_validate(texts)})
        return changed

    @model_validator(mode="after")
    def _gates_resolve(self) -> Self:
        for name, gate in self.gates.items():
            if name in self.pool or name in ("auto", "request"):
                raise ValueError(f"gate {name!r} has the name of a model of the pool, or a reserved one")
            if unknown := sorted(set(gate.ask) - set(self.pool)):
                raise ValueError(f"gate {name!r} asks {unknown}: choose among the pool, {list(self.pool)}")
        if self.whole is not None and self.whole not in self.gates:
            raise ValueError(f"whole: no gate {self.whole!r}; the gates are {sorted(self.gates)}")
        return self

    @property
    def fallback_model(self) -> str:
        return self.default_model or self.pool[-1]

    @property
    def checkers(self) -> frozenset[str]:
        """The models that check the answers of gates; they need not be of the pool."""
        found = (evidence for gate in self.gates.values() for evidence in gate.accept)
        return frozenset(evidence.model for evidence in found if evidence.kind == "checker")

    @property
    def baseline_model(self) -> str:
        """The model that savings are measured against."""
        return self.baseline or self.fallback_model


class RoutingConfig(Config):
    """`user_config` of the `Router` deployment. Each request keeps the version it started with."""

    virtual_models: dict[str, VirtualModelConfig] = Field(min_length=1)
    """Virtual models by the name that clients ask for."""
    rollouts: dict[str, RolloutConfig] = Field(default={})
    """Candidates on trial, by virtual model. `r2-serve publish --shadow` and `--canary` write them."""
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _rollouts_resolve(self) -> Self:
        if unknown := sorted(self.rollouts.keys() - self.virtual_models.keys()):
            raise ValueError(f"rollouts: {unknown} are no virtual models; these are {[*self.virtual_models]}")
        for name in self.rollouts:
            self.candidate(name)
        return self

    def candidate(self, name: str) -> VirtualModelConfig:
        """The virtual model with the change of its candidate. Raises: KeyError if none is on trial."""
        written = self.virtual_models[name].model_dump(exclude_unset=True)
        return VirtualModelConfig.model_validate(merged(written, self.rollouts[name].change))

    @property
    def routers(self) -> Iterator[tuple[tuple[str, ...], VirtualModelConfig]]:
        """Every virtual model and every candidate, each with its place in the config."""
        for name, virtual in self.virtual_models.items():
            yield ("virtual_models", name), virtual
        for name in self.rollouts:
            yield ("rollouts", name, "change"), self.candidate(name)

    def check_against(self, models: tuple[ModelConfig, ...]) -> None:
        """Raises: ValueError if a name is not one of `models`."""
        known = {model.name for model in models}
        for (_, name, *_), virtual in self.routers:
            used = {*virtual.pool, virtual.decomposer.model, virtual.allocator.model, virtual.fallback_model}
            used |= virtual.checkers
            used.add(virtual.baseline_model)
            if used - known:
                raise ValueError(
                    f"virtual model {name!r} names {sorted(used - known)}; choose among {sorted(known)}"
                )
            if name in known:
                raise ValueError(f"{name!r} is both a virtual model and a pool model: rename one")
