"""`r2-train adapter`: writes the best module of a run as an adapter that `r2-serve publish` takes.

The manifest names what the adapter was trained for: the base model, the codec and its version, the data, and
the score on validation tasks. Serving refuses the adapter if the model or the codec differs.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from r2_serve.adapters import write_adapter
from r2_serve.config.prompts import prompts_sha256
from r2_serve.errors import ConfigError
from r2_serve.lab.jsonl import read_jsonl
from r2_serve.types import AdapterManifest
from r2_train.config import Module
from r2_train.run import TrainingRun
from r2_train.stages.alternate import ROUNDS, RoundRow


def write_module(run: TrainingRun, module: Module, name: str, parent: Path) -> Path:
    """Writes `best/` of the run, or the result of SFT if there is no round yet. Raises: ConfigError."""
    best = run.directory / "best" / module
    source = best if best.exists() else run.directory / module / "sft" / "final"
    if not source.exists():
        raise ConfigError(
            f"{run.directory} has no trained {module}: run `r2-train sft` or `r2-train alternate` first"
        )
    card, codec = run.described.module_model(module), run.described.codec_of(module)
    manifest = AdapterManifest(
        name=name,
        kind="lora" if (source / "adapter_config.json").is_file() else "full",
        base=card.name,
        module=module,
        codec=codec.name,
        codec_version=codec.version,
        prompts_sha256=prompts_sha256(run.described.virtual.prompts),
        data_sha256=run.tasks.sha256,
        metrics=_metrics(run.directory),
        created=datetime.datetime.now(datetime.UTC),
        trainer=f"r2-train, run {run.directory.name}",
    )
    return write_adapter(source, parent, manifest)


def _metrics(directory: Path) -> dict[str, float]:
    """The scores of the best pair on validation tasks."""
    kept = [row.score for row in read_jsonl(directory / ROUNDS, RoundRow) if row.is_kept]
    if not kept:
        return {}
    names = ("accuracy", "worker_cost_ratio", "total_cost_ratio")
    return {name: round(float(getattr(kept[-1], name)), 4) for name in names}
