"""One grader for the tests of a file."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from r2_serve.grading.graders import Grader, GraderConfig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grader() -> AsyncIterator[Grader]:
    async with Grader(GraderConfig(num_math_workers=2, math_timeout_s=20)) as grader:
        yield grader
