"""`--engine ray-data`: the same run, with asking and grading spread over a Ray cluster, against an endpoint.

Ray Data hands (policy, task) pairs in small blocks to a pool of asynchronous actors, each with its own HTTP
client and grader; rows come back to the driver, which alone writes `rows.jsonl`. So resume, limits and
reports are those of the runner. The price: a row is written when its block comes back, so a killed driver
asks again for up to a block per actor slot, and the cost limit is noticed as late. Where one process suffices
(it sustains hundreds of tasks a second), it is the better choice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle  # of our own objects, between our own processes  # nosec B403
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from r2_serve.client import new_client
from r2_serve.errors import EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.lab.evaluation.asker import HttpAsker
from r2_serve.lab.evaluation.desk import Setting
from r2_serve.lab.evaluation.rows import EvalRow
from r2_serve.lab.evaluation.runner import Examiner, Work

JOIN_HINT = (
    "Start one with ray start --head; for that of r2-serve up, see docs/evaluation.md, On a Ray cluster"
)
Batch = dict[str, list[bytes]]
"""Column name to values, as Ray Data passes them."""


@dataclass(frozen=True)
class RayDataRows:
    """A `RowSource`. `num_at_once` pairs are under way on the whole cluster."""

    url: str
    api_key: str | None
    setting: Setting
    num_at_once: int
    num_actors: int = 2
    num_cpus: float = 0.5
    """CPUs that each actor reserves: it waits for replies most of the time."""

    async def __call__(self, pending: Sequence[Work]) -> AsyncGenerator[EvalRow, None]:
        """Raises: EngineUnavailable where no cluster runs, or Ray Data gave up."""
        rows = await asyncio.to_thread(self._rows, pending)
        while (row := await asyncio.to_thread(next, rows, None)) is not None:
            yield row

    def _rows(self, pending: Sequence[Work]) -> Iterator[EvalRow]:
        _join_cluster()
        import ray

        size = max(1, self.num_at_once // self.num_actors)
        num_blocks = -(-len(pending) // size)
        items = [{"work": pickle.dumps(item)} for item in pending]
        data = ray.data.from_items(items, override_num_blocks=num_blocks).map_batches(
            _Actor,
            fn_constructor_args=(self.url, self.api_key, self.setting),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=self.num_actors),
            num_cpus=self.num_cpus,
        )
        return (EvalRow.model_validate_json(found["row"]) for found in data.iter_rows())


def _join_cluster() -> None:
    """Raises: EngineUnavailable where none runs, or none answers."""
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "WARNING")  # progress is the runner's to tell
    import ray

    if not ray.is_initialized():
        check_cluster()
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def check_cluster(timeout_s: float = 120.0) -> None:
    """Join the cluster once in a process that can be killed: Ray waits minutes for one that does not answer.

    Raises: EngineUnavailable.
    """
    probe = [sys.executable, "-c", "import ray; ray.init(address='auto', log_to_driver=False)"]
    try:
        done = subprocess.run(  # noqa: S603  # nosec B603
            probe, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise EngineUnavailable(
            f"--engine ray-data: the Ray cluster gave no answer within {timeout_s:g} s. {JOIN_HINT}"
        ) from e
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineUnavailable(
            f"--engine ray-data needs a running Ray cluster that it may join: {reason[:300]}. {JOIN_HINT}"
        )


class _Actor:
    """Asks and grades one batch at once, and yields each row when it ends."""

    def __init__(self, url: str, api_key: str | None, setting: Setting) -> None:
        self._url, self._api_key, self._setting = url, api_key, setting
        self._examiner: Examiner | None = None

    async def __call__(self, batch: Batch) -> AsyncGenerator[Batch, None]:
        if self._examiner is None:  # made here, because the client belongs to the event loop of the calls
            asker = HttpAsker(new_client(self._url, api_key=self._api_key))
            self._examiner = Examiner(asker, Grader(), self._setting)
        # the pickles are our own, from the driver
        work: list[Work] = [pickle.loads(item) for item in batch["work"]]  # noqa: S301  # nosec B301
        for row in asyncio.as_completed([self._examiner.row(item) for item in work]):
            yield {"row": [(await row).model_dump_json().encode()]}
