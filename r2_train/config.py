"""What a training run may set: every weight, threshold and count with its default, its meaning and where it comes from.

A run is described by one YAML file (`r2_train/configs/*.yaml` are examples) and lives in one directory. Sources:
[paper] R2-Reasoner (arXiv 2506.05901), [DoT] Division-of-Thoughts (arXiv 2502.04392), [ours] everything that neither states.
Unknown keys are errors. TRL's own knobs pass through verbatim under `trainer`.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from r2_serve.config import Config, ScoreWeights
from r2_serve.grading.rows import Benchmark
from r2_serve.serve_config.sections import read_file
from r2_train.launch.stage_run import LaunchConfig

Module = Literal["decomposer", "allocator"]
MODULES: tuple[Module, ...] = ("decomposer", "allocator")


class PoolConfig(Config):
    """The served pool that plans are run on, and how it is reached."""

    serve_config: Path | None = None
    """Serve config with models, prices and routing; None: the embedded pool's."""
    virtual_model: str
    """Whose pool, decomposer and allocator are trained."""
    reference: Literal["whole-query", "same-plans"] = "whole-query"
    """What costs are divided by: the largest model on the whole query, or on every step of the plans that the run starts with."""
    reach: Literal["in-process", "serve", "http"] = "in-process"
    """`in-process`: engines in this very process. `serve`: by deployment handle on the Ray cluster that this process has
    joined. `http`: a running endpoint, pool models asked by name."""
    url: str | None = None
    """Of the endpoint, with its /v1, for `http`."""
    api_key_env: str | None = None
    module_device: str = "cpu"
    """Device of the decomposer's and the allocator's checkpoints in training, which are run in this process."""
    module_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    num_at_once: int = Field(default=256, ge=1)
    """Plans under way. [ours]"""
    call_timeout_s: float | None = Field(default=None, gt=0)
    """Of one plan; None: the routing's own deadline."""
    prices: dict[str, Decimal] = Field(default_factory=dict)
    """Other prices than the file's, USD per 1M tokens both ways, by model: for experiments. [ours]"""
    without: tuple[str, ...] = ()
    """Models left out of the pool: for experiments. [ours]"""

    @model_validator(mode="after")
    def _url_where_needed(self) -> Self:
        if (self.reach == "http") != (self.url is not None):
            raise ValueError("`url` goes with `reach: http`, and `reach: http` needs it")
        return self


class DataConfig(Config):
    """Tasks to train on. None of them is ever evaluated on: a split by task id (`r2_serve.lab.evaluation.benchmarks`)."""

    benchmark: Benchmark
    data: str = "train"
    """A generated split (`train`, `train@N`) or an official file or directory, of which the development side is used."""
    num_train: int = Field(default=2000, ge=1)
    num_validation: int = Field(default=300, ge=1)
    """Held apart from training: thresholds, checkpoints and stopping are decided on them. [ours]"""
    seed: int = 0


class CollectConfig(Config):
    """Candidate plans per task, run, graded and scored; the best correct one is kept. Source: paper, section on decomposer data."""

    num_candidates: int = Field(default=8, ge=1)
    """K plans sampled per task. [DoT stored 20; 8 is ours]"""
    temperature: float = Field(default=1.0, ge=0, le=2)
    teacher: str | None = None
    """Model that plans; None: the virtual model's decomposer."""
    executor: str | None = None
    """Model that carries out every step, and whose tokens are the plan's practicality (the paper's M_eval); None: the fallback model."""
    judge: str | None = None
    """Model that says how coherent dependent steps are, in [0, 1]; None: read off the text. [paper: judged; None is ours]"""
    weights: ScoreWeights = ScoreWeights()
    """w_c, w_p, w_d of the paper's Eq. 1. [values ours]"""


class SearchConfig(Config):
    """Grouped allocation search. Source: paper (grouped search), [DoT] (confidence quantile)."""

    probe: str | None = None
    """Model with log-probabilities whose sureness says how hard a step is; None: the pool's cheapest of group `mlm`, else its middle."""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Quantile of a step's token probabilities that stands for it. [DoT]"""
    num_thresholds: int = Field(default=8, ge=2)
    """Quantiles tried for each threshold between two groups. [ours]"""
    num_fit: int = Field(default=100, ge=1)
    """Validation plans that thresholds are fitted on. [ours]"""
    max_accuracy_loss: float = Field(default=0.01, ge=0)
    """Thresholds kept are the cheapest within this of the most accurate. [ours]"""
    num_executions: int = Field(default=1, ge=1)
    """Runs that must all be correct for a scheme to count as correct: the first greedy, the others sampled. [ours]"""
    temperature: float = Field(default=0.5, gt=0, le=2)
    """Of the sampled runs. [ours]"""
    num_plans: int | None = Field(default=None, ge=1)
    """Plans searched; None: every kept one. [ours]"""
    max_schemes: int = Field(default=24, ge=1)
    """Schemes run per plan. [ours; DoT's search took 1.2-2.5 on two tiers]"""


