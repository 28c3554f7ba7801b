"""The settings of a training run: every weight, threshold and count with its default, meaning and source.

One YAML file describes a run (`r2_train/configs/*.yaml` are examples), and one directory holds it. Sources:
[paper] is R2-Reasoner (arXiv 2506.05901), [DoT] is Division-of-Thoughts (arXiv 2502.04392), [ours] is all
that neither states. Unknown keys are errors. TRL's own settings pass through verbatim under `trainer`.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from r2_serve.config import Config, ScoreWeights
from r2_serve.grading.rows import BenchmarkName
from r2_serve.serve_config.sections import read_file
from r2_train.launch.stage_run import LaunchConfig
from r2_train.trainer_fields import known_field

Module = Literal["decomposer", "allocator"]
MODULES: tuple[Module, ...] = ("decomposer", "allocator")
SftField = Annotated[str, AfterValidator(known_field("trl.SFTConfig"))]
GrpoField = Annotated[str, AfterValidator(known_field("trl.GRPOConfig"))]
LoraField = Annotated[str, AfterValidator(known_field("peft.LoraConfig"))]


class PoolConfig(Config):
    """The served pool that carries out plans, and how training reaches it."""

    serve_config: Path | None = None
    """Serve config with models, prices and routing. None takes the embedded pool's."""
    virtual_model: str
    """The virtual model whose decomposer and allocator are trained, on its pool."""
    reference: Literal["whole-query", "same-plans"] = "whole-query"
    """The cost that others are divided by: that of the largest model on the whole query, or on every step of
    the first plans."""
    reach: Literal["in-process", "serve", "http"] = "in-process"
    """`in-process`: engines in this process. `serve`: deployment handles on the Ray cluster that this process
    has joined. `http`: pool models by name at a running endpoint."""
    url: str | None = None
    """URL of the endpoint with its /v1, for `reach: http`."""
    api_key_env: str | None = None
    """Environment variable that holds the endpoint's key; None if it needs none."""
    module_device: str = "cpu"
    """Device of the decomposer's and the allocator's checkpoints, which training runs in this process."""
    module_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type of these checkpoints."""
    num_at_once: int = Field(default=256, ge=1)
    """Plans that run at the same time. [ours]"""
    call_timeout_s: float | None = Field(default=None, gt=0)
    """Seconds until a plan, or a call of it, is given up. None takes the routing's own deadline and the
    models' own `timeout_s`."""
    prices: dict[str, Decimal] = Field(default_factory=dict)
    """Prices in USD per 1M tokens (prompt and reply alike) by model, in place of the file's, for experiments.
    [ours]"""
    without: tuple[str, ...] = ()
    """Models that are left out of the pool, for experiments. [ours]"""

    @model_validator(mode="after")
    def _url_where_needed(self) -> Self:
        if (self.reach == "http") != (self.url is not None):
            raise ValueError("`url` goes with `reach: http`, and `reach: http` needs it")
        return self


class DataConfig(Config):
    """Tasks to train on. They are split by task id from the tasks that evaluation uses
    (`lab.evaluation.benchmarks`)."""

    benchmark: BenchmarkName
    """A benchmark of `r2-serve eval`; `qa` for JSONL rows of your own; or MODULE:NAME, your own benchmark."""
    grader: str | None = None
    """A grader in place of the benchmark's own: math, number, choice, text, literal or MODULE:NAME."""
    data: str = "train"
    """A generated split (`train`, `train@N`), or an official file or directory, whose development side is
    used."""
    num_train: int = Field(default=2000, ge=1)
    """Number of tasks to train on. [ours]"""
    num_validation: int = Field(default=300, ge=1)
    """Number of tasks that choose thresholds, checkpoints and the end of training. None is trained on.
    [ours]"""
    seed: int = 0
    """Seed of the choice of tasks."""


class CollectConfig(Config):
    """Several plans per task are run, graded and scored; the best correct one is kept. [paper: decomposer
    data]"""

    num_candidates: int = Field(default=8, ge=1)
    """Number of plans sampled per task, the paper's K. [DoT stored 20; 8 is ours]"""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature of the plans."""
    teacher: str | None = None
    """Model that writes the plans. None takes the virtual model's decomposer."""
    executor: str | None = None
    """Model that carries out every step, the paper's M_eval. Its tokens are the plan's practicality. A strong
    one solves the question in any plan, so it should be weak. None takes the cheapest pool model of group
    `mlm`, or else the middle one. [ours]"""
    judge: str | None = None
    """Model that rates how coherent dependent steps are, from 0 to 1. None computes it from the text. [paper:
    judged; None is ours]"""
    weights: ScoreWeights = ScoreWeights()
    """Weights w_c, w_p, w_d of the paper's Eq. 1. [values ours]"""


class SearchConfig(Config):
    """Grouped allocation search. [paper: grouped search; DoT: confidence quantile]"""

    probe: str | None = None
    """Model whose confidence tells how hard a step is; it must give log-probabilities. None takes the
    cheapest pool model of group `mlm`, or else the middle one."""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Quantile of a step's token probabilities that is taken for its confidence. [DoT]"""
    num_thresholds: int = Field(default=8, ge=2)
    """Number of quantiles tried for each threshold between two groups. [ours]"""
    num_fit: int = Field(default=100, ge=1)
    """Number of validation plans that fit the thresholds. [ours]"""
    max_accuracy_loss: float = Field(default=0.01, ge=0)
    """The cheapest thresholds are kept whose accuracy is at most this far below the best, as a fraction.
    [ours]"""
    num_executions: int = Field(default=1, ge=1)
    """Number of runs that must all be correct for a scheme to count as correct. The first is greedy, the
    others are sampled. [ours]"""
    temperature: float = Field(default=0.5, gt=0, le=2)
    """Temperature of the sampled runs. [ours]"""
    num_plans: int | None = Field(default=None, ge=1)
    """Number of plans that are searched; None searches every kept plan. [ours]"""
    max_schemes: int = Field(default=24, ge=1)
    """Most schemes that are run per plan. [ours; DoT's search took 1.2 to 2.5 on two tiers]"""


