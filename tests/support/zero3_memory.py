"""A stage that loads a model as the product's stages do, and writes down how much of it its rank holds."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from r2_serve.config import Config
from r2_train.launch.stage_run import StageRun
from r2_train.stages.model_files import load_causal_lm, settings


class LoadConfig(Config):
    """The model to load."""

    base: str


def random_model(folder: Path, num_millions: int) -> int:
    """Writes a Qwen2 of about so many parameters in bfloat16. Returns its size in float32, in bytes."""
    width = 512
    layer = 4 * width * width + 3 * width * 4 * width
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(1, num_millions * 10**6 // layer),
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def load(config: LoadConfig, run: StageRun) -> None:
    """Loads as `r2_train.stages.sft.run` does: first the trainer's settings, then the model."""
    from trl import SFTConfig

    torch.set_num_threads(1)
    args = settings(SFTConfig, run.training_arguments() | {"report_to": "none"})
    before = anonymous_bytes()
    with Peak() as peak:
        model = load_causal_lm(config.base)
    held = sum(held_bytes(parameter) for parameter in model.parameters())
    found = {"held": held, "peak": peak.bytes - before, "is_divided": args.deepspeed is not None}
    (run.directory / f"memory-{run.rank}.json").write_text(json.dumps(found))


def held_bytes(parameter: Any) -> int:
    """Bytes of the parameter that are in this process: its part under ZeRO-3, else the whole."""
    part = getattr(parameter, "ds_tensor", parameter)
    return int(part.numel() * part.element_size())


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


class Peak:
    """The most anonymous memory while it is open, by looking every few milliseconds."""

    bytes = 0

    def __enter__(self) -> Peak:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(0.002)
