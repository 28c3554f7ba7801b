"""Symbolic comparison of two LaTeX answers by math-verify, in worker processes that can be killed.

It cannot run in the server's process: math-verify raises off the main thread, where its alarm does not work, and no
exception interrupts CPython while it multiplies out `10^{10^{10}}`. So each comparison runs in one of a few spawned
processes; one that outlives its time is killed and replaced, and the others never notice. Pebble is that pool: it
kills on timeout (concurrent.futures cannot), replaces dead workers, and is maintained.

As with every spawned process, a script that grades needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import resource
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from r2_serve.grading.grade_math import letters

MAX_CHARS = 20_000
"""Longer answers are no answers; parsing time grows with length."""
_WORKER_MEMORY_BYTES = 4 << 30


class Comparison(BaseModel):
    """What math-verify found. `is_equal` says nothing where one side was not read."""

    model_config = ConfigDict(frozen=True)

    is_gold_read: bool
    is_answer_read: bool
    is_equal: bool
    is_faithful: bool
    """Both readings mention the variables that are written: math-verify reads `2^floor(n/2)` as 2 and says nothing."""
    is_different: bool
    """Proven: the answer is a number or a function of no more symbols than the gold, and their values differ somewhere."""


class MathTimeout(Exception):
    """The comparison did not finish in time, or its worker died of it (memory)."""


class MathWorkers:
    """A pool of comparing processes, started with the first comparison."""

    def __init__(self, num_workers: int = 1, *, timeout_s: float = 10.0) -> None:
        from pebble import ProcessPool  # of the extra `eval`, which other benchmarks do without

        self._timeout_s = timeout_s
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(max_workers=num_workers, initializer=_prepare_worker, context=context)

    async def compare(self, gold: str, answers: Iterable[str]) -> Comparison:
        """Compare `gold` with each reading of the answer, up to the first that is equal. Raises: MathTimeout."""
        from pebble import ProcessExpired

        readings = [answer for answer in answers if len(answer) <= MAX_CHARS]
        future = self._pool.schedule(_compare, args=(gold, readings), timeout=self._timeout_s)
        try:
            return await asyncio.wrap_future(future)
        except (TimeoutError, ProcessExpired, MemoryError) as e:
            raise MathTimeout(f"{type(e).__name__} after at most {self._timeout_s:g} s") from e

    async def close(self) -> None:
        """Kill the workers; comparisons in flight are cancelled."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        await asyncio.to_thread(self._pool.join)


def _prepare_worker() -> None:
    """Bound the worker's memory, and pay for the import of sympy before the first comparison's clock starts."""
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_MEMORY_BYTES, _WORKER_MEMORY_BYTES))
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    import math_verify  # type: ignore[import-untyped]

    math_verify.parse("$1$", parsing_timeout=None)


def _compare(gold: str, answers: list[str]) -> Comparison:
    from math_verify import parse, verify

    gold_read = parse(f"${gold}$", parsing_timeout=None)
    readings = [(answer, parse(answer, parsing_timeout=None)) for answer in answers]
    equal = [answer for answer, read in readings if verify(gold_read, read, timeout_seconds=None)]
    kept = [(answer, read) for answer, read in readings if answer in equal] or readings
    return Comparison(
        is_gold_read=bool(gold_read),
        is_answer_read=any(read for _, read in readings),
        is_equal=bool(equal),
        is_faithful=_is_faithful(gold, gold_read)
        and all(_is_faithful(answer, read) for answer, read in kept),
        is_different=any(_differs(gold_read, read) for _, read in readings),
    )


def _is_faithful(text: str, read: list[Any]) -> bool:
    """Whether the first reading has a symbol for each variable of the text."""
    symbols = {str(symbol)[0] for symbol in getattr(read[0], "free_symbols", ())} if read else set()
    return letters(text) <= symbols


def _differs(gold_read: list[Any], answer_read: list[Any]) -> bool:
    """Whether both were read as expressions, the answer in the symbols of the gold, whose values differ at a point."""
    import sympy  # type: ignore[import-untyped]

    if (
        not gold_read
        or not answer_read
        or not all(isinstance(read[0], sympy.Expr) for read in (gold_read, answer_read))
    ):
        return False
    gold, answer = gold_read[0], answer_read[0]
    symbols = sorted(gold.free_symbols, key=str)
    if not answer.free_symbols <= set(symbols):
        return False
    return any(_values_differ(gold, answer, point) for point in _points(symbols))


def _points(symbols: list[Any]) -> list[dict[Any, int]]:
    return [
        {symbol: start + step * i for i, symbol in enumerate(symbols)}
        for start, step in ((4, 1), (7, -1), (5, 2), (12, -3))
    ]


def _values_differ(gold: Any, answer: Any, point: dict[Any, int]) -> bool:
    try:
        values = [complex(expression.subs(point).evalf()) for expression in (gold, answer)]
    except (TypeError, ValueError, ArithmeticError):
        return False
    return all(math.isfinite(abs(value)) for value in values) and abs(values[0] - values[1]) > 1e-6 * max(
        1.0, abs(values[0])
    )
