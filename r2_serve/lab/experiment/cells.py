"""Cells of an experiment, their directories, and which are done.

OUT/configs/VARIANT.yaml                  what was deployed
OUT/workloads/WORKLOAD.yaml               what was sent
OUT/WORKLOAD/VARIANT/seed-N/              a run of `r2-serve load`, with
                           cell.json      the fingerprint of all that decides its figures
                           output.log     what the command said
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.lab.experiment.config import Loaded
from r2_serve.lab.experiment.variants import Raw, scaled_deployments, varied
from r2_serve.lab.load.run_directory import SUMMARY
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.runs import code_version
from r2_serve.lab.workload import Workload
from r2_serve.serve_config import load
from r2_serve.serve_config.document import Problem, read_yaml

CELL, OUTPUT = "cell.json", "output.log"


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
        """Its figures; None where it is not done."""
        path = self.directory / SUMMARY
        if not path.exists():
            return None
        summary = LoadSummary.model_validate_json(path.read_bytes())
        return None if summary.info.is_interrupted else summary

    def is_other(self) -> bool:
        """Whether its directory holds a finished run of something else."""
        path = self.directory / CELL
        return self.summary() is not None and (
            not path.exists() or json.loads(path.read_text())["fingerprint"] != self.fingerprint
        )

    def mark(self) -> None:
        """In its directory, before its run: whenever that ends, it is known whose it is."""
        fields = {
            "fingerprint": self.fingerprint,
            "workload": self.workload.name,
            "variant": self.variant,
            "seed": self.seed,
        }
        write_whole(self.directory / CELL, json.dumps(fields, indent=2))


@dataclass(frozen=True)
class Plan:
    """Every cell of an experiment, and its variants' configs as data."""

    cells: tuple[Cell, ...]
    """Variants side by side, seed by seed: what changes on the machine meanwhile meets all alike."""
    configs: dict[str, Raw]

    @property
    def scaled(self) -> tuple[str, ...]:
        """Deployments that scale, in any variant."""
        return tuple(dict.fromkeys(name for raw in self.configs.values() for name in scaled_deployments(raw)))

    def least_replicas(self, variant: str) -> dict[str, int]:
        """Of those that scale in `variant`."""
        return scaled_deployments(self.configs[variant])


def plan(loaded: Loaded, out: Path, target: str) -> Plan:
    """Writes configs and workloads under `out`. `target` tells one cluster from another.

    Raises: ConfigError where a variant makes no valid config, or names models that the workload asks for wrongly.
    """
    base = read_yaml(loaded.config_path)
    if isinstance(base, Problem):
        raise ConfigError(f"{loaded.config_path}: {base}")
    experiment = loaded.experiment
    configs = {name: varied(base.raw, name, variant) for name, variant in experiment.variants.items()}
    for name, raw in configs.items():
        _write_config(out / "configs" / f"{name}.yaml", name, raw)
    for workload in loaded.workloads.values():
        _write_yaml(out / "workloads" / f"{workload.name}.yaml", workload.model_dump(mode="json"))
    cells = tuple(_cells(loaded, out, configs, target))
    return Plan(cells, configs)


def _cells(loaded: Loaded, out: Path, configs: dict[str, Raw], target: str) -> Iterator[Cell]:
    experiment = loaded.experiment
    for seed in experiment.seeds:
        for workload in loaded.workloads.values():
            for name, variant in experiment.variants.items():
                environment = {**experiment.environment, **variant.environment}
                decisive = [
                    configs[name],
                    workload.model_dump(mode="json"),
                    seed,
                    experiment.nodes,
                    experiment.gpus,
                ]
                yield Cell(
                    workload=workload,
                    variant=name,
                    seed=seed,
                    directory=out / workload.name / name / f"seed-{seed}",
                    config_path=out / "configs" / f"{name}.yaml",
                    workload_path=out / "workloads" / f"{workload.name}.yaml",
                    fingerprint=_sha256(
                        [*decisive, environment, experiment.timeout_s, target, code_version()]
                    ),
                )


def _write_config(path: Path, variant: str, raw: Raw) -> None:
    _write_yaml(path, raw)
    try:
        load(path)
    except ConfigError as e:
        raise ConfigError(f"variant {variant!r} makes no valid config: {e.message}") from e


def _write_yaml(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(value, sort_keys=False, width=140).rstrip())


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
