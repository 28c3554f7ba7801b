"""`r2-train plan`: what each stage will hold on a GPU, computed before anything starts.

Estimates from the shape of the model, in bytes, for the longest sequences that the settings allow:

- weights, and vLLM's copy of them inside its share: 2 per parameter in bfloat16; ZeRO-3 divides the first
- what is trained: weight, gradient and AdamW's two moments in float32, 16 per parameter; ZeRO divides
  gradients and moments
- activations: with gradient checkpointing 2 h per token and layer, and one layer whole; a whole layer holds
  34 h per token (Korthikanti et al. 2022, "Reducing activation recomputation", without attention scores)
- logits: 12 per token and word of the vocabulary in SFT (bfloat16, float32 and their gradients), 8 in GRPO
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from r2_serve.engines import is_local_checkpoint, resolve_checkpoint
from r2_serve.errors import ConfigError
from r2_train.config import MODULES, Module, TrainConfig
from r2_train.stages import grpo, sft

GIB = 2**30
PROMPT_TOKENS = 1024
"""Tokens of a GRPO prompt that are assumed: TRL has no limit for them."""
RESERVE_GIB = 2.0
RESERVE_SHARE = 0.05
"""CUDA's context, and what fragmentation loses of everything else."""
WAITING = 8
"""vLLM's cache must hold so many sequences of the longest length."""


class Shape(BaseModel):
    """What a model's `config.json` says of its size; Llama, Qwen2 and alike."""

    model_config = ConfigDict(extra="ignore")
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    head_dim: int | None = None

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of one block."""
        h, width = self.hidden_size, self.head_dim or self.hidden_size // self.num_attention_heads
        heads, keys = width * self.num_attention_heads, width * self.num_key_value_heads
        wide = self.intermediate_size
        return [(h, heads), (h, keys), (h, keys), (heads, h), (h, wide), (h, wide), (wide, h)]

    @property
    def num_parameters(self) -> int:
        words = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return words + self.num_hidden_layers * sum(a * b + b for a, b in self.linears)

    def num_lora(self, rank: int) -> int:
        return rank * self.num_hidden_layers * sum(a + b for a, b in self.linears)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key-value cache per token, in bfloat16."""
        width = self.head_dim or self.hidden_size // self.num_attention_heads
        return 2 * 2 * self.num_hidden_layers * self.num_key_value_heads * width


def _qwen(hidden: int, layers: int, heads: int, keys: int, wide: int, vocabulary: int, tied: bool) -> Shape:
    return Shape(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=keys,
        intermediate_size=wide, vocab_size=vocabulary, tie_word_embeddings=tied,
    )  # fmt: skip


KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(896, 24, 14, 2, 4864, 151936, True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(1536, 28, 12, 2, 8960, 151936, True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(2048, 36, 16, 2, 11008, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(3584, 28, 28, 4, 18944, 152064, False),
    "Qwen/Qwen2.5-14B-Instruct": _qwen(5120, 48, 40, 8, 13824, 152064, False),
    "meta-llama/Llama-3.1-8B-Instruct": _qwen(4096, 32, 32, 8, 14336, 128256, False),
}
"""Shapes of models that need not be downloaded for a plan; from their published `config.json`."""


def shape_of(base: str) -> Shape:
    """The shape of a checkpoint on this machine, or of a known name. Raises: ConfigError."""
    if not is_local_checkpoint(base):
        if base in KNOWN:
            return KNOWN[base]
        raise ConfigError(f"the shape of {base!r} is not known: download it, and name its directory")
    path = Path(resolve_checkpoint(base)) / "config.json"
    try:
        return Shape.model_validate(json.loads(path.read_text()))
    except (OSError, ValidationError) as e:
        raise ConfigError(f"cannot read the shape of {base!r} from {path}: {e}") from e


@dataclass(frozen=True)
class Rollouts:
    """GiB of a vLLM on the card of the policy; none without one."""

    share: float = 0.0
    """Its share of the card, with its own copy of the weights."""
    needed: float = 0.0
    """The least that it needs: its weights, and the cache of `WAITING` sequences."""
    is_sleeping: bool = False
    """True if it frees its share while the policy is trained."""


@dataclass(frozen=True)
class StageMemory:
    """GiB of one stage on each worker's GPU."""

    module: Module
    stage: Literal["sft", "grpo"]
    weights: float
    trained: float
    activations: float
    logits: float
    rollouts: Rollouts

    @property
    def total(self) -> float:
        """The peak: while replies are sampled, or while the policy is trained."""
        kept = self.weights + self.trained
        sampling = kept + self.rollouts.share
        training = kept + self.activations + self.logits
        if not self.rollouts.is_sleeping:
            training += self.rollouts.share
        return max(sampling, training) * (1 + RESERVE_SHARE) + RESERVE_GIB

    def faults(self, card_gib: float) -> Iterator[str]:
        """Why the stage does not fit, with what can be changed."""
        where = f"{self.module} {self.stage}"
        share, needed = self.rollouts.share, self.rollouts.needed
        if share < needed:
            yield (
                f"{where}: vLLM's share of {share:.1f} GiB is less than its weights and the cache of "
                f"{WAITING} sequences, {needed:.1f} GiB: raise vllm_gpu_memory_utilization "
                "or vllm_tensor_parallel_size"
            )
        if self.total > card_gib:
            yield (
                f"{where}: {self.total:.1f} GiB do not fit a card of {card_gib:g} GiB: lower "
                "per_device_train_batch_size (and raise gradient_accumulation_steps), set "
                "gradient_checkpointing, vllm_enable_sleep_mode or zero3"
            )


def plan_of(config: TrainConfig, bases: dict[Module, str]) -> list[StageMemory]:
    """The memory of every stage. `bases` are the checkpoints that the modules start from."""
    return [
        _memory(config, module, stage, shape_of(bases[module]))
        for module in MODULES
        for stage in cast("tuple[Literal['sft', 'grpo'], ...]", ("sft", "grpo"))
    ]


def _memory(config: TrainConfig, module: Module, stage: Literal["sft", "grpo"], shape: Shape) -> StageMemory:
    own, launch = config.module(module), config.launch
    is_grpo = stage == "grpo"
    set_here = own.grpo.trainer if is_grpo else own.sft.trainer
    trainer: Mapping[str, object] = {**(grpo.DEFAULTS if is_grpo else sft.DEFAULTS), **set_here}
    batch = _number(trainer, "per_device_train_batch_size", 8)
    written = _number(trainer, "max_completion_length", 256)
    length = PROMPT_TOKENS + written if is_grpo else _number(trainer, "max_length", 1024)
    workers = launch.num_workers
    divided = workers if launch.deepspeed == "zero3" else 1
    lora = own.sft.lora or (own.grpo.lora if is_grpo else None)
    num_trained = shape.num_parameters if lora is None else shape.num_lora(_number(lora, "r", 8))
    states = 4 / divided + 12 / (workers if launch.deepspeed else 1)
    tokens, h = batch * length, shape.hidden_size
    whole_layers, kept = shape.num_hidden_layers, 0
    if trainer.get("gradient_checkpointing"):
        whole_layers, kept = 1, 2 * h * shape.num_hidden_layers
    return StageMemory(
        module=module,
        stage=stage,
        weights=2 * shape.num_parameters / divided / GIB,
        trained=num_trained * states / GIB,
        activations=tokens * (34 * h * whole_layers + kept) / GIB,
        logits=(8 * batch * written if is_grpo else 12 * tokens) * shape.vocab_size / GIB,
        rollouts=_rollouts(trainer, shape, length, launch.gpu_memory_gib) if is_grpo else Rollouts(),
    )


def _rollouts(trainer: Mapping[str, object], shape: Shape, length: int, card_gib: float) -> Rollouts:
    if not trainer.get("use_vllm") or trainer.get("vllm_mode", "colocate") != "colocate":
        return Rollouts()
    share = trainer.get("vllm_gpu_memory_utilization", 0.3)
    needed = 2 * shape.num_parameters + WAITING * length * shape.cache_bytes
    return Rollouts(
        share=card_gib * (share if isinstance(share, int | float) else 0.3),
        needed=needed / _number(trainer, "vllm_tensor_parallel_size", 1) / GIB,
        is_sleeping=bool(trainer.get("vllm_enable_sleep_mode")),
    )


def _number(settings: Mapping[str, object], name: str, default: int) -> int:
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def memory_table(plan: list[StageMemory], card_gib: float) -> Table:
    """A column per stage."""
    table = Table(title=f"GiB on each worker's GPU of {card_gib:g} GiB, at the longest sequences")
    table.add_column("")
    for stage in plan:
        table.add_column(f"{stage.module}\n{stage.stage}", justify="right")
    rows = {
        "weights": [stage.weights for stage in plan],
        "trained: weights, gradients, AdamW": [stage.trained for stage in plan],
        "activations": [stage.activations for stage in plan],
        "logits": [stage.logits for stage in plan],
        "vLLM's share": [stage.rollouts.share for stage in plan],
        "of which it needs": [stage.rollouts.needed for stage in plan],
        "peak, with a reserve": [stage.total for stage in plan],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.1f}" if value else "-" for value in values))
    table.add_row("fits", *("no" if list(stage.faults(card_gib)) else "yes" for stage in plan))
    return table
