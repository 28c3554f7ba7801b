"""The cells of an experiment, their directories, and which of them are done.

OUT/configs/VARIANT.yaml                  the deployed config
OUT/workloads/WORKLOAD.yaml               the workload that was sent
OUT/WORKLOAD/VARIANT/seed-N/              a run of `r2-serve load`, with
                           cell.json      the fingerprint of everything that decides its figures
                           output.log     the output of the command
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.lab.experiment.config import LoadedExperiment, Raw
from r2_serve.lab.experiment.variants import scaled_deployments, varied
from r2_serve.lab.load.run_directory import SUMMARY
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.runs import code_version
from r2_serve.lab.workload import Workload
from r2_serve.serve_config import load
from r2_serve.serve_config.document import Problem, read_yaml

CELL, OUTPUT = "cell.json", "output.log"
SIMULATED = "simulated"
"""The target of cells that are simulated."""


@dataclass(frozen=True)
class Cell:
    """One load of one variant."""

    workload: Workload
    variant: str
    seed: int
    directory: Path
    config_path: Path
    workload_path: Path
    fingerprint: str

    @property
    def title(self) -> str:
        return f"{self.workload.name}, {self.variant}, seed {self.seed}"

    def summary(self) -> LoadSummary | None:
        """The figures; None if the cell is not done."""
        path = self.directory / SUMMARY
        if not path.exists():
            return None
        summary = LoadSummary.model_validate_json(path.read_bytes())
        return None if summary.info.is_interrupted else summary

    def is_other(self) -> bool:
        """True if the directory holds a finished run with another fingerprint."""
        path = self.directory / CELL
        return self.summary() is not None and (
            not path.exists() or json.loads(path.read_text())["fingerprint"] != self.fingerprint
        )

    def mark(self) -> None:
        """Writes `cell.json` before the run, so that it is known whose run it is, however that ends."""
        fields = {
            "fingerprint": self.fingerprint,
            "workload": self.workload.name,
            "variant": self.variant,
            "seed": self.seed,
        }
        write_whole(self.directory / CELL, json.dumps(fields, indent=2))


@dataclass(frozen=True)
class ExperimentPlan:
    """Every cell of an experiment, and its variants' configs as data."""

    cells: tuple[Cell, ...]
    """Variants take turns, seed by seed, so that changes on the machine affect all alike."""
    configs: dict[str, Raw]

    @property
    def scaled(self) -> tuple[str, ...]:
        """Deployments that scale in any variant."""
        return tuple(dict.fromkeys(name for raw in self.configs.values() for name in scaled_deployments(raw)))


def plan(loaded: LoadedExperiment, out: Path, target: str) -> ExperimentPlan:
    """Writes configs and workloads under `out`. `target` distinguishes one cluster from another, and from a
    simulation, which alone reads the hardware.

    Raises: ConfigError if a variant makes no valid config, or names models that the workload asks for
    wrongly.
    """
    base = read_yaml(loaded.config_path)
    if isinstance(base, Problem):
        raise ConfigError(f"{loaded.config_path}: {base}")
    variants = loaded.experiment.variants
    configs = {name: varied(base.raw, name, variant) for name, variant in variants.items()}
    for name, raw in configs.items():
        _write_config(out / "configs" / f"{name}.yaml", name, raw)
    for workload in loaded.workloads.values():
        _write_yaml(out / "workloads" / f"{workload.name}.yaml", workload.model_dump(mode="json"))
    return ExperimentPlan(tuple(_cells(loaded, out, configs, target)), configs)


def _cells(loaded: LoadedExperiment, out: Path, configs: dict[str, Raw], target: str) -> Iterator[Cell]:
    experiment = loaded.experiment
    for seed in experiment.seeds:
        for workload in loaded.workloads.values():
            sent = workload.model_dump(mode="json")
            for name, variant in experiment.variants.items():
                environment = {**experiment.environment, **variant.environment}
                cluster = [experiment.nodes, experiment.gpus, environment, experiment.timeout_s, target]
                if target == SIMULATED:
                    cluster = [target, loaded.hardware[name].model_dump(mode="json"), variant.forecast]
                yield Cell(
                    workload=workload,
                    variant=name,
                    seed=seed,
                    directory=out / workload.name / name / f"seed-{seed}",
                    config_path=out / "configs" / f"{name}.yaml",
                    workload_path=out / "workloads" / f"{workload.name}.yaml",
                    fingerprint=_sha256(
                        [configs[name], sent, seed, experiment.node_idle_timeout_s, *cluster, code_version()]
                    ),
                )


def _write_config(path: Path, variant: str, raw: Raw) -> None:
    _write_yaml(path, raw)
    try:
        load(path, with_imports=True)
    except ConfigError as e:
        raise ConfigError(f"variant {variant!r} makes no valid config: {e.message}") from e


def _write_yaml(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(value, sort_keys=False, width=140).rstrip())


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
