"""A small Qwen2 or Llama checkpoint in plain numpy: weights, key-value cache and one forward pass.

It exists so that the shipped models need neither torch nor transformers. It computes in float32 and gives
the greedy replies of the transformers engine (a test compares them). It suits models of up to a few million
parameters.

Sources: RMSNorm (arXiv 1910.07467), rotary positions (arXiv 2104.09864), grouped queries (arXiv 2305.13245),
SwiGLU (arXiv 2002.05202), in the arrangement of Hugging Face's `modeling_qwen2` and `modeling_llama`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, deserialize

from r2_serve.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
FIRST_ROWS, FIRST_TOKENS = 4, 64
"""Size of a new cache; it doubles when it is outgrown."""


class Rope(BaseModel):
    """Rotary positions as `config.json` describes them."""

    rope_type: Literal["default"] = "default"
    rope_theta: float = 10_000.0


class Shape(BaseModel):
    """The fields of `config.json` that decide how a checkpoint is computed. Other values are refused."""

    model_type: Literal["qwen2", "llama"]
    hidden_act: Literal["silu"]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    head_dim: int | None = None
    rope_parameters: Rope = Rope()
    eos_token_id: int | list[int] | None = None
    use_sliding_window: Literal[False] = False
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


class GenerationDefaults(BaseModel):
    """The field of `generation_config.json` that ends a reply."""

    eos_token_id: int | list[int] | None = None


@dataclass(frozen=True)
class Layer:
    """The weights of one decoder layer. A matrix has the shape (inputs, outputs)."""

    attention_norm: Floats
    qkv: Floats
    """Query, key and value projections side by side."""
    qkv_bias: Floats
    out: Floats
    mlp_norm: Floats
    gate_up: Floats
    """Gate and up projections side by side."""
    down: Floats


class Cache:
    """Keys and values of the rows that are being decoded."""

    def __init__(self, shape: Shape) -> None:
        size = (
            shape.num_hidden_layers,
            2,
            FIRST_ROWS,
            shape.num_key_value_heads,
            FIRST_TOKENS,
            shape.head_size,
        )
        self.store: Floats = np.zeros(size, np.float32)
        """(layers, keys and values, rows, heads, tokens, head size). Only a row's first tokens are in use."""
        self.lengths: Ints = np.zeros(0, np.int64)
        """Tokens that each row in use holds, (B,)."""

    def add_rows(self, num_rows: int) -> None:
        """Appends empty rows."""
        self.lengths = np.pad(self.lengths, (0, num_rows))
        self._grow(2, len(self.lengths))

    def reserve(self, num_tokens: int) -> None:
        """Makes room for rows of `num_tokens` tokens."""
        self._grow(4, num_tokens)

    def drop(self, row: int) -> None:
        """Removes a row; the last row takes its place."""
        last = len(self.lengths) - 1
        self.store[:, :, row] = self.store[:, :, last]
        self.lengths[row] = self.lengths[last]
        self.lengths = self.lengths[:last]

    def _grow(self, axis: int, needed: int) -> None:
        """Doubles the store along `axis` until it holds `needed`."""
        size = self.store.shape[axis]
        if needed > size:
            more = [(0, max(needed, 2 * size) - size if i == axis else 0) for i in range(self.store.ndim)]
            self.store = np.pad(self.store, more)


class NumpyModel:
    """A causal language model. Raises: ConfigError where `folder` holds no model of a supported kind."""

    def __init__(self, folder: Path) -> None:
        self.shape = _parsed(Shape, folder / "config.json")
        self.eos_ids = _eos_ids(self.shape, folder)
        weights = _read_weights(folder)
        try:
            self._embedding = weights["model.embed_tokens.weight"]
            self._head = weights.get("lm_head.weight", self._embedding).T
            self._norm = weights["model.norm.weight"]
            self._layers = [_layer(weights, i) for i in range(self.shape.num_hidden_layers)]
        except KeyError as e:
            raise ConfigError(f"{folder} has no weight named {e}: it is no Qwen2 or Llama checkpoint") from e
        exponents = np.arange(0, self.shape.head_size, 2) / self.shape.head_size
        frequencies = np.tile(self.shape.rope_parameters.rope_theta**-exponents, 2)
        angles = np.outer(np.arange(self.shape.max_position_embeddings), frequencies)
        self._cos, self._sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def new_cache(self) -> Cache:
        return Cache(self.shape)

    def forward(self, ids: Ints, num_new: Ints, cache: Cache, first_row: int = 0) -> Floats:
        """Logits (B, V) after the last new token of each row.

        `ids` (B, T) holds the new tokens of the cache's rows from `first_row` on, padded at the right;
        `num_new` (B,) says how many of them are real. The cache keeps those.
        """
        rows = slice(first_row, first_row + len(ids))
        starts = cache.lengths[rows]
        positions = starts[:, None] + np.arange(ids.shape[1])
        end = int(positions.max()) + 1
        cache.reserve(end)
        positions = np.minimum(positions, self.shape.max_position_embeddings - 1)  # padding may lie beyond
        rotation = self._cos[positions][:, None], self._sin[positions][:, None]
        is_later = np.arange(end) > positions[:, None, None, :, None]
        hidden = self._embedding[ids]
        for layer, kept in zip(self._layers, cache.store[:, :, rows], strict=True):
            query = self._remember(layer, hidden, rotation, starts, kept)
            hidden = hidden + _attended(query, kept[:, :, :, :end], is_later) @ layer.out
            gate, up = np.split(self._rms(hidden, layer.mlp_norm) @ layer.gate_up, 2, axis=-1)
            hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ layer.down
        cache.lengths[rows] += num_new
        last = hidden[np.arange(len(ids)), num_new - 1]
        logits: Floats = self._rms(last, self._norm) @ self._head
        return logits

    def _remember(
        self, layer: Layer, hidden: Floats, rotation: tuple[Floats, Floats], starts: Ints, kept: Floats
    ) -> Floats:
        """Queries (B, heads, T, size). Writes keys and values into `kept` (2, B, heads, tokens, size)."""
        batch, steps, _ = hidden.shape
        qkv = self._rms(hidden, layer.attention_norm) @ layer.qkv + layer.qkv_bias
        heads = qkv.reshape(batch, steps, -1, self.shape.head_size).transpose(0, 2, 1, 3)
        num_queries = self.shape.num_attention_heads
        query, key, value = np.split(
            heads, [num_queries, num_queries + self.shape.num_key_value_heads], axis=1
        )
        key = _rotated(key, *rotation)
        for row, start in enumerate(starts):
            kept[0, row, :, start : start + steps] = key[row]
            kept[1, row, :, start : start + steps] = value[row]
        return _rotated(query, *rotation)

    def _rms(self, hidden: Floats, weight: Floats) -> Floats:
        mean_square = np.mean(hidden * hidden, axis=-1, keepdims=True) + np.float32(self.shape.rms_norm_eps)
        normed: Floats = hidden / np.sqrt(mean_square) * weight
        return normed


