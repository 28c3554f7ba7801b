"""Plain documentation and short lines: `make style`.

A documentation string is a sentence with a subject, so it does not begin with a preposition: "Of the
replica." does not say what the thing is. Source lines end at 110 characters, except mappings in braces in
YAML, which `r2-serve publish` keeps on one line. Prose in Markdown ends at 100; tables and code blocks may be
longer.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE_COLUMNS, PROSE_COLUMNS = 110, 100
SOURCES = {".py", ".toml", ".yaml", ".yml", ".sh"}
SOURCE_FOLDERS = {".ci", ".github"}
FIRST_WORDS = "Of|To|From|For|In|By|With|At|On|As|None of|Whose|Where|Whether or"
DIRECTIVE = re.compile(r"  # (noqa|nosec|type: ignore).*$")
WITHOUT_SUBJECT = re.compile(rf"\s*({FIRST_WORDS})\s")

Finding = tuple[int, str]
"""The number of a line, counted from 1, and what is wrong with it."""


def documentation(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every docstring, and every string that stands alone after a field or a constant."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str()) as text):
                    yield text


def check_documentation(source: str) -> Iterator[Finding]:
    for text in documentation(ast.parse(source)):
        if found := WITHOUT_SUBJECT.match(str(text.value)):
            yield text.lineno, f"documentation begins with {found[1]!r}: say what the thing is"


def check_lines(text: str, columns: int) -> Iterator[Finding]:
    """The lines over `columns` characters that a space could break; directives to tools do not count."""
    for number, line in enumerate(text.split("\n"), 1):
        line = DIRECTIVE.sub("", line)
        if len(line) > columns and " " in line.strip()[:columns]:
            yield number, f"{len(line)} characters; at most {columns}"


def without_code_and_tables(markdown: str) -> str:
    """The same number of lines, with those of tables and code blocks empty."""
    is_code, kept = False, []
    for line in markdown.split("\n"):
        is_fence = line.lstrip().startswith(("```", "~~~"))
        is_code ^= is_fence
        kept.append("" if is_code or is_fence or line.lstrip().startswith("|") else line)
    return "\n".join(kept)


def check_file(path: Path) -> Iterator[Finding]:
    text = path.read_text()
    if path.suffix == ".md":
        yield from check_lines(without_code_and_tables(text), PROSE_COLUMNS)
    elif path.suffix in (".yaml", ".yml"):
        yield from check_lines(re.sub(r"(?m)^.*[:-] \{.*$", "", text), SOURCE_COLUMNS)
    else:
        yield from check_lines(text, SOURCE_COLUMNS)
    if path.suffix == ".py":
        yield from check_documentation(text)


def checked_files() -> list[Path]:
    """The source files and pages that git tracks, but for data."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout
    paths = [Path(name) for name in listed.splitlines()]
    return [
        path
        for path in paths
        if (path.suffix in SOURCES | {".md"} or path.parts[0] in SOURCE_FOLDERS or path.name == "Makefile")
        and "embedded" not in path.parts
        and path.exists()
    ]


def main() -> int:
    """Prints each finding, and the number of them last. The exit status is 1 if there is any."""
    findings = [
        f"{path}:{number}: {what}" for path in checked_files() for number, what in sorted(check_file(path))
    ]
    print("\n".join([*findings, f"style: {len(findings)} findings"]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
