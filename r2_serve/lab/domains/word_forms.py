"""The English of `words`: names, things and sentence forms. It gets operands in order, never an answer."""

from __future__ import annotations

import random
from collections.abc import Sequence

# fmt: off
NAMES = (
    "Ann", "Bob", "Cid", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Oda",
    "Pam", "Quin", "Ray", "Sue", "Tom", "Una", "Vic", "Wes", "Yan", "Zoe", "Amir", "Bela", "Carl", "Dora",
    "Emil", "Fritz", "Gita",
)
THINGS = (
    "coins", "apples", "books", "cards", "marbles", "shells", "stamps", "stones", "buttons", "pencils",
    "beads", "nuts", "plums", "eggs", "pears", "seeds", "balls", "stars",
)
BOXES = ("bags", "boxes", "jars", "crates", "baskets", "bowls", "packs", "trays")
# fmt: on

STARTS = (
    "{name} has {a} {thing}",
    "{name} owns {a} {thing}",
    "{name} starts with {a} {thing}",
    "{name} had {a} {thing}",
)
PRODUCTS = (
    "{name} has {a} {box} of {b} {thing}",
    "{name} fills {a} {box} with {b} {thing} each",
    "{name} buys {a} {box}, each with {b} {thing}",
    "{name} owns {a} {box} of {b} {thing}",
)
CHANGES = {
    "+": ("finds {b} more", "buys {b} more", "wins {b}", "gets {b} from a friend", "collects {b}"),
    "-": ("loses {b}", "gives away {b}", "sells {b}", "drops {b}", "gives {b} to a friend"),
}
JOINERS = (" and {change}", ", then {change}", ". Then {name} {change}", " but later {change}")
TOTALS = (
    "How many {thing} do they have in all?",
    "How many {thing} are there altogether?",
    "What is the total number of {thing}?",
    "How many {thing} is that together?",
)
MORE = (
    "How many more {thing} {do} {first} have than {second}?",
    "By how many {thing} {do} {first} beat {second}?",
    "How far {is_} {first} ahead of {second}?",
)
FEWER = (
    "How many fewer {thing} {do} {first} have than {second}?",
    "By how many {thing} {do} {first} trail {second}?",
    "How far {is_} {first} behind {second}?",
)


def render(
    branches: Sequence[tuple[str, Sequence[int]]], split: int, is_first_smaller: bool, rng: random.Random
) -> str:
    """A sentence or two per branch `(ops, operands)`, then the question.

    If `split` is 0, the question asks for the total. Otherwise it compares the branches before `split` with
    the others, named in the order in which they were introduced. Only the form of the question ("more",
    "fewer") shows which total is larger.
    """
    names = rng.sample(NAMES, len(branches))
    thing = rng.choice(THINGS)
    sentences = [_branch(name, thing, *branch, rng) for name, branch in zip(names, branches, strict=True)]
    if split == 0:
        return " ".join([*sentences, rng.choice(TOTALS).format(thing=thing)])
    form = rng.choice(FEWER if is_first_smaller else MORE)
    return " ".join([*sentences, _comparison(thing, names[:split], names[split:], form)])


def _branch(name: str, thing: str, ops: str, operands: Sequence[int], rng: random.Random) -> str:
    if ops.startswith("*"):
        text = rng.choice(PRODUCTS).format(
            name=name, a=operands[0], b=operands[1], box=rng.choice(BOXES), thing=thing
        )
        changes = list(zip(ops[1:], operands[2:], strict=True))
    else:
        text = rng.choice(STARTS).format(name=name, a=operands[0], thing=thing)
        changes = list(zip(ops, operands[1:], strict=True))
    for joiner, (op, operand) in zip(rng.sample(JOINERS, len(changes)), changes, strict=True):
        text += joiner.format(name=name, change=rng.choice(CHANGES[op]).format(b=operand))
    return text + "."


def _comparison(thing: str, first: Sequence[str], second: Sequence[str], form: str) -> str:
    do, is_ = ("do", "are") if len(first) > 1 else ("does", "is")
    return form.format(thing=thing, first=" and ".join(first), second=" and ".join(second), do=do, is_=is_)
