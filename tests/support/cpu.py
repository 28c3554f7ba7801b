"""CPU time of a call, in a unit that a busy machine does not change."""

import time
from collections.abc import Callable


def _reference() -> float:
    """The CPU seconds that a fixed loop takes on this machine, now."""
    start_s = time.process_time()
    total = 0
    for number in range(500_000):
        total += number % 7
    return time.process_time() - start_s


def loops(call: Callable[[], object]) -> float:
    """The CPU time of `call`, divided by that of a loop of 500,000 steps (about 0.03 s) that runs beside it.

    A limit in seconds fails on a busy machine or under coverage; this ratio does not."""
    before_s = _reference()
    start_s = time.process_time()
    call()
    spent_s = time.process_time() - start_s
    return spent_s / max(before_s, _reference())
