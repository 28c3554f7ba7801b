"""Code in two answers agrees if it gives one value, however it is written."""

from __future__ import annotations

import pytest

from r2_serve.grading.executed import executed_value
from r2_serve.grading.sandbox import Sandbox

pytestmark = [pytest.mark.sandbox, pytest.mark.smoke]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("```python\nsum(range(5))\n```", "10"),
        ("The code:\n```python\ndef sol():\n    return 2 * 5\n```\nThat is all.", "10"),
        ("```python\nfor i in (4, 6):\n    total = i + 4\nprint(total)\n```", "10"),
        ("```python\nraise ValueError\n```", None),
        ("```python\nx = 1\n```", None),
        ("", None),
    ],
)
async def test_value_of_the_code_in_an_answer(answer: str, value: str | None) -> None:
    assert await executed_value(Sandbox(), answer) == value
