"""`run.json`: what a run directory holds the results of. A run goes on only under the very same manifest.

Two runs whose manifests agree may share rows: same tasks, policies, prices, code and models. Anything else is
refused with the name of what differs, because a table whose rows come from two programs says nothing about
either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from r2_serve.config import ModelServerConfig, RouterConfig, RoutingConfig
from r2_serve.engines import EMBEDDED_PREFIX, resolve_checkpoint
from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.benchmarks import Split
from r2_serve.lab.evaluation.desk import Setting
from r2_serve.lab.evaluation.policies import PolicyConfig
from r2_serve.lab.evaluation.rows import ROWS
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.runs import RunError, put_aside
from r2_serve.types import ModelCard, ModelGroup, Record

MANIFEST = "run.json"
HOSTED_KINDS = ("openai", "azure")
"""Kinds of engines that send bills."""


class PoolModel(Record):
    """A model as a report needs it."""

    name: str
    is_hosted: bool
    """True behind an API that sends bills; local models have a price too, but none that is paid."""
    group: ModelGroup
    usd_per_mtok_in: Decimal
    usd_per_mtok_out: Decimal


class Manifest(Record):
    """The contents of `run.json`."""

    benchmark: str
    """A benchmark by name, or MODULE:NAME of one of the user's own."""
    grader: str | None = None
    """The grader in place of the benchmark's own."""
    data: str
    """File, directory or generated split, as the command named it."""
    data_sha256: str
    """Hash of the selected tasks: ids, queries and rows."""
    num_tasks: int
    split: Split
    limit: int | None
    policies: tuple[str, ...]
    policy_config: PolicyConfig
    seed: int
    virtual_model: str
    pool: tuple[str, ...]
    models: tuple[PoolModel, ...]
    prices_as_of: str
    endpoint: str | None
    """URL of the endpoint; None for a router in the process of the run."""
    config_sha256: str
    """Hash of the Serve config, and of the embedded checkpoints that it names."""
    code_version: str

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the manifest of a run. Raises: RunError."""
        path = directory / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as e:
            raise RunError(f"{directory} is not a run: {path.name} cannot be read ({e.strerror})") from e
        except ValidationError as e:
            raise RunError(f"{path} is not a manifest: {e.errors()[0]['msg']}") from e

    def claim(self, directory: Path) -> None:
        """Take `directory` for this run, or check that it is this run's. Raises: RunError."""
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / MANIFEST).exists():
            self.check(directory)
        else:
            write_whole(directory / MANIFEST, self.model_dump_json(indent=2))

    def check(self, directory: Path) -> None:
        """Raises: RunError naming the differences if the directory holds another run."""
        differences = _differences(Manifest.read(directory), self) if (directory / MANIFEST).exists() else []
        if differences:
            ways = (
                "choose another --out, keep that run with --set-aside, or go back to what it was started with"
            )
            raise RunError("\n  ".join([f"{directory} holds another run; {ways}:", *differences]))


def set_aside_other_run(directory: Path, manifest: Manifest) -> Path | None:
    """Rename `directory` if it holds another run than that of `manifest`; the new name, or None.

    Raises: RunError if the other run is under way.
    """
    if not (directory / MANIFEST).exists() or not _differences(Manifest.read(directory), manifest):
        return None
    with JsonlLog(directory / ROWS):
        return put_aside(directory)


def pool_models(config: RouterConfig) -> tuple[PoolModel, ...]:
    return tuple(
        PoolModel(
            name=model.name,
            is_hosted=model.engine.kind in HOSTED_KINDS,
            group=model.group,
            usd_per_mtok_in=model.usd_per_mtok_in,
            usd_per_mtok_out=model.usd_per_mtok_out,
        )
        for model in config.models
    )


def setting_of(config: RouterConfig, routing: RoutingConfig, virtual_model: str, seed: int = 0) -> Setting:
    """What policies may know of a virtual model. Raises: ConfigError if there is no such virtual model."""
    if virtual_model not in routing.virtual_models:
        names = ", ".join(routing.virtual_models)
        raise ConfigError(f"no virtual model {virtual_model!r}; choose one of {names}")
    cards: dict[str, ModelCard] = {model.name: model for model in config.models}
    pool = routing.virtual_models[virtual_model].pool
    return Setting(virtual_model, pool, cards, routing.limits.max_subtasks, seed)


def default_virtual_model(routing: RoutingConfig, benchmark: str) -> str:
    """`r2-BENCHMARK` if the config has it, else the first virtual model."""
    own = f"r2-{benchmark}"
    return own if own in routing.virtual_models else next(iter(routing.virtual_models))


# -- hashes --------------------------------------------------------------------------------------------------


def data_sha256(tasks: Sequence[Task]) -> str:
    lines = (json.dumps([task.id, task.query, task.row], sort_keys=True, default=str) for task in tasks)
    return _sha256(f"{line}\n".encode() for line in lines)


def config_sha256(
    config: RouterConfig, routing: RoutingConfig, model_apps: dict[str, ModelServerConfig]
) -> str:
    """Hash of what decides answers and costs: embedded checkpoints by content, other models by name."""
    sections = [
        config.model_dump_json(),
        routing.model_dump_json(),
        *(f"{k}={v.model_dump_json()}" for k, v in sorted(model_apps.items())),
    ]
    paths = sorted({getattr(app.engine, "path", "") for app in model_apps.values()})
    weights = (
        file.read_bytes()
        for path in paths
        if path.startswith(EMBEDDED_PREFIX)
        for file in sorted(Path(resolve_checkpoint(path)).iterdir())
        if file.is_file()
    )
    return _sha256((*(section.encode() for section in sections), *weights))


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _differences(old: Manifest, new: Manifest) -> list[str]:
    was, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [
        f"{name}: was {_short(was[name])}, now {_short(now[name])}" for name in was if was[name] != now[name]
    ]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