def _attended(query: Floats, kept: Floats, is_later: Bools) -> Floats:
    """Attention of `query` (B, heads, T, size) over `kept` (2, B, heads, tokens, size); (B, T, hidden)."""
    batch, num_heads, steps, size = query.shape
    keys, values = kept[:, :, :, None]
    grouped = query.reshape(batch, keys.shape[1], -1, steps, size)
    scores = grouped @ keys.swapaxes(-1, -2) / np.float32(size**0.5)
    scores[np.broadcast_to(is_later, scores.shape)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ values
    joined: Floats = mixed.reshape(batch, num_heads, steps, size).swapaxes(1, 2).reshape(batch, steps, -1)
    return joined


def _rotated(heads: Floats, cos: Floats, sin: Floats) -> Floats:
    first, second = np.split(heads, 2, axis=-1)
    rotated: Floats = heads * cos + np.concatenate([-second, first], axis=-1) * sin
    return rotated


def _layer(weights: dict[str, Floats], index: int) -> Layer:
    prefix = f"model.layers.{index}."

    def joined(group: str, names: tuple[str, ...]) -> Floats:
        return np.concatenate([weights[f"{prefix}{group}.{name}_proj.weight"].T for name in names], axis=1)

    qkv = joined("self_attn", ("q", "k", "v"))
    biases = [weights.get(f"{prefix}self_attn.{name}_proj.bias") for name in ("q", "k", "v")]
    return Layer(
        attention_norm=weights[prefix + "input_layernorm.weight"],
        qkv=qkv,
        qkv_bias=np.concatenate([b for b in biases if b is not None] or [np.zeros(qkv.shape[1], np.float32)]),
        out=joined("self_attn", ("o",)),
        mlp_norm=weights[prefix + "post_attention_layernorm.weight"],
        gate_up=joined("mlp", ("gate", "up")),
        down=joined("mlp", ("down",)),
    )


def _parsed(kind: type[M], path: Path) -> M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from e
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in e.errors())
        raise ConfigError(
            f"the numpy engine cannot run {path.parent}: {path.name} has {faults}. It runs Qwen2 and Llama "
            "checkpoints with plain rotary positions; the engines transformers and vllm run others"
        ) from e


def _eos_ids(shape: Shape, folder: Path) -> frozenset[int]:
    path = folder / "generation_config.json"
    defaults = _parsed(GenerationDefaults, path) if path.is_file() else GenerationDefaults()
    eos = defaults.eos_token_id if defaults.eos_token_id is not None else shape.eos_token_id
    if eos is None:
        raise ConfigError(f"the model in {folder} names no end-of-sequence token (eos_token_id)")
    return frozenset([eos] if isinstance(eos, int) else eos)


def _read_weights(folder: Path) -> dict[str, Floats]:
    """Every tensor of the folder's safetensors files, as float32."""
    weights: dict[str, Floats] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            weights |= {name: _as_float32(tensor) for name, tensor in deserialize(path.read_bytes())}  # type: ignore[no-untyped-call]
        except (OSError, ValueError, SafetensorError) as e:
            raise ConfigError(f"cannot read the weights {path}: {e}") from e
    if not weights:
        raise ConfigError(f"{folder} has no *.safetensors file; other formats are not loaded")
    return weights


class _Tensor(TypedDict):
    dtype: str
    shape: list[int]
    data: bytes


def _as_float32(tensor: _Tensor) -> Floats:
    """Raises: ValueError for other types. numpy lacks bfloat16, which is the upper half of a float32."""
    kind, data = tensor["dtype"], tensor["data"]
    if kind == "BF16":
        flat = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F32", "F16"):
        flat = np.frombuffer(data, np.float32 if kind == "F32" else np.float16).astype(np.float32)
    else:
        raise ValueError(f"a tensor of type {kind}; F32, F16 and BF16 are read")
    return flat.reshape(tensor["shape"])
