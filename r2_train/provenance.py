"""What each stage of a run was made from, so that a changed setting has only the stages made again that
depend on it.

`made_from.json` of the run's directory has the facts of each stage: its settings, and hashes of what it
reads. Results that other facts made are set aside (`NAME.old-1`), never deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, JsonValue
from rich.console import Console

from r2_serve.config import ModelConfig
from r2_serve.engines import EMBEDDED_PREFIX, is_local_checkpoint, resolve_checkpoint
from r2_serve.files import write_whole
from r2_serve.lab.evaluation.identity import weights_sha256
from r2_serve.types import Record
from r2_train.rollouts.described_pool import DescribedPool

MADE_FROM = "made_from.json"
Facts = Mapping[str, JsonValue]
SHOWN = 5
"""So many changed facts are named."""


@dataclass(frozen=True)
class Provenance:
    """The facts of the stages in one run's directory."""

    directory: Path
    console: Console

    def renew(self, stage: str, facts: Facts, result: Path) -> None:
        """Sets `result` aside if other facts made it, and notes the present ones.

        A result without noted facts is of an earlier version, and is taken for current.
        """
        known = self._read()
        if result.exists() and (changed := differences(known.get(stage, facts), facts)):
            aside = set_aside(result)
            self.console.print(f"{stage} is made again, as {changed} changed; the old one is {aside}")
        if known.get(stage) != facts:
            write_whole(self.directory / MADE_FROM, json.dumps({**known, stage: facts}, indent=2) + "\n")

    def note_if_stale(self, stage: str, facts: Facts) -> None:
        """Says if a stage that is read was made from other facts."""
        if changed := differences(self._read().get(stage, facts), facts):
            self.console.print(f"{changed} changed since {stage} was made: `r2-train {stage}` makes it again")

    def _read(self) -> dict[str, Facts]:
        path = self.directory / MADE_FROM
        return json.loads(path.read_text()) if path.exists() else {}


def differences(old: Facts, new: Facts) -> str:
    """The names of the facts that differ; empty if none does."""
    before, now = _flat(old), _flat(new)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    more = f" and {len(changed) - SHOWN} others" if len(changed) > SHOWN else ""
    return ", ".join(changed[:SHOWN]) + more


def digest(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sha256_of(records: Iterable[Record]) -> str:
    """The hash of records in their order."""
    found = hashlib.sha256()
    for record in records:
        found.update(record.model_dump_json().encode() + b"\n")
    return found.hexdigest()


def set_aside(path: Path) -> Path:
    """Renames `path`. Returns its new name."""
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.old-{n}").exists())
    return path.rename(path.with_name(f"{path.name}.old-{number}"))


def pool_facts(pool: DescribedPool, *, with_prices: bool) -> dict[str, JsonValue]:
    """What decides the answers and, with prices, the costs of a pool."""
    virtual, limits = pool.virtual, pool.routing.limits
    models = [*pool.pool, virtual.decomposer.model, virtual.allocator.model]
    described = {name: _model_facts(pool.config.model(name), with_prices) for name in dict.fromkeys(models)}
    return {"models": described, "virtual_model": dumped(virtual), "limits": dumped(limits)}


def checkpoint_facts(path: str | Path) -> JsonValue:
    """The hash of the weights of a checkpoint on this machine; the name of another one."""
    name = str(path)
    return weights_sha256(Path(resolve_checkpoint(name))) if is_local_checkpoint(name) else name


def dumped(settings: BaseModel) -> dict[str, JsonValue]:
    return settings.model_dump(mode="json")


def _model_facts(model: ModelConfig, with_prices: bool) -> JsonValue:
    facts = {key: value for key, value in dumped(model).items() if with_prices or not key.startswith("usd_")}
    engine = model.engine.runs if model.engine.kind == "served" else model.engine
    path = getattr(engine, "path", "")
    return {**facts, "weights": checkpoint_facts(path)} if path.startswith(EMBEDDED_PREFIX) else facts


def _flat(facts: Facts, prefix: str = "") -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
