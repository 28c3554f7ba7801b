"""Chooses the pair or chain and the threshold of `dot`, `datashunt` and `cascade` on development tasks.

A baseline with the pair and the threshold of another benchmark is a straw man. So `dot:tuned` stands for the
setting that does best on *development* tasks, which are never reported: tasks of the same data whose id falls
on the other side (`benchmarks.split_tasks`). The cheapest setting is taken that is at most `MARGIN` less
accurate there than `r2`, else (or without `r2` in the run) the most accurate one. What was chosen, among how
many and on how many tasks stands in `tuning.json` and under the report.

Settings share their questions: one that was asked is not asked again, so tuning asks each model about as
often as there are steps in the development tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import combinations
from pathlib import Path

from pydantic import ValidationError

from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.asker import Asked, Asker
from r2_serve.lab.evaluation.desk import Setting
from r2_serve.lab.evaluation.policies import R2, TUNED, PolicyConfig
from r2_serve.lab.evaluation.policy_names import parse_policy, reads_nothing
from r2_serve.lab.evaluation.rows import EvalRow
from r2_serve.lab.evaluation.runner import Examiner, Work
from r2_serve.lab.runs import RunError
from r2_serve.lab.statistics import MARGIN
from r2_serve.types import Query, Record

TUNING = "tuning.json"
TAUS = (0.5, 0.8, 0.9, 0.97, 0.99)
"""The thresholds that are tried."""
FEWEST_TASKS = 20
"""The fewest development tasks on which anything is tuned."""
_LARGEST_POOL_OF_TRIPLES = 5
"""A larger pool has too many triples: its cascades have two models or the whole pool."""


class Chosen(Record):
    """The setting that was chosen for one kind of policy."""

    policy: str
    num_settings: int
    """The settings that were tried."""
    accuracy: float
    """Right answers on the development tasks, a fraction."""
    cost_usd: Decimal
    """Cost of the development tasks."""


class Tuning(Record):
    """What was tuned, and on what; the contents of `tuning.json`."""

    made_for: str
    """Hash of all that decides the result: tasks, config, prices, code, seed."""
    num_tasks: int
    task_ids: tuple[str, ...]
    target_accuracy: float | None
    """The accuracy of `r2` on the development tasks; None if the run has no `r2`."""
    margin: float = MARGIN
    chosen: dict[str, Chosen]
    """The choice for each name that was asked for, such as `dot:tuned`."""
    num_asked: int
    """Questions that tuning asked, each once."""


def settings_of(kind: str, setting: Setting) -> Iterator[str]:
    """The policies among which `kind:tuned` chooses, as names."""
    pool = setting.pool
    pairs: list[tuple[str, ...]] = list(combinations(pool, 2))
    chains = pairs
    if kind == "cascade" and len(pool) > 2:
        triples = combinations(pool, 3) if len(pool) <= _LARGEST_POOL_OF_TRIPLES else ()
        chains = list(dict.fromkeys([*pairs, *triples, pool]))
    for chain in chains:
        if reads_nothing(kind, chain, setting):
            continue
        is_judged = kind == "datashunt" and setting.cards[chain[0]].codec != "compact"
        for tau in (None,) if is_judged else TAUS:
            yield f"{kind}:{','.join(chain)}{'' if tau is None else f'@{tau:g}'}"


async def tune(
    names: Sequence[str],
    tasks: Sequence[Task],
    asker: Asker,
    grader: Grader,
    setting: Setting,
    config: PolicyConfig,
    *,
    made_for: str,
    has_r2: bool,
    num_at_once: int,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> Tuning:
    """Choose a policy for each of `names`, such as `dot:tuned`, on development tasks."""
    memory = _Remembering(asker)
    examiner = Examiner(memory, grader, setting)
    kinds = {name: list(settings_of(name.partition(":")[0], setting)) for name in names}
    policies = [*([R2] if has_r2 else []), *(policy for tried in kinds.values() for policy in tried)]
    rows: dict[str, list[EvalRow]] = {policy: [] for policy in policies}
    done, total = 0, len(policies) * len(tasks)

    def keep(row: EvalRow) -> None:
        nonlocal done
        rows[row.policy].append(row)
        done += 1
        on_row(done, total)

    parsed = [parse_policy(policy, setting, config) for policy in policies]
    work = (Work(policy, task) for policy in parsed for task in tasks)
    await examiner.work_off(work, keep, num_at_once=num_at_once)
    target = _accuracy(rows[R2]) if has_r2 else None
    return Tuning(
        made_for=made_for,
        num_tasks=len(tasks),
        task_ids=tuple(task.id for task in tasks),
        target_accuracy=target,
        chosen={
            name: _chosen({policy: rows[policy] for policy in tried}, target) for name, tried in kinds.items()
        },
        num_asked=memory.num_asked,
    )


def _chosen(tried: dict[str, list[EvalRow]], target: float | None) -> Chosen:
    """The cheapest setting within the margin of the target, else the most accurate, the cheaper of equals."""
    found = [
        Chosen(
            policy=policy,
            num_settings=len(tried),
            accuracy=_accuracy(rows),
            cost_usd=sum((row.cost_usd for row in rows), Decimal(0)),
        )
        for policy, rows in tried.items()
    ]
    near = [one for one in found if target is not None and one.accuracy >= target - MARGIN - 1e-9]
    if near:
        return min(near, key=lambda one: (one.cost_usd, -one.accuracy))
    return max(found, key=lambda one: (one.accuracy, -one.cost_usd))


def _accuracy(rows: Sequence[EvalRow]) -> float:
    return sum(row.status == "correct" for row in rows) / len(rows)


class _Remembering:
    """Answers a question that was asked before as it was answered then, with what that cost."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._answers: dict[str, asyncio.Future[Asked]] = {}

    @property
    def num_asked(self) -> int:
        """The number of different questions."""
        return len(self._answers)

    async def ask(self, query: Query) -> Asked:
        """Raises: AskFailed."""
        key = query.model_dump_json(exclude={"request_id"})
        if key not in self._answers:
            self._answers[key] = asyncio.ensure_future(self._asker.ask(query))
        return await asyncio.shield(self._answers[key])


def write_tuning(directory: Path, tuning: Tuning) -> None:
    """Keep the choice with the run. Raises: OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / TUNING, tuning.model_dump_json(indent=2))


def read_tuning(directory: Path) -> Tuning | None:
    """The choice that is kept with a run, or None. Raises: RunError."""
    path = directory / TUNING
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as e:
        raise RunError(f"{path} holds no tuning ({e}); remove it to tune anew") from e


def spelt_out(names: Sequence[str], tuning: Tuning) -> tuple[str, ...]:
    """The names with each `KIND:tuned` replaced by what was chosen for it."""
    return tuple(tuning.chosen[name].policy if name in tuning.chosen else name for name in names)


def tuned_names(names: Sequence[str]) -> list[str]:
    """The names that stand for a choice."""
    return [name for name in names if name.partition(":")[2] == TUNED]
