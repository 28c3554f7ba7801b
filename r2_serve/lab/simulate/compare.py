"""A simulated run against a real one of the same workload: both figures, and the simulated one's error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from r2_serve.errors import ConfigError
from r2_serve.lab.load.run_directory import SUMMARY
from r2_serve.lab.load.summary import Distribution, LoadSummary


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of both runs."""

    name: str
    real: float
    simulated: float

    @property
    def error(self) -> float | None:
        """Error relative to the real figure; None if that is 0."""
        return (self.simulated - self.real) / self.real if self.real else None


def read_summary(directory: Path) -> LoadSummary:
    """The summary of a run of `r2-serve load` or `simulate`. Raises: ConfigError."""
    path = directory / SUMMARY
    try:
        return LoadSummary.model_validate_json(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"{directory} holds no run: {path.name} cannot be read ({e.strerror})") from e
    except ValidationError as e:
        error = e.errors()[0]
        raise ConfigError(f"{path} is not the summary of a run: {error['loc']}: {error['msg']}") from e


def compare(real: LoadSummary, simulated: LoadSummary) -> list[ComparedFigure]:
    """The figures that both runs have. Raises: ConfigError if the two did not run the same requests."""
    for name in ("workload", "seed"):
        a, b = getattr(real.info, name), getattr(simulated.info, name)
        if a != b:
            raise ConfigError(f"the two runs differ in their {name}: {a!r} and {b!r}")
    return list(_figures(real, simulated))


def _figures(real: LoadSummary, simulated: LoadSummary) -> Iterator[ComparedFigure]:
    yield ComparedFigure("requests answered", real.num_ok, simulated.num_ok)
    yield from _times("latency", real.latency_s, simulated.latency_s)
    yield from _times("time to first token", real.ttft_s, simulated.ttft_s)
    if real.slo_attainment is not None and simulated.slo_attainment is not None:
        yield ComparedFigure("SLO attainment", real.slo_attainment, simulated.slo_attainment)
    yield ComparedFigure("cost of calls, USD", float(real.cost_usd), float(simulated.cost_usd))
    yield ComparedFigure("GPU seconds", real.gpu_s, simulated.gpu_s)
    for name in sorted(real.deployments.keys() & simulated.deployments.keys()):
        ours, theirs = simulated.deployments[name].replica_s, real.deployments[name].replica_s
        yield ComparedFigure(f"replica-seconds of {name}", theirs, ours)


def _times(name: str, real: Distribution | None, simulated: Distribution | None) -> Iterator[ComparedFigure]:
    if real is not None and simulated is not None:
        for figure in ("mean", "p50", "p95", "p99"):
            yield ComparedFigure(f"{name}, {figure}, s", getattr(real, figure), getattr(simulated, figure))
