"""A simulated run beside a real one of the same workload: the figures of both, and how far they are apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from r2_serve.errors import ConfigError
from r2_serve.lab.load.run_directory import SUMMARY
from r2_serve.lab.load.summary import Distribution, LoadSummary


@dataclass(frozen=True)
class Difference:
    """One figure."""

    name: str
    real: float
    simulated: float

    @property
    def error(self) -> float | None:
        """Relative to the real one; None where that is 0."""
        return (self.simulated - self.real) / self.real if self.real else None


def read_summary(directory: Path) -> LoadSummary:
    """Of a run of `r2-serve load` or `simulate`. Raises: ConfigError."""
    path = directory / SUMMARY
    try:
        return LoadSummary.model_validate_json(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"{directory} is no run: {path.name} cannot be read ({e.strerror})") from e
    except ValidationError as e:
        raise ConfigError(
            f"{path} is no summary of a run: {e.errors()[0]['loc']}: {e.errors()[0]['msg']}"
        ) from e


def differences(real: LoadSummary, simulated: LoadSummary) -> list[Difference]:
    """Of the figures that both have. Raises: ConfigError where the two did not run the same requests."""
    for name in ("workload", "seed"):
        a, b = getattr(real.info, name), getattr(simulated.info, name)
        if a != b:
            raise ConfigError(f"the two runs differ in their {name}: {a!r} and {b!r}")
    return list(_differences(real, simulated))


def _differences(real: LoadSummary, simulated: LoadSummary) -> Iterator[Difference]:
    yield Difference("requests answered", real.num_ok, simulated.num_ok)
    yield from _of_times("latency", real.latency_s, simulated.latency_s)
    yield from _of_times("time to first token", real.ttft_s, simulated.ttft_s)
    if real.slo_attainment is not None and simulated.slo_attainment is not None:
        yield Difference("SLO attainment", real.slo_attainment, simulated.slo_attainment)
    yield Difference("cost of calls, USD", float(real.cost_usd), float(simulated.cost_usd))
    yield Difference("GPU seconds", real.gpu_s, simulated.gpu_s)
    for name in sorted(real.deployments.keys() & simulated.deployments.keys()):
        yield Difference(
            f"replica-seconds of {name}",
            real.deployments[name].replica_s,
            simulated.deployments[name].replica_s,
        )


def _of_times(name: str, real: Distribution | None, simulated: Distribution | None) -> Iterator[Difference]:
    if real is not None and simulated is not None:
        for figure in ("mean", "p50", "p95", "p99"):
            yield Difference(f"{name}, {figure}, s", getattr(real, figure), getattr(simulated, figure))
