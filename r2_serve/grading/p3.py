"""Grades Python Programming Puzzles: an answer is right if the puzzle's `sat` returns True for its value.

Two stages, two sandboxes, so that no code of the model runs where the verdict is made:

1. *Propose.* The answer (a function `sol`, or an expression) runs, and what comes out is text: a Python literal.
   Whatever the program forges, patches or prints, it can only propose another literal.
2. *Check.* Trusted code alone reads the literal (`ast.literal_eval`), checks its exact type, and calls `sat`. Only
   `True` itself counts, not 1. It runs in a sandbox too, as a literal may be huge and `sat` may not end.

A few puzzles call `eval` on the answer (Quine, CardGame24). There, `eval` is replaced by one that takes expressions of
literals, operators, indices, f-strings, lambdas, a few plain functions and the data of the calling `sat`, but no
attributes: with the real one a string could run as code beside the verdict. `exec`, `compile` and `open` are gone.

Source: `type_check` and `test_puzzle`, github.com/microsoft/PythonProgrammingPuzzles puzzle_generator.py; the official
judge runs the model's code in its own process, which this does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from r2_serve.grading.sandbox import Sandbox, SandboxResult

MAX_ANSWER_CHARS = 1_000_000
_FENCE = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class PuzzleVerdict:
    """Outcome of one answer; `detail` says in a line how it failed."""

    status: Literal["correct", "wrong", "unparsed", "timeout", "error"]
    detail: str = ""


async def grade_puzzle(
    sandbox: Sandbox, answer: str, *, sat: str, ans_type: str, timeout_s: float = 10.0
) -> PuzzleVerdict:
    """Run both stages, each within `timeout_s`. Raises: SandboxUnavailable."""
    program = extract_program(answer)
    if program is None:
        return PuzzleVerdict("unparsed", "no program in the answer")
    proposal = await sandbox.run(_PROPOSE, stdin=_joined(sat, program), timeout_s=timeout_s)
    if proposal.status != "ok":
        return _failed(proposal, "the program")
    if not proposal.stdout:
        return PuzzleVerdict("unparsed", _last_line(proposal.stderr) or "the program proposed no value")
    checked = await sandbox.run(_CHECK, stdin=_joined(sat, ans_type, proposal.stdout), timeout_s=timeout_s)
    if checked.status != "ok":
        return _failed(checked, "the check")
    return _parse_verdict(checked.stdout)


def extract_program(answer: str) -> str | None:
    """The last fenced block that defines `sol`, else the last fenced block, else the whole answer."""
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    blocks = [block for block in _FENCE.findall(answer) if block.strip()]
    solutions = [block for block in blocks if "def sol" in block]
    chosen = (solutions or blocks or [answer])[-1]
    return chosen if chosen.strip() else None


def _joined(*parts: str) -> bytes:
    """Parts with a NUL between; only the last may hold one itself. (json costs 10 ms of start-up in every sandbox.)"""
    return "\0".join([*(part.replace("\0", "") for part in parts[:-1]), parts[-1]]).encode(errors="replace")


def _failed(result: SandboxResult, what: str) -> PuzzleVerdict:
    if result.status == "timeout":
        return PuzzleVerdict("timeout", f"{what} did not finish in time")
    if result.status == "not_started":
        return PuzzleVerdict("error", f"the sandbox did not start: {_last_line(result.stderr)}")
    reason = (
        "wrote too much"
        if result.status == "output_limit"
        else _last_line(result.stderr) or f"exit code {result.exit_code}"
    )
    return PuzzleVerdict("wrong", f"{what} failed: {reason}")


def _parse_verdict(text: str) -> PuzzleVerdict:
    status, _, detail = text.partition(" ")
    if status not in ("correct", "wrong", "unparsed"):
        return PuzzleVerdict("error", "the check made no verdict")
    return PuzzleVerdict(status, detail)  # type: ignore[arg-type]  # mypy does not narrow str by `in`


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""


_NAMES = "{'Dict': dict, 'List': list, 'Set': set, 'Tuple': tuple}"
"""What annotations of puzzles and solutions use without an import; the built-in types spare the import of typing."""

_PROPOSE = """\
import os, sys

sat, _, program = sys.stdin.read().partition("\\0")
channel = os.dup(1)
os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
names = {"__name__": "__main__", **NAMES}
exec(sat, names)
try:
    expression = compile(program.strip(), "answer", "eval")
except SyntaxError:
    exec(compile(program, "answer", "exec"), names)
    if "sol" not in names:
        sys.stderr.write("the program defines no sol")
        sys.exit()
    value = names["sol"]()
else:
    value = eval(expression, names)
with open(channel, "w") as out:
    out.write(repr(value))
""".replace("NAMES", _NAMES)

_CHECK = """\
import ast, os, sys

def main():
    sat, ans_type, literal = sys.stdin.read().split("\\0", 2)
    channel = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    with open(channel, "w") as out:
        out.write(judge(sat, ans_type, literal))

def judge(sat, ans_type, literal):
    try:
        value = ast.literal_eval(literal)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as e:
        return f"unparsed the value is not a literal ({type(e).__name__}): {literal[:60]!r}"
    if not has_type(value, ans_type):
        return f"wrong the value is not of type {ans_type}: {literal[:60]!r}"
    names = {"eval": evaluate, "exec": None, "compile": None, "open": None, **NAMES}
    exec(sat, names)
    try:
        verdict = names["sat"](value)
    except BaseException as e:
        return f"wrong sat raised {type(e).__name__}: {str(e)[:100]}"
    return "correct " if verdict is True else f"wrong sat returned {verdict!r:.60}"

def has_type(value, name):
    if name.startswith("List["):
        return type(value) is list and all(has_type(item, name[5:-1]) for item in value)
    return type(value) is {"bool": bool, "int": int, "float": float, "str": str}[name]

PLAIN = {f.__name__: f for f in (chr, ord, len, str, repr, int, float, abs, min, max, sum, range, list, sorted)}
ALLOWED = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.operator,
    ast.unaryop, ast.boolop, ast.cmpop, ast.Tuple, ast.List, ast.Subscript, ast.Slice, ast.Call, ast.Lambda, ast.arguments,
    ast.arg, ast.JoinedStr, ast.FormattedValue,
)

def evaluate(text):
    tree = ast.parse(text, mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED):
            raise ValueError(f"eval of an answer allows no {type(node).__name__}")
    data = {name: value for name, value in sys._getframe(1).f_locals.items() if type(value) in (bool, int, float, str, list)}
    return eval(compile(tree, "answer", "eval"), {"__builtins__": PLAIN, **data})

main()
""".replace("NAMES", _NAMES)
