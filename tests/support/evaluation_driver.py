"""A run of sums as a process of its own, for tests that kill it: `evaluation_driver DIR NUM_TASKS POLICY...`.

Prints `row` after each row, and `done` at the end.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from r2_serve.lab.evaluation.runner import Standing
from tests.support.scripted_evaluation import runner_of, sums


def show(standing: Standing) -> None:
    print("row", flush=True)


if __name__ == "__main__":
    asyncio.run(
        runner_of(Path(sys.argv[1]), sums(int(sys.argv[2])), sys.argv[3:], on_row=show, num_at_once=8).run()
    )
    print("done", flush=True)
