"""Grades every reference solution of a P3 file in the sandbox: a test of the grader, and its throughput.

    python benchmarks/p3_reference.py puzzles.json [--timeout-s 10] [--concurrent 2]

Prints the number of solutions by status, the solutions that were not graded correct, and solutions per
second. The exit status is 1 if more than eight fail (the official file has a few that do not finish in 10 s).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from r2_serve.grading.graders import Grader, GraderConfig, Verdict

MAX_FAILED = 8


def solutions(puzzles: list[dict[str, object]]) -> Iterator[tuple[dict[str, object], str, str]]:
    """Yields (row, id, program) of each reference solution: its official header and body."""
    for row in puzzles:
        bodies = row["sol_bodies"]
        assert isinstance(bodies, list)
        for i, body in enumerate(bodies):
            yield row, f"{row['name']}#{i}", f"{row['sol_header']}\n{body}"


async def grade_all(puzzles: list[dict[str, object]], config: GraderConfig) -> list[Verdict]:
    async with Grader(config) as grader, asyncio.TaskGroup() as group:
        await grader.start("p3")
        tasks = [
            group.create_task(grader.grade("p3", row, program, task_id=task_id))
            for row, task_id, program in solutions(puzzles)
        ]
    return [task.result() for task in tasks]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("puzzles", type=Path)
    parser.add_argument("--timeout-s", type=float, default=10.0)
    parser.add_argument("--concurrent", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    sandbox = GraderConfig().sandbox.model_copy(update={"max_concurrent": arguments.concurrent})
    config = GraderConfig(p3_timeout_s=arguments.timeout_s, sandbox=sandbox)
    start_s = time.monotonic()
    verdicts = asyncio.run(grade_all(json.loads(arguments.puzzles.read_text()), config))
    elapsed_s = time.monotonic() - start_s
    failed = [verdict for verdict in verdicts if verdict.correct is not True]
    for verdict in failed:
        print(f"{verdict.id}: {verdict.status}: {verdict.detail}")
    print(f"{dict(Counter(verdict.status for verdict in verdicts))} of {len(verdicts)} reference solutions")
    print(f"{elapsed_s:.1f} s, {len(verdicts) / elapsed_s:.1f} solutions/s (two sandboxes each)")
    return 1 if len(failed) > MAX_FAILED else 0


if __name__ == "__main__":
    raise SystemExit(main())
