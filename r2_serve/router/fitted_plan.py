"""What a fit says of a query before any plan is sampled: numbers from its text alone, and no calls.

A fit (`r2-train fit RUN --planned NAME --direct NAME`) has seen tasks that were answered both ways. It
predicts, by linear functions of the words and the size of a prompt, how probably each way is right and what
both cost. A query of 8,000 characters takes less than a millisecond. The file is JSON and cannot run code.

Prices are those of the fit, so a changed price needs a new fit, which takes seconds.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from pydantic import ValidationError

from r2_serve.errors import ConfigError
from r2_serve.files import write_whole
from r2_serve.types import Record

CHARS_READ = 8_000
"""Characters of a prompt whose words are read; the sizes are those of the whole prompt."""
NUM_SIZES = 3
_WORD, _NUMBER = re.compile(r"\w+"), re.compile(r"\d+")
_LARGEST_LOG = 20.0


def terms_of(prompt: str) -> list[str]:
    """The words of a prompt that are looked up."""
    return _WORD.findall(prompt[:CHARS_READ].lower())


def sizes_of(prompt: str) -> tuple[float, ...]:
    """Logarithms of the numbers of characters, of words and of numbers."""
    read = prompt[:CHARS_READ]
    counts = len(prompt), len(_WORD.findall(read)), len(_NUMBER.findall(read))
    return tuple(math.log1p(count) for count in counts)


class Line(Record):
    """A linear function of a prompt: an intercept, a weight for each term and one for each size."""

    intercept: float
    terms: tuple[float, ...]
    sizes: tuple[float, ...]

    def at(self, terms: Mapping[int, float], sizes: Iterable[float]) -> float:
        """The value for the weighted terms of a prompt, by their places, and its sizes."""
        total = self.intercept + sum(self.terms[place] * value for place, value in terms.items())
        return total + sum(weight * size for weight, size in zip(self.sizes, sizes, strict=True))


@dataclass(frozen=True)
class PlanEstimate:
    """What is expected of one query."""

    gain: float
    """The probability that a plan gives a right answer, less that of the direct call."""
    cost_ratio: float
    """The whole bill with a plan, divided by that of the direct call."""
    answer_tokens: int
    """Length of the direct answer."""
    planning_share: float | None
    """The cost of plan and allocation, divided by that of the direct call; None if the fit did not see it."""
    plan_tokens: int | None
    """Length that 39 of 40 plans do not exceed; None as above."""


class FittedPlan(Record):
    """The linear functions, and what a saved cost is worth."""

    idf: dict[str, float]
    """The inverse document frequency of each known term, in the order of the weights."""
    planned_right: Line
    direct_right: Line
    """Log-odds."""
    cost_ratio: Line
    """The logarithm of the bill with a plan, divided by that of the direct call."""
    answer_tokens: Line
    """The logarithm of the length of the direct answer."""
    planning_share: Line | None = None
    plan_tokens: Line | None = None
    """Logarithms too. None if the fit did not see the cost of planning."""
    step_tokens: int | None = None
    """Mean length of a step's answer; None if the fit did not see steps."""
    value: float
    """The probability of a right answer that is worth as much as the cost of a direct call."""

    @cached_property
    def _places(self) -> dict[str, int]:
        return {term: place for place, term in enumerate(self.idf)}

    def estimate(self, prompt: str) -> PlanEstimate:
        """What is expected of a query whose conversation is `prompt`."""
        terms, sizes = self._weighted(prompt), sizes_of(prompt)

        def number(line: Line) -> float:
            return math.exp(min(line.at(terms, sizes), _LARGEST_LOG))

        gain = _chance(self.planned_right.at(terms, sizes)) - _chance(self.direct_right.at(terms, sizes))
        return PlanEstimate(
            gain=gain,
            cost_ratio=number(self.cost_ratio),
            answer_tokens=max(1, round(number(self.answer_tokens))),
            planning_share=None if self.planning_share is None else number(self.planning_share),
            plan_tokens=None if self.plan_tokens is None else max(1, math.ceil(number(self.plan_tokens))),
        )

    def is_worth_it(self, estimate: PlanEstimate) -> bool:
        """Whether a plan is expected to cost less, and loses no more right answers than that is worth."""
        saved = 1 - estimate.cost_ratio
        return saved > 0 and estimate.gain + self.value * saved > 0

    def _weighted(self, prompt: str) -> dict[int, float]:
        """TF-IDF of the known terms by place, with a logarithm of the frequency, of length 1."""
        counts = Counter(term for term in terms_of(prompt) if term in self.idf)
        raw = {self._places[t]: (1 + math.log(count)) * self.idf[t] for t, count in counts.items()}
        length = math.sqrt(sum(value * value for value in raw.values()))
        return {place: value / length for place, value in raw.items()} if length else {}


class FittedPlanFile(Record):
    """A fit on disk, and what it was fitted on."""

    kind: str = "r2-plan-1"
    """The format; another one is refused."""
    made: str
    """Date, version and machine."""
    source: str
    planned: str
    direct: str
    """The names of both ways in the source."""
    tasks: int
    target: str | None = None
    confidence: float | None = None
    expected_difference: float
    """The accuracy minus that of the more accurate way, or of the target's, on unseen fitting tasks."""
    expected_cost_ratio: float
    """The cost divided by that of direct calls, on the same tasks."""
    expected_planned: float
    """The share of those tasks that are planned."""
    fit: FittedPlan


def write_fitted_plan(path: Path, file: FittedPlanFile) -> None:
    """Replace the file at `path`. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.model_dump_json(indent=1))


@lru_cache(maxsize=64)
def read_fitted_plan(path: str) -> FittedPlan:
    """The fit in a file, which is read once: a new fit gets a new path. Raises: ConfigError."""
    try:
        found = FittedPlanFile.model_validate_json(Path(path).read_bytes())
    except OSError as e:
        raise ConfigError(f"plan_file {path} cannot be read: {e.strerror}") from e
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"plan_file {path} is no fit of `plan: auto`: {place}: {first['msg']}; make one with "
            f"r2-train fit RUN --planned NAME --direct NAME"
        ) from e
    if found.kind != FittedPlanFile.model_fields["kind"].default:
        raise ConfigError(f"plan_file {path} has the format {found.kind!r}; fit it anew with r2-train fit")
    return found.fit


def _chance(log_odds: float) -> float:
    return 1 / (1 + math.exp(-max(-_LARGEST_LOG, min(log_odds, _LARGEST_LOG))))