class SftConfig(Config):
    """Supervised fine-tuning by TRL's SFTTrainer. The loss covers the target alone."""

    base: str | None = None
    """Checkpoint to start from: a directory, `embedded:NAME` or a hub name. None takes the module's model in
    the serve config."""
    fresh: bool = False
    """Starts from random weights in the shape and vocabulary of the base; for tiny models only. [ours]"""
    lora: dict[LoraField, JsonValue] | None = None
    """Fields of `peft.LoraConfig`; None trains every weight. [paper: LoRA; values ours]"""
    trainer: dict[SftField, JsonValue] = Field(default_factory=dict)
    """Fields of `trl.SFTConfig`."""


class RewardConfig(Config):
    """The reward of one reply. [ours; paper: correctness and procedural review]

    R = 1[correct] * (K - lambda * cost/cost_ref - mu * path/path_ref) + w_f * 1[well-formed]  (+ review)
    """

    correct: float = Field(default=1.0, gt=0)
    """K, the reward of a correct answer before its cost."""
    cost: float = Field(default=0.3, ge=0)
    """lambda, the weight of the query's whole cost (workers and the router's own calls) over the
    reference's."""
    critical_path: float = Field(default=0.0, ge=0)
    """mu, the weight of the completion tokens on the longest chain of steps over the reference's. It favours
    wide plans, which are fast."""
    well_formed: float = Field(default=0.2, ge=0)
    """w_f, the reward of a reply that parses and keeps the limits, right or wrong."""
    review: float = Field(default=0.0, ge=0)
    """Weight of the share of step answers that `reviewer` approves. [paper: procedural review]"""
    reviewer: str | None = None
    """Strong model of the pool that reviews; needed if `review` is above 0."""
    swap: float = Field(default=0.0, ge=0)
    """Weight of counterfactual credit, for the allocator only: the share of steps that fail the query if the
    next cheaper model gets them."""
    max_failed_share: float = Field(default=0.25, ge=0, le=1)
    """A failed call gives no verdict (`None`). Training stops if more than this share of a step's rollouts
    failed."""

    @model_validator(mode="after")
    def _reviewer_where_needed(self) -> Self:
        if (self.review > 0) != (self.reviewer is not None):
            raise ValueError("`reviewer` goes with a `review` above 0")
        return self


class GrpoConfig(Config):
    """GRPO by TRL's GRPOTrainer."""

    reward: RewardConfig = RewardConfig()
    lora: dict[LoraField, JsonValue] | None = None
    """Fields of `peft.LoraConfig`, for a run that starts from a full checkpoint."""
    max_flat_steps: int | None = Field(default=32, ge=1)
    """The stage stops after so many steps in a row whose rewards do not differ within any group, because
    nothing is learned from them. None never stops. [ours]"""
    num_prompts: int | None = Field(default=None, ge=1)
    """Number of training tasks that prompts are made from; None takes all."""
    trainer: dict[GrpoField, JsonValue] = Field(default_factory=dict)
    """Fields of `trl.GRPOConfig`, over the defaults of `r2_train.stages.grpo.DEFAULTS`."""


class ModuleConfig(Config):
    """How one module is trained."""

    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()


class AlternateConfig(Config):
    """One module is frozen while the other is trained; then they swap. [paper]"""

    num_rounds: int = Field(default=2, ge=0)
    """Most rounds of `order`."""
    order: tuple[Module, ...] = ("allocator", "decomposer")
    """The half-rounds of one round. [ours]"""
    cost_weight: float = Field(default=0.3, ge=0)
    """Checkpoints are ranked on validation tasks by accuracy - cost_weight * total cost - path_weight *
    critical path. Cost and path are divided by the reference's. [ours]"""
    path_weight: float = Field(default=0.0, ge=0)
    """Weight of the critical path in this rank."""
    patience: int = Field(default=2, ge=1)
    """The run stops after this many half-rounds without a better validation score. [ours]"""


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
    markets: int = Field(default=0, ge=0)
    """Random pools and prices on which the allocator is trained per plan, beside the pool as it is. Its
    labels then come from the `skills` of the models, and GRPO draws a market for every second plan. 0 trains
    on the pool as it is, with the labels of `search`. [ours]"""
    launch: LaunchConfig = LaunchConfig()
    max_cost_usd: Decimal | None = Field(default=None, gt=0)
    """Most that model calls of the whole run directory may cost; cached calls cost nothing. None sets no
    limit."""

    def module(self, name: Module) -> ModuleConfig:
        return self.decomposer if name == "decomposer" else self.allocator


class TasksLater(TrainConfig):
    """A run description whose tasks a command names, so that the file need not name any."""

    data: DataConfig = DataConfig(benchmark="qa")


def load_config(path: Path, kind: type[TrainConfig] = TrainConfig) -> TrainConfig:
    """The run description at `path`. Raises: ConfigError listing every error with its line."""
    return read_file(path, kind)