class SftConfig(Config):
    """Supervised fine-tuning by TRL's SFTTrainer; the loss is on the target alone."""

    base: str | None = None
    """Checkpoint to start from: a directory, `embedded:NAME` or a hub name; None: the module's model in the serve config."""
    fresh: bool = False
    """Start from random weights of the base's shape and vocabulary instead: tiny models only. [ours]"""
    lora: dict[str, Any] | None = None
    """`peft.LoraConfig` verbatim; None trains every weight. [paper: LoRA; values ours]"""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """`trl.SFTConfig` verbatim."""


class RewardConfig(Config):
    """R = 1[correct] * (K - lambda * cost/cost_ref - mu * path/path_ref) + w_f * 1[well-formed]  (+ review). [ours; paper: correctness
    and procedural review]"""

    correct: float = Field(default=1.0, gt=0)
    """K."""
    cost: float = Field(default=0.3, ge=0)
    """lambda, of the whole cost of a query (workers and the router's own calls) over the reference's."""
    critical_path: float = Field(default=0.0, ge=0)
    """mu, of the completion tokens on the longest chain of steps over the reference's: a wide plan is a fast plan."""
    well_formed: float = Field(default=0.2, ge=0)
    """w_f: what a reply that parses and is within the limits earns, right or wrong."""
    review: float = Field(default=0.0, ge=0)
    """Weight of the share of step answers that `reviewer` approves. [paper: procedural review]"""
    reviewer: str | None = None
    """Strong model of the pool; needed where `review` is above 0."""
    swap: float = Field(default=0.0, ge=0)
    """Allocator only: weight of counterfactual credit, the share of steps that fail the query when given to the next cheaper model."""
    max_failed_share: float = Field(default=0.25, ge=0, le=1)
    """Failed calls are no verdicts (`None`); if more than this share of a step's rollouts failed, training stops."""

    @model_validator(mode="after")
    def _reviewer_where_needed(self) -> Self:
        if (self.review > 0) != (self.reviewer is not None):
            raise ValueError("`reviewer` goes with a `review` above 0")
        return self


class GrpoConfig(Config):
    """GRPO by TRL's GRPOTrainer."""

    reward: RewardConfig = RewardConfig()
    lora: dict[str, Any] | None = None
    """As in SFT, for a run that starts from a full checkpoint."""
    num_prompts: int | None = Field(default=None, ge=1)
    """Training tasks that prompts are made of; None: all."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """`trl.GRPOConfig` verbatim, over the defaults of `r2_train.stages.grpo.DEFAULTS`."""


class ModuleConfig(Config):
    """How one module is trained."""

    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()


class AlternateConfig(Config):
    """Freeze one module, train the other, swap. [paper]"""

    num_rounds: int = Field(default=2, ge=0)
    order: tuple[Module, ...] = ("allocator", "decomposer")
    """Half-rounds of a round. [ours]"""
    cost_weight: float = Field(default=0.3, ge=0)
    """Checkpoints are ranked on validation by accuracy - cost_weight * total cost - path_weight * critical path, both over the reference's.
    [ours]"""
    path_weight: float = Field(default=0.0, ge=0)
    patience: int = Field(default=2, ge=1)
    """Half-rounds without a better validation score after which the run stops. [ours]"""


class TrainConfig(Config):
    """One training run."""

    seed: int = 0
    pool: PoolConfig
    data: DataConfig
    collect: CollectConfig = CollectConfig()
    search: SearchConfig = SearchConfig()
    decomposer: ModuleConfig = ModuleConfig()
    allocator: ModuleConfig = ModuleConfig()
    alternate: AlternateConfig = AlternateConfig()
    launch: LaunchConfig = LaunchConfig()
    max_cost_usd: Decimal | None = Field(default=None, gt=0)
    """Spend of the whole run directory on model calls; cached ones cost nothing."""

    def module(self, name: Module) -> ModuleConfig:
        return self.decomposer if name == "decomposer" else self.allocator


def load_config(path: Path) -> TrainConfig:
    """The run description at `path`. Raises: ConfigError listing every error with its line."""
    return read_file(path, TrainConfig)
