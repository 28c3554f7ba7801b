"""`r2-train retrain --ship`: replaces the embedded checkpoints by a trained pair, for maintainers of the
package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from r2_serve import EMBEDDED, EMBEDDED_CONFIG
from r2_serve.errors import ConfigError
from r2_serve.serve_config import load
from r2_train.config import MODULES, Module
from r2_train.retrain import SeedResult
from r2_train.stages.model_files import complete_checkpoint, load_tokenizer
from r2_train.tiny.evaluate_pool import MANIFEST
from r2_train.tiny.pretrain import NUM_METRIC_TASKS, evaluate
from r2_train.tiny.tiny_data import CODEC, DomainName
from r2_train.tiny.tiny_models import TinyModel

FILES = ("config.json", "generation_config.json", "model.safetensors")


def ship(run: Path, domain: DomainName, seed: int, target: Path = EMBEDDED) -> list[Path]:
    """Copies the best pair of a retrained seed to `target` and writes its origin into the manifest there.

    Every seed of `everyday` has a place of its own.

    Raises: ConfigError if a module's price in the embedded serve config does not fit its size.
    """
    if domain == "everyday":
        return ship_everyday(run, seed, target)
    result = SeedResult.model_validate_json((run / "summary.json").read_text())
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


def ship_everyday(run: Path, seed: int, target: Path = EMBEDDED) -> list[Path]:
    """Copies the pair of a retrained seed, and its pair before GRPO, to `target`/everyday/seed-N.

    `make ladder` reads all seeds, and the config serves seed 0.
    """
    manifest = json.loads((target / MANIFEST).read_text())
    result = SeedResult.model_validate_json((run / "summary.json").read_text())
    places = []
    for module in MODULES:
        sources = {module: run / "best" / module, f"sft-{module}": run / module / "sft" / "final"}
        _check_price(f"everyday-{module}", TinyModel.load(sources[module]).num_params)
        for name, source in sources.items():
            place = target / "everyday" / f"seed-{seed}" / name
            place.mkdir(parents=True, exist_ok=True)
            for file in FILES:
                shutil.copy(source / file, place / file)
            complete_checkpoint(place, load_tokenizer(str(source)))
            places.append(place)
    manifest.setdefault("everyday", {})[f"seed-{seed}"] = {
        "command": f"r2-train retrain --domain everyday --seeds {seed + 1} --out DIR",
        "cpu_seconds": round(result.cpu_seconds),
        "data_sha256": result.data_sha256,
        "accuracy": round(result.accuracy, 4),
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return places


def _check_price(name: str, num_params: int) -> None:
    price = load(EMBEDDED_CONFIG).router.model(name).usd_per_mtok_in
    if int(price * 1_000_000) != num_params:
        raise ConfigError(
            f"{name} has {num_params} parameters, but costs {price:f} USD per 1M tokens: "
            f"set {num_params / 1e6:f} in {EMBEDDED_CONFIG}"
        )


def _entry(module: Module, num_params: int, domain: DomainName, result: SeedResult) -> dict[str, object]:
    names = {"accuracy", "worker_cost_ratio", "total_cost_ratio"}
    return {
        "role": module,
        "params": num_params,
        "seed": result.seed,
        "command": f"r2-train retrain --domain {domain} --seeds {result.seed + 1} --out DIR",
        "cpu_seconds": round(result.cpu_seconds),
        "data_sha256": result.data_sha256,
        "codec": CODEC.name,
        "codec_version": CODEC.version,
        "metrics": {
            f"{split}_{name}": round(value, 4)
            for split, score in result.tests.items()
            for name, value in score.model_dump(include=names).items()
        },
    }
