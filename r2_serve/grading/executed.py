"""The value of the Python code in an answer, run in the sandbox: answers with one value agree."""

from __future__ import annotations

from r2_serve.grading.p3 import FIRST_COMPILED, extract_programs
from r2_serve.grading.sandbox import Sandbox

TIMEOUT_S = 10.0
"""Longest run of the code of one answer."""


async def executed_value(sandbox: Sandbox, answer: str) -> str | None:
    """What the code of `answer` gives: the value of an expression, what its function `sol()` returns, or else
    what it prints. None if there is no code, or it fails, or gives nothing.

    Raises: SandboxUnavailable.
    """
    programs = extract_programs(answer, "")
    if not programs:
        return None
    stdin = "\0".join(program.replace("\0", "") for program in programs).encode(errors="replace")
    result = await sandbox.run(_RUN, stdin=stdin, timeout_s=TIMEOUT_S)
    return (result.stdout.strip() or None) if result.status == "ok" else None


_RUN = """\
import sys

programs = sys.stdin.read().split("\\0")
names = {"__name__": "__main__"}
FIRST_COMPILED
if kind == "eval":
    print(repr(eval(code, names)))
else:
    exec(code, names)
    if "sol" in names:
        print(repr(names["sol"]()))
""".replace("FIRST_COMPILED\n", FIRST_COMPILED)
