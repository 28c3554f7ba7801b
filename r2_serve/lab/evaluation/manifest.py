"""`run.json`: what a run directory holds the results of.

Two runs may share rows where their manifests agree: same data, prices, code and models. A run may grow:
further policies, and a larger limit, which draws the same tasks and more. With `--reprice` its prices may
change, with `--regrade` its grader and the code. Anything else is refused with the name of what differs,
because a table whose rows come from two programs says nothing about either.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, ValidationError

from r2_serve.config import (
    HostedEngineConfig,
    ModelConfig,
    ModelServerConfig,
    RecordedEngineConfig,
    RouterConfig,
    RoutingConfig,
)
from r2_serve.engines import EMBEDDED_PREFIX, resolve_checkpoint
from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.benchmarks import Split, sample_tasks
from r2_serve.lab.evaluation.desk import Setting
from r2_serve.lab.evaluation.policies import PolicyConfig
from r2_serve.lab.evaluation.rows import ROWS
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.runs import RunError, code_version, machine, packages, put_aside
from r2_serve.types import ModelCard, ModelGroup, Prices, Record

MANIFEST, BOOK = "run.json", "book.jsonl"
Revision = Literal["prices", "grades"]
"""What may be done anew in the rows of a run, without a call."""
REVISIONS: dict[Revision, frozenset[str]] = {
    "prices": frozenset({"models", "prices_as_of", "prices_sha256"}),
    "grades": frozenset({"grader", "code_version", "data_sha256"}),
}
"""The fields of a manifest that a revision may change."""
_SELECTING = {"benchmark", "data", "split", "limit", "num_tasks"}
"""The fields that select tasks."""
_WAYS = "choose another --out, keep that run with --set-aside, or go back to what it was started with"
_ADVICE = {
    "prices_sha256": " (--reprice prices its rows anew)",
    "data_sha256": " (--regrade grades its rows anew, if questions and ids are the same)",
    "grader": " (--regrade grades its rows anew)",
    "code_version": " (--regrade grades its rows anew, and keeps their answers)",
}
_PRICES = {*Prices.model_fields, "price_tiers"}
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


class Start(Record):
    """One start of a run: when, where and with what."""

    at: AwareDatetime
    policies: tuple[str, ...]
    revised: tuple[str, ...] = ()
    """What was computed again for earlier rows: `prices`, `grades`."""
    code_version: str
    machine: dict[str, str | int | None]
    packages: dict[str, str]
    """Versions of installed packages by name."""


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
    queries_sha256: str = ""
    """Hash of their ids and queries alone."""
    num_tasks: int
    split: Split
    limit: int | None
    policies: tuple[str, ...]
    policy_config: PolicyConfig
    seed: int
    virtual_model: str
    pool: tuple[str, ...]
    models: tuple[PoolModel, ...]
    prices_sha256: str = ""
    """Hash of all prices, of cached tokens and long prompts too."""
    prices_as_of: str
    endpoint: str | None
    """URL of the endpoint; None for a router in the process of the run."""
    config_sha256: str
    """Hash of the Serve config, and of the embedded checkpoints that it names."""
    code_version: str
    starts: tuple[Start, ...] = ()
    """Every start of the run, the first one first."""

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
        """Take `directory` for this run."""
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / MANIFEST, self.model_dump_json(indent=2))

    def joined(self, directory: Path, tasks: Sequence[Task], revised: Iterable[Revision] = ()) -> Manifest:
        """The manifest with which the run in `directory` goes on; this one if there is no run yet.

        Raises: RunError naming the differences if the directory holds another run.
        """
        if not (directory / MANIFEST).exists():
            return self
        old = Manifest.read(directory)
        if differences := _differences(old, self, tasks, revised):
            raise RunError("\n  ".join([f"{directory} holds another run; {_WAYS}:", *differences]))
        policies = dict.fromkeys((*old.policies, *self.policies))
        return self.model_copy(update={"policies": tuple(policies), "starts": (*old.starts, *self.starts)})


def started(policies: Sequence[str], revised: Iterable[Revision] = ()) -> Start:
    """A start of a run, now and here."""
    return Start(
        at=datetime.now(UTC).replace(microsecond=0),
        policies=tuple(policies),
        revised=tuple(revised),
        code_version=code_version(),
        machine=machine(),
        packages=packages(),
    )


def set_aside_other_run(
    directory: Path, manifest: Manifest, tasks: Sequence[Task], revised: Iterable[Revision] = ()
) -> Path | None:
    """Rename `directory` if it holds another run than that of `manifest`; the new name, or None.

    Its book is copied into the new directory, so that nothing is asked again in vain. Raises: RunError if
    the other run is under way.
    """
    try:
        manifest.joined(directory, tasks, revised)
    except RunError:
        with JsonlLog(directory / ROWS):
            moved = put_aside(directory)
        if (moved / BOOK).exists():
            directory.mkdir()
            shutil.copy2(moved / BOOK, directory / BOOK)
        return moved
    return None


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
    virtual = routing.virtual_models[virtual_model]
    return Setting(
        virtual_model=virtual_model,
        pool=virtual.pool,
        cards=cards,
        gates=tuple(virtual.gates),
        max_subtasks=routing.limits.max_subtasks,
        seed=seed,
        mute=frozenset(model.name for model in config.models if _is_mute(model)),
    )


def _is_mute(model: ModelConfig) -> bool:
    """Whether a model reports no log-probabilities; our own engines do, unless the config says otherwise."""
    is_remote = isinstance(model.engine, HostedEngineConfig | RecordedEngineConfig)
    says_no = model.capabilities.get("logprobs") is False
    return says_no or (is_remote and "logprobs" not in model.abilities)


def default_virtual_model(routing: RoutingConfig, benchmark: str) -> str:
    """`r2-BENCHMARK` if the config has it, else the first virtual model."""
    own = f"r2-{benchmark}"
    return own if own in routing.virtual_models else next(iter(routing.virtual_models))


# -- hashes --------------------------------------------------------------------------------------------------


def data_sha256(tasks: Sequence[Task]) -> str:
    lines = (json.dumps([task.id, task.query, task.row], sort_keys=True, default=str) for task in tasks)
    return _sha256(f"{line}\n".encode() for line in lines)


def queries_sha256(tasks: Sequence[Task]) -> str:
    return _sha256(f"{json.dumps([task.id, task.query])}\n".encode() for task in tasks)


def prices_sha256(config: RouterConfig) -> str:
    prices = (model.model_dump(mode="json", include=_PRICES) for model in config.models)
    return _sha256(json.dumps(some).encode() for some in prices)


def config_sha256(
    config: RouterConfig, routing: RoutingConfig, model_apps: dict[str, ModelServerConfig]
) -> str:
    """Hash of what decides answers: embedded checkpoints by content, other models by name; prices aside."""
    sections = [
        config.model_dump_json(exclude={"prices_as_of": True, "models": {"__all__": _PRICES}}),
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


def _differences(
    old: Manifest, new: Manifest, tasks: Sequence[Task], revised: Iterable[Revision]
) -> list[str]:
    """What differs, but for growth and for what is revised."""
    may_differ = {"policies", "starts"}.union(*(REVISIONS[name] for name in revised))
    earlier = sample_tasks(tasks, old.num_tasks) if new.num_tasks >= old.num_tasks else ()
    if queries_sha256(earlier) == old.queries_sha256:
        may_differ |= {"limit", "num_tasks", "queries_sha256"}
    if data_sha256(earlier) == old.data_sha256:
        may_differ.add("data_sha256")
    was, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    names = [name for name in was if name not in may_differ and was[name] != now[name]]
    if set(names) & _SELECTING:  # other tasks have other hashes, which say no more
        names = [name for name in names if name not in ("data_sha256", "queries_sha256")]
    return [
        f"{name}: {_change(was[name], now[name], is_hash=name.endswith('_sha256'))}{_ADVICE.get(name, '')}"
        for name in names
    ]


def _change(was: object, now: object, *, is_hash: bool) -> str:
    """What changed: of two lists of one length, the entries that did."""
    if is_hash:
        return "changed"
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = [(one, other) for one, other in zip(was, now, strict=True) if one != other]
        was, now = [one for one, _ in pairs], [other for _, other in pairs]
    return f"was {_short(was)}, now {_short(now)}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 240 else f"{text[:237]}..."
