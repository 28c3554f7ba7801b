"""The measured skill of a worker: the share of held-out steps of each kind that it solves greedily."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.table import Table

from r2_serve.errors import ConfigError
from r2_serve.lab.domains import everyday_steps
from r2_train.tiny.tiny_data import everyday_step_example
from r2_train.tiny.tiny_models import TinyModel

NUM_STEPS = 400
"""Steps of each kind. A rate near 1 then has a standard error below half a percent."""


def held_out_steps(kind: str, num_steps: int, seed: int = 0) -> list[str]:
    """Distinct steps that no worker was trained on; any steps of a kind that is a small table."""
    rng = random.Random(f"everyday-skill/{seed}/{kind}")
    found: dict[str, None] = {}
    while len(found) < num_steps:
        text = everyday_steps.draw(kind, rng)
        if everyday_steps.is_held_out(text) or kind in everyday_steps.TABLES:
            found[text] = None
    return list(found)


def measure_pool(model_dir: Path) -> dict[str, dict[str, float]]:
    """The skills of the everyday workers in a directory. Raises: ConfigError if it has none."""
    torch.set_num_threads(1)
    path = model_dir / "manifest.json"
    pools = json.loads(path.read_text())["pools"] if path.exists() else {}
    names = [name for name in pools.get("everyday", ()) if (model_dir / name / "config.json").exists()]
    if not names:
        raise ConfigError(
            f"{model_dir} has no everyday worker: `r2-train pretrain --domain everyday` makes them"
        )
    return {name: everyday_skills(TinyModel.load(model_dir / name)) for name in names}


def skill_table(skills: Mapping[str, Mapping[str, float]]) -> Table:
    """A row per model, a column per kind of step, in percent."""
    table = Table(title=f"steps solved, in % of {NUM_STEPS} held-out steps of each kind")
    table.add_column("model")
    for kind in everyday_steps.KINDS:
        table.add_column(kind, justify="right")
    for name, rates in skills.items():
        table.add_row(name, *(f"{100 * rates[kind]:.1f}" for kind in everyday_steps.KINDS))
    return table


def everyday_skills(worker: TinyModel, seed: int = 0, num_steps: int = NUM_STEPS) -> dict[str, float]:
    """The worker's solve rate by kind of step."""
    rates = {}
    for kind in everyday_steps.KINDS:
        solved = worker.solves([everyday_step_example(t) for t in held_out_steps(kind, num_steps, seed)])
        rates[kind] = sum(solved) / len(solved)
    return rates
