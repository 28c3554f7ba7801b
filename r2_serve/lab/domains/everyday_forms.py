"""The English of `everyday`: names, things and sentence forms. It gets literals in order, never an answer.

Every kind of step has forms that begin a thread ("Ann has 645 pears and loses 12") and forms that go on from
what the thread has so far (", then loses 12").
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from r2_serve.lab.domains.everyday_steps import DAYS, UNITS

Literal = int | str | tuple[int, ...]
# fmt: off
NAMES = (
    "Ann", "Bob", "Cid", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Oda",
    "Pam",
)
THINGS = ("coins", "apples", "books", "cards", "shells", "stamps", "beads", "nuts", "plums", "eggs", "pears",
          "balls")
BOXES = ("bags", "boxes", "jars", "packs")
# fmt: on

STARTS: Mapping[str, Sequence[str]] = {
    "+": (
        "{name} has {a} {thing} and gets {b} more",
        "{name} owns {a} {thing} and finds another {b}",
        "To {a} {thing} {name} adds {b}",
        "{name} counts {a} {thing} and then {b} more",
    ),
    "-": (
        "{name} has {a} {thing} and loses {b}",
        "{name} owns {a} {thing} and gives away {b}",
        "Out of {a} {thing} {name} sells {b}",
        "Of {a} {thing} {name} eats {b}",
    ),
    "*": (
        "{name} buys {a} {box} of {b} {thing}",
        "{name} fills {a} {box} with {b} {thing} each",
        "{name} has {a} rows of {b} {thing}",
        "{a} times {name} picks {b} {thing}",
    ),
    "/": (
        "{name} shares {a} {thing} fairly among {b} friends, so one friend has a share",
        "{name} packs {a} {thing} into {b} equal {box} and opens one",
        "{name} splits {a} {thing} into {b} equal parts",
    ),
    "convert": (
        "{name} has {a} {b} and wants them in {small}",
        "{name} turns {a} {b} into {small}",
        "{name} needs {a} {b}, counted in {small}",
    ),
    "max": (
        "{name} scores {a} and keeps the best",
        "Of the numbers {a} {name} takes the largest",
        "{name} sees prices of {a} and pays the highest",
    ),
    "min": (
        "{name} runs in {a} seconds and keeps the shortest",
        "Of the numbers {a} {name} takes the smallest",
        "{name} sees prices of {a} and pays the lowest",
    ),
    "day": (
        "Today is {a}. Which day comes {b} days later?",
        "Which day is it {b} days after {a}?",
        "A parcel sent on {a} takes {b} days. On which day does it arrive?",
        "It is {a} now. What day will it be in {b} days?",
    ),
    "reverse": ("Write {a} backwards", "Spell {a} from back to front", "Turn the letters of {a} around"),
    "shift": (
        "Move each letter of {b} on by {a}",
        "Shift the word {b} by {a} letters",
        "With a key of {a}, encode {b}",
    ),
    "replace": (
        "In {c}, change every {a} to {b}",
        "Put {b} for each {a} in the word {c}",
        "Replace {a} by {b} in {c}",
    ),
    "sort": ("Put {a} in order", "Sort the numbers {a}", "List {a} from small to large"),
}
NEXTS: Mapping[str, Sequence[str]] = {
    "+": (", then gets {a} more", ", later finds another {a}", " and adds {a}"),
    "-": (", then loses {a}", ", later gives away {a}", " and sells {a}"),
    "*": (", then makes it {a} times as many", ", later gets {a} times that", " and multiplies it by {a}"),
    "/": (
        ", then keeps one of {a} equal parts",
        ", later divides it by {a}",
        " and shares it fairly among {a}",
    ),
    "convert": (", then turns that many {a} into {small}", ", later wants as many {a} in {small}"),
    "weekday": (". Which day is that many days after {a}?", ". That many days after {a}, what day is it?"),
    "day": (" And which day {a} days after that?", " And {a} days later still?"),
    "reverse": (", then write it backwards", ", then turn it around"),
    "shift": (", then move each letter on by {a}", ", then shift it by {a}"),
    "replace": (", then change every {a} to {b}", ", then put {b} for each {a}"),
}
QUESTIONS = (
    "What does {name} end up with?",
    "How many is that?",
    "How much does {name} have?",
    "What is the result?",
)
JOINS: Mapping[str, Sequence[str]] = {
    "+": ("How many do {names} have together?", "What is the total of {names}?", "Add up what {names} have."),
    "-": (
        "How many more does {first} have than {second}?",
        "By how many is {first} ahead of {second}?",
        "How many fewer does {second} have than {first}?",
    ),
    "max": ("Who of {names} has most, and how many is that?", "What is the most that {names} have?"),
}


def start(kind: str, literals: Sequence[Literal], names: Mapping[str, str], rng: random.Random) -> str:
    """The words that begin a thread with a step of this kind."""
    return _filled(rng.choice(STARTS[kind]), literals, names)


def go_on(kind: str, literals: Sequence[Literal], rng: random.Random) -> str:
    """The words that add a step to a thread. `weekday` counts days by what the thread has."""
    return _filled(rng.choice(NEXTS[kind]), literals, {})


def question(name: str, rng: random.Random) -> str:
    return rng.choice(QUESTIONS).format(name=name)


def joined(op: str, names: Sequence[str], rng: random.Random) -> str:
    """The question that joins what several people have."""
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return rng.choice(JOINS[op]).format(names=listed, first=names[0], second=names[-1])


def listed(numbers: Sequence[int]) -> str:
    """`3, 4 and 5`"""
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _filled(form: str, literals: Sequence[Literal], names: Mapping[str, str]) -> str:
    unit = next((literal for literal in literals if literal in UNITS), None)
    small = UNITS[str(unit)][1] if unit else ""
    return form.format(small=small, **names, **dict(zip("abc", map(_written, literals), strict=False)))


def _written(literal: Literal) -> str:
    if isinstance(literal, tuple):
        return listed(literal)
    if isinstance(literal, int) or literal in UNITS:
        return str(literal)
    return literal.capitalize() if literal in DAYS else f'"{literal}"'
