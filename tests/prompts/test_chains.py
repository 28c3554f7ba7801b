"""Plans in chains: how they name answers, and what is refused."""

from __future__ import annotations

import pytest

from r2_serve.errors import CodecError
from r2_serve.lab.domains import everyday
from r2_serve.prompts import get_codec
from tests.support.in_process import plan_of

CHAINS = get_codec("compact-chains")
PEOPLE = "Ann buys 3 boxes of 24 pears, then loses 12. Of the numbers 34, 71 and 18 Bob takes the largest. "
QUESTION = 'Write "garden" backwards. How many more does Bob have than Ann?'
NUMBERS = "3 9 12 645"


def test_chains_are_used_by_the_names_that_the_query_gives_them() -> None:
    plan = plan_of("3 * 24", "#1 - 12", "max 34 , 71 , 18", 'reverse "garden"', "#3 - #2")
    plan = plan.model_copy(update={"answer": "#4, #5"})
    written = CHAINS.format_plan(plan, PEOPLE + QUESTION)
    assert written == "ann n1 * n2 ; ^ - n3 ; bob max l1 ; reverse w1 ; bob - ann | *"
    assert CHAINS.parse_plan(written, PEOPLE + QUESTION) == plan


def test_chains_without_names_are_used_by_their_numbers() -> None:
    plan = plan_of("3 * 9", "#1 - 12", "645 + 3", "9 * 9", "#3 - #2")
    written = CHAINS.format_plan(plan, NUMBERS)
    assert written == "n1 * n2 ; ^ - n3 ; n4 + n1 ; n2 * n2 ; ^2 - ^1"
    assert CHAINS.parse_plan(written, NUMBERS) == plan


def test_a_step_that_joins_the_step_before_with_a_chain_goes_on_from_it() -> None:
    plan = plan_of("3 * 9", "645 + 3", "#2 - #1", "#3 + 12")
    written = CHAINS.format_plan(plan, NUMBERS)
    assert written == "n1 * n2 ; n4 + n1 ; ^ - ^1 ; ^ + n3"
    assert CHAINS.parse_plan(written, NUMBERS) == plan


def test_every_everyday_plan_is_read_back_as_it_was_written() -> None:
    for task in everyday.tasks("train", 300, seed=3):
        written = CHAINS.format_plan(task.reference_plan, task.query)
        assert CHAINS.parse_plan(written, task.query) == task.reference_plan


@pytest.mark.parametrize("reply", ["^ + n1", "n1 + n2 ; n1 + ^2", "n1 + n2 ; n1 + ^0"])
def test_plan_that_names_no_earlier_chain_is_refused(reply: str) -> None:
    with pytest.raises(CodecError):
        CHAINS.parse_plan(reply, NUMBERS)
