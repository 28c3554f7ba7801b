"""Synthetic books: models of known skill answer tasks of known difficulty with numbers."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

PRICES = {"tiny": (0.05, 0.05), "small": (0.1, 0.2), "middle": (0.5, 1.0), "large": (5.0, 15.0)}
SKILL = {"tiny": 0.70, "small": 0.80, "middle": 0.86, "large": 0.93}


def lines(
    num_tasks: int, models: dict[str, float] | None = None, *, seed: int = 0, missing: float = 0.0
) -> list[dict[str, object]]:
    """The lines of a `recorded` file. Wrong answers spread over few values, so that some of them agree.

    A share `missing` of the replies is not there. Hard tasks make long replies.
    """
    rng = random.Random(seed)
    skills = models or SKILL
    found: list[dict[str, object]] = []
    for number in range(num_tasks):
        name, gold, is_hard = f"task-{number}", rng.randrange(100, 999), rng.random() < 0.3
        prompt = f"How many is item {number} of {'a long and hard' if is_hard else 'an easy'} list?"
        found.append({"task": {"id": name, "prompt": prompt, "gold": str(gold)}})
        for model, skill in skills.items():
            if rng.random() < missing:
                continue
            chance = skill - 0.35 * (1 - skill) * 3 if is_hard else skill + 0.6 * (1 - skill)
            answer = gold if rng.random() < chance else gold + rng.randrange(1, 9)
            steps = "We add. " * (rng.randrange(8, 14) if is_hard else rng.randrange(3, 6))
            reply = f'{{"reasoning": "{steps}", "answer": "{answer}"}}'
            found.append({"id": name, "model": model, "prompt_chars": len(prompt), "reply": reply})
    return found


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write JSON Lines, compressed if the path ends in `.gz`."""
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def write_prices(path: Path) -> Path:
    """Write the prices of the synthetic models."""
    path.write_text("".join(f"{model}: [{into}, {out}]\n" for model, (into, out) in PRICES.items()))
    return path
