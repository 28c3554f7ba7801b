"""Puts a trained pair in the place of the shipped one: `r2-train retrain --ship`, for whoever maintains the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from r2_serve import EMBEDDED, EMBEDDED_CONFIG
from r2_serve.errors import ConfigError
from r2_serve.serve_config import load
from r2_train.config import MODULES
from r2_train.stages.model_files import complete_checkpoint, load_tokenizer
from r2_train.tiny.evaluate_pool import MANIFEST
from r2_train.tiny.pretrain import evaluate
from r2_train.tiny.tiny_data import CODEC, DomainName
from r2_train.tiny.tiny_models import TinyModel

FILES = ("config.json", "generation_config.json", "model.safetensors")
NUM_METRIC_TASKS = 1000


def ship(run: Path, domain: DomainName, target: Path = EMBEDDED) -> list[Path]:
    """Copies the best pair of a retrained seed over the checkpoints of `target`, and says in their manifest what made them.

    Raises: ConfigError where a module has another number of parameters than its price in the embedded serve config says.
    """
    result = json.loads((run / "summary.json").read_text())
    manifest = json.loads((target / MANIFEST).read_text())
    places = []
    for module in MODULES:
        name, source = f"{domain}-{module}", run / "best" / module
        num_params = TinyModel.load(source).num_params
        _check_price(name, num_params)
        for file in FILES:
            shutil.copy(source / file, target / name / file)
        complete_checkpoint(target / name, load_tokenizer(str(source)))
        manifest["models"][name] = _entry(module, num_params, domain, result)
        places.append(target / name)
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    evaluate(domain, target, num_tasks=NUM_METRIC_TASKS)
    return places


def _check_price(name: str, num_params: int) -> None:
    price = load(EMBEDDED_CONFIG).router.model(name).usd_per_mtok_in
    if int(price * 1_000_000) != num_params:
        raise ConfigError(
            f"{name} has {num_params} parameters, but costs {price:f} USD per 1M tokens: set {num_params / 1e6:f} in {EMBEDDED_CONFIG}"
        )


def _entry(module: str, num_params: int, domain: DomainName, result: dict[str, Any]) -> dict[str, object]:
    tests = {
        f"{split}_{name}": round(score[name], 4)
        for split, score in result["tests"].items()
        for name in ("accuracy", "worker_cost_ratio", "total_cost_ratio")
    }
    return {
        "role": module,
        "params": num_params,
        "seed": result["seed"],
        "command": f"r2-train retrain --domain {domain} --seeds {result['seed'] + 1} --out DIR",
        "cpu_seconds": round(result["cpu_seconds"]),
        "data_sha256": result["data_sha256"],
        "codec": CODEC.name,
        "codec_version": CODEC.version,
        "metrics": tests,
    }
