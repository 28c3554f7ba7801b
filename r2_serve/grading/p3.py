"""Grades Python Programming Puzzles: an answer is right if the puzzle's `sat` returns True for its value.

Two stages, two sandboxes, so that no code of the model runs where the verdict is made:

1. *Propose.* The answer (a function `sol`, or an expression) runs, and its result is a text: a Python
   literal. A program that forges, patches or prints something can still only propose another literal.
2. *Check.* Only trusted code reads the literal (`ast.literal_eval`), checks its exact type, and calls `sat`.
   Only `True` itself counts, not 1. This step runs in a sandbox too, because a literal may be huge and `sat`
   may not end.

A few puzzles call `eval` on the answer (Quine, CardGame24). In the check, `eval` is replaced by a function
that takes expressions of literals, operators, indices, f-strings, lambdas, a few plain functions and the data
of the calling `sat`, but no attributes. With the real `eval`, a string could run code in the process that
makes the verdict. `exec`, `compile` and `open` are removed.

Source: `type_check` and `test_puzzle`, github.com/microsoft/PythonProgrammingPuzzles puzzle_generator.py; the
official judge runs the model's code in its own process, which this does not.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Literal

from r2_serve.grading.reading import read_answer, read_envelope
from r2_serve.grading.sandbox import Sandbox, SandboxResult

MAX_ANSWER_CHARS = 1_000_000
_FENCE = re.compile(
    r"^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(```+|~~~+)[ \t]*[\w+.-]*[ \t]*\n(.*?)(?:^[ \t>]*\1|\Z)",
    re.DOTALL | re.MULTILINE,
)
_NO_PROGRAM = 'import sys\nsys.stderr.write("no program in the answer")\nsys.exit()'


@dataclass(frozen=True)
class PuzzleVerdict:
    """Outcome of one answer; `detail` says in a line how it failed."""

    status: Literal["correct", "wrong", "unparsed", "timeout", "error"]
    detail: str = ""


async def grade_puzzle(
    sandbox: Sandbox, answer: str, *, sat: str, ans_type: str, timeout_s: float = 10.0
) -> PuzzleVerdict:
    """Run both stages, each within `timeout_s`. Raises: SandboxUnavailable."""
    programs = extract_programs(answer, ans_type)
    if not programs:
        return PuzzleVerdict("unparsed", "no program in the answer")
    proposal = await sandbox.run(_PROPOSE, stdin=_joined(sat, *programs), timeout_s=timeout_s)
    if proposal.status != "ok":
        return _failed(proposal, "the program")
    if not proposal.stdout:
        return PuzzleVerdict("unparsed", _last_line(proposal.stderr) or "the program proposed no value")
    checked = await sandbox.run(_CHECK, stdin=_joined(sat, ans_type, proposal.stdout), timeout_s=timeout_s)
    if checked.status != "ok":
        return _failed(checked, "the check")
    return _parse_verdict(checked.stdout)


def extract_programs(answer: str, ans_type: str) -> list[str]:
    """The programs that an answer may hold, best first; the first that compiles is run. Empty if none is
    found.

    With fences it is the last fenced block that defines `sol`, or else the last fenced block. Without a fence
    it is the whole answer, or the answer that `read_answer` finds, as in "The answer is `7`". Quotes belong
    to an answer that is a string.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return []
    text = read_envelope(answer)
    blocks = [textwrap.dedent(block) for _, block in _FENCE.findall(text) if block.strip()]
    solutions = [block for block in blocks if "def sol" in block]
    if blocks:
        return [(solutions or blocks)[-1]]
    inner = read_answer(text).text
    programs = [inner, text] if text.strip()[:1] in ("'", '"') and "str" not in ans_type else [text, inner]
    return [*programs, _NO_PROGRAM] if text.strip() else []


def _joined(*parts: str) -> bytes:
    """The parts, separated by NUL. JSON would cost every sandbox 10 ms, the time to import it."""
    return "\0".join(part.replace("\0", "") for part in parts).encode(errors="replace")


def _failed(result: SandboxResult, what: str) -> PuzzleVerdict:
    if result.status == "timeout":
        return PuzzleVerdict("timeout", f"{what} did not finish in time")
    if result.status == "not_started":
        return PuzzleVerdict("error", f"the sandbox did not start: {_last_line(result.stderr)}")
    reason = "its output was too long" if result.status == "output_limit" else _last_line(result.stderr)
    return PuzzleVerdict("wrong", f"{what} failed: {reason or f'exit code {result.exit_code}'}")


def _parse_verdict(text: str) -> PuzzleVerdict:
    status, _, detail = text.partition(" ")
    if status not in ("correct", "wrong", "unparsed"):
        return PuzzleVerdict("error", "the check made no verdict")
    return PuzzleVerdict(status, detail)  # type: ignore[arg-type]  # mypy does not narrow str by `in`


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""


_NAMES = "{'Dict': dict, 'List': list, 'Set': set, 'Tuple': tuple}"
"""The names that annotations of puzzles use without an import. Built-in types replace those of typing,
whose import would take time."""

FIRST_COMPILED = """\
def compiled(program, is_last):
    try:
        return "eval", compile(program.strip(), "answer", "eval")
    except SyntaxError:
        pass
    try:
        return "exec", compile(program, "answer", "exec")
    except SyntaxError:
        if is_last:
            raise

kind, code = next(filter(None, (compiled(program, program is programs[-1]) for program in programs)))
"""
"""Code that finds the first of `programs` that compiles: its `kind` (`eval` for an expression, `exec` for
statements) and its `code`. If none does, the last one's SyntaxError ends it."""

_PROPOSE = """\
import os, sys

sat, *programs = sys.stdin.read().split("\\0")
channel = os.dup(1)
os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
names = {"__name__": "__main__", **NAMES}
exec(sat, names)

FIRST_COMPILED
if kind == "eval":
    value = eval(code, names)
else:
    exec(code, names)
    if "sol" not in names:
        sys.stderr.write("the program defines no sol")
        sys.exit()
    value = names["sol"]()
with open(channel, "w") as out:
    out.write(repr(value))
""".replace("NAMES", _NAMES).replace("FIRST_COMPILED\n", FIRST_COMPILED)

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
        value = ast.literal_eval(NamedFloats().visit(ast.parse(literal, mode="eval")))
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

class NamedFloats(ast.NodeTransformer):
    def visit_Name(self, node):
        return ast.Constant(float(node.id)) if node.id in ("inf", "nan") else node

def has_type(value, name):
    if name.startswith("List["):
        return type(value) is list and all(has_type(item, name[5:-1]) for item in value)
    return type(value) is {"bool": bool, "int": int, "float": float, "str": str}[name]

FUNCTIONS = (chr, ord, len, str, repr, int, float, abs, min, max, sum, range, list, sorted)
PLAIN = {f.__name__: f for f in FUNCTIONS}
ALLOWED = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.IfExp, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Tuple, ast.List, ast.Subscript,
    ast.Slice, ast.Call, ast.Lambda, ast.arguments, ast.arg, ast.JoinedStr, ast.FormattedValue,
)

def evaluate(text):
    tree = ast.parse(text, mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED):
            raise ValueError(f"eval of an answer allows no {type(node).__name__}")
    frame, kinds = sys._getframe(1).f_locals, (bool, int, float, str, list)
    data = {name: value for name, value in frame.items() if type(value) in kinds}
    return eval(compile(tree, "answer", "eval"), {"__builtins__": PLAIN, **data})

main()
""".replace("NAMES", _NAMES)
