"""The style check finds what it forbids, and accepts plain sentences, tables and code blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.style import check_documentation, check_file

LONG = "word " * 30


@pytest.mark.parametrize(
    "source",
    [
        '"""Of a module."""',
        'class A:\n    """For callers."""',
        'class A:\n    x: int\n    """In seconds."""',
        'X = 1\n"""From the paper."""',
        'def f() -> None:\n    """None of nothing."""',
        'def f() -> None:\n    if True:\n        def g() -> None:\n            """Whether or not."""',
        'def f() -> None:\n    """\n    Where it is.\n    """',
    ],
)
def test_documentation_that_begins_with_a_preposition_is_refused(source: str) -> None:
    assert len(list(check_documentation(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""None if there are no values."""',
        '"""Office hours."""',
        '"""In-process calls."""',
        'x = "Of a string that documents nothing"',
        'print("To whom")',
    ],
)
def test_plain_sentences_and_other_strings_are_accepted(source: str) -> None:
    assert not list(check_documentation(source))


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("page.md", f"short\n{LONG}\n", [2]),
        ("page.md", f"```\n{LONG}\n```\n| {LONG} |\nhttps://{'a' * 200}\n", []),
        ("page.md", f"```\ncode\n```\n{LONG}\n", [4]),
        ("source.py", f"# {LONG}\n", [1]),
        ("Makefile", f"\n{LONG}\n", [2]),
        ("source.py", f"# {'word ' * 21}\n", []),
    ],
)
def test_long_lines_are_found_where_a_space_could_break_them(
    tmp_path: Path, name: str, text: str, lines: list[int]
) -> None:
    (tmp_path / name).write_text(text)
    assert [number for number, _ in check_file(tmp_path / name)] == lines
