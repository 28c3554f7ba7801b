"""The steps of `everyday`: twelve kinds that need different skills, their exact answers, and random draws.

| skill | kinds of step |
|---|---|
| arithmetic | `645 + 12` and `645 - 12` up to four digits; `27 * 6`, two digits by one |
| lists | `max 34 , 12 , 78` and `min`: up to six numbers below 100 |
| text | `reverse "garden"`, `shift 3 "garden"`, `replace "a" "o" "garden"`: 3 to 10 letters |
| calendar | `day monday 45`: the weekday after up to 99 days; `convert 12 feet` by a table of eight units |
| hard | `sort 34 , 12 , 78`: three or four numbers; `84 / 7` without remainder |

Where a kind has many instances, a hash of the step's text decides whether it is held out: training never sees
it, and skill is measured on such steps alone. Weekdays, units, products, quotients and calculations with one
digit are small tables, which models learn by heart.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
UNITS: Mapping[str, tuple[int, str]] = {
    "feet": (12, "inches"), "yards": (3, "feet"), "weeks": (7, "days"), "days": (24, "hours"),
    "hours": (60, "minutes"), "dozens": (12, "pieces"), "pounds": (16, "ounces"), "gallons": (4, "quarts"),
}  # fmt: skip
"""A unit, how many of the smaller unit it has, and the smaller unit."""
SKILLS: Mapping[str, tuple[str, ...]] = {
    "arithmetic": ("+", "-", "*"),
    "lists": ("max", "min"),
    "text": ("reverse", "shift", "replace"),
    "calendar": ("day", "convert"),
    "hard": ("sort", "/"),
}
"""The kinds of step that each skill has."""
KINDS = tuple(kind for kinds in SKILLS.values() for kind in kinds)
MAX_NUMBER = 9999
MAX_SMALL = 99
MAX_LETTERS = 10
MAX_SHIFT = 9
HELD_OUT_PERCENT = 10
TABLES = frozenset({"*", "/", "day", "convert"})
_CALCULATION = re.compile(r"([0-9]+) ([-+*/]) ([0-9]+)")
LETTERS = string.ascii_lowercase


def kind_of(text: str) -> str:
    """The kind of a step, whose operands may be references. Raises: ValueError if it is none."""
    found = next((word for word in text.split() if word in KINDS), None)
    if found is None:
        raise ValueError(f"not a step of an everyday problem: {text!r}; its kinds are {', '.join(KINDS)}")
    return found


def solve(text: str) -> str:
    """The exact answer of one step without references. Raises: ValueError."""
    kind = kind_of(text)
    if match := _CALCULATION.fullmatch(text):
        return str(_calculated(int(match[1]), kind, int(match[3])))
    if kind in ("max", "min", "sort"):
        numbers = sorted(int(number) for number in text.removeprefix(kind).split(","))
        return ", ".join(map(str, numbers)) if kind == "sort" else str(numbers[-1 if kind == "max" else 0])
    words = text.replace('"', "").split()[1:]
    try:
        return _SOLVERS[kind](words)
    except (KeyError, IndexError):
        raise ValueError(f"not a step of an everyday problem: {text!r}") from None


def _calculated(left: int, op: str, right: int) -> int:
    if op == "/" and (right == 0 or left % right):
        raise ValueError(f"{left} / {right} leaves a remainder")
    return {"+": left + right, "-": left - right, "*": left * right}[op] if op != "/" else left // right


def _shifted(words: Sequence[str]) -> str:
    return "".join(LETTERS[(LETTERS.index(c) + int(words[0])) % 26] for c in words[1])


def _converted(words: Sequence[str]) -> str:
    if words[1] not in UNITS:
        raise ValueError(f"not a unit: {words[1]!r}; expected one of {', '.join(UNITS)}")
    return str(int(words[0]) * UNITS[words[1]][0])


_SOLVERS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "reverse": lambda words: words[0][::-1],
    "shift": _shifted,
    "replace": lambda words: words[2].replace(words[0], words[1]),
    "day": lambda words: DAYS[(DAYS.index(words[0]) + int(words[1])) % 7],
    "convert": _converted,
}


def is_held_out(text: str) -> bool:
    """True for a tenth of the steps of kinds that are no small table."""
    numbers = [int(n) for n in re.findall("[0-9]+", text)]
    kind = kind_of(text)
    if kind in TABLES or (kind in "+-" and max(numbers) < 10):
        return False
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100 < HELD_OUT_PERCENT


def draw(kind: str, rng: random.Random) -> str:
    """A step of that kind, with all sizes of its operands equally likely."""
    return _DRAWS[kind](rng)


def word(rng: random.Random, num_letters: int | None = None) -> str:
    """A made-up word that can be spoken, or, one time in three, letters at random."""
    n = num_letters or rng.randint(3, MAX_LETTERS)
    if rng.random() < 1 / 3:
        return "".join(rng.choices(LETTERS, k=n))
    first = rng.randrange(2)
    return "".join(rng.choice("aeiou" if (i + first) % 2 else "bcdfghjklmnprstvwz") for i in range(n))


def number(rng: random.Random, num_digits: int) -> int:
    """A number of that many digits, from 2, because "1 books" is no English."""
    return rng.randint(max(2, 10 ** (num_digits - 1)), 10**num_digits - 1)


def _sum(rng: random.Random) -> str:
    left, right = (number(rng, rng.randint(1, 4)) for _ in range(2))
    return f"{left} + {right}" if left + right <= MAX_NUMBER else _sum(rng)


def _difference(rng: random.Random) -> str:
    left, right = sorted((number(rng, rng.randint(1, 4)) for _ in range(2)), reverse=True)
    return f"{left} - {right}"


def _product(rng: random.Random) -> str:
    left, right = number(rng, 1), number(rng, rng.choice((1, 2, 2)))
    return f"{left} * {right}" if rng.random() < 0.5 else f"{right} * {left}"


def _quotient(rng: random.Random) -> str:
    by = number(rng, 1)
    return f"{by * number(rng, rng.choice((1, 2, 2)))} / {by}"


def _list(rng: random.Random, shortest: int, longest: int) -> str:
    numbers = rng.sample(range(2, MAX_SMALL + 1), rng.randint(shortest, longest))
    return " , ".join(map(str, numbers))


def _replacement(rng: random.Random) -> str:
    text = word(rng)
    old = rng.choice(text) if rng.random() < 0.9 else rng.choice(LETTERS)
    return f'replace "{old}" "{rng.choice(LETTERS.replace(old, ""))}" "{text}"'


_DRAWS: Mapping[str, Callable[[random.Random], str]] = {
    "+": _sum,
    "-": _difference,
    "*": _product,
    "/": _quotient,
    "max": lambda rng: f"max {_list(rng, 2, 6)}",
    "min": lambda rng: f"min {_list(rng, 2, 6)}",
    "sort": lambda rng: f"sort {_list(rng, 3, 4)}",
    "reverse": lambda rng: f'reverse "{word(rng)}"',
    "shift": lambda rng: f'shift {rng.randint(1, MAX_SHIFT)} "{word(rng)}"',
    "replace": _replacement,
    "day": lambda rng: f"day {rng.choice(DAYS)} {number(rng, rng.choice((1, 2, 2)))}",
    "convert": lambda rng: f"convert {number(rng, rng.choice((1, 2, 2)))} {rng.choice(list(UNITS))}",
}
