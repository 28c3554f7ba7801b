"""The stages that plan: how queries become plans, and how subtasks get models."""

from __future__ import annotations

from pydantic import Field

from r2_serve.config.engines import Config
from r2_serve.config.prompts import Prompts


class ScoreWeights(Config):
    """Weights of a plan's score, lower is better (R2-Reasoner, Eq. 1); the paper does not state its own."""

    conciseness: float = Field(default=1 / 3, ge=0)
    practicality: float = Field(default=1 / 3, ge=0)
    coherence: float = Field(default=1 / 3, ge=0)


class DecomposerConfig(Config):
    """How queries become plans."""

    model: str
    """The model that decomposes: any of `models`."""
    adapter: str | None = None
    """Adapter of that model; None for the model itself."""
    num_samples: int = Field(default=3, ge=1, le=16)
    """Most plans that are sampled for a query; the best valid one is kept. The paper samples 3."""
    good_enough: float | None = Field(default=0.25, ge=0)
    """Plans are sampled one after the other, and the first valid one ends the sampling whose faults per step
    are at most this. A step that does not name an answer it needs and an answer that nothing uses are one
    fault each: 0.25 allows one in four steps. None: all are sampled at once, and all are paid for."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Temperature of the samples, so that they differ. Where they come one after the other the first is
    greedy, as it is the most likely to be good, and so is a single one."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest plan; it holds `limits.max_subtasks` steps of one sentence each."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds for all samples together; samples that are not back by then count as rejected."""
    retries_cut: bool = True
    """Whether a plan that is cut at `max_tokens` is asked for once more with more room."""
    allocates: bool = False
    """Whether the same reply gives each step its model, so that no allocator is asked: one prompt in place of
    two. Off by default as a decomposer must be good at both. A plan that a client brings is still allocated
    by the allocator, and gates are not among the choices."""
    pool: tuple[str, ...] = ()
    """Models among which it chooses with `allocates`: `pool` of the virtual model, which sets this."""
    prompts: Prompts | None = None
    """Texts of the prompt: `prompts` of the virtual model, which sets this."""
    weights: ScoreWeights = ScoreWeights()

    @property
    def num_at_once(self) -> int:
        """Samples that are under way at a time."""
        return self.num_samples if self.good_enough is None else 1


class AllocatorConfig(Config):
    """How subtasks get models."""

    model: str
    """The model that allocates: any of `models`."""
    adapter: str | None = None
    """Adapter of that model; None for the model itself."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest allocation; it holds a model name for each of `limits.max_subtasks` steps."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds for the allocation; after that every subtask goes to the default model."""
    retries_cut: bool = True
    """Whether an allocation that is cut at `max_tokens` is asked for once more with more room."""
    prompts: Prompts | None = None
    """Texts of the prompt: `prompts` of the virtual model, which sets this."""
