"""The nouns: an invalid one cannot exist, and arithmetic on them is exact."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from r2_serve.types import REFERENCE, Message, Plan, Sampling, Subtask, Usage, references, substitute
from tests.support.in_process import model


def chain(*texts: str) -> Plan:
    """Each step depends on those its text names."""
    return Plan(
        subtasks=tuple(Subtask(id=i, text=t, depends_on=tuple(references(t))) for i, t in enumerate(texts, 1))
    )


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"id": 2, "text": "x", "depends_on": (2,)}, "only ids from 1 to 1"),
        ({"id": 2, "text": "x", "depends_on": (3,)}, "only ids from 1 to 1"),
        ({"id": 2, "text": "x", "depends_on": (0,)}, "only ids from 1 to 1"),
        ({"id": 2, "text": "add #1"}, "does not depend on"),
        ({"id": 1, "text": ""}, "at least 1 character"),
        ({"id": 0, "text": "x"}, "greater than or equal to 1"),
        ({"id": 1, "text": "x", "model": "small"}, "Extra inputs"),
    ],
)
def test_invalid_subtask_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Subtask.model_validate(fields)


@pytest.mark.parametrize(
    ("ids", "answer", "complaint"),
    [
        ([2, 1], None, "in order"),
        ([1, 1], None, "in order"),
        ([1, 3], None, "in order"),
        ([], None, "at least 1 item"),
        ([1], "#2", "unknown subtasks"),
        ([1], "forty-two", "refers to no subtask"),
        ([1], "", "refers to no subtask"),
        ([1], "#1 \udc00", "half of a surrogate pair"),
    ],
)
def test_invalid_plan_is_refused(ids: list[int], answer: str | None, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Plan(subtasks=tuple(Subtask(id=i, text="x") for i in ids), answer=answer)


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Message(role="user", content="a").content = "b"  # type: ignore[misc]


@given(st.text())
def test_any_query_is_a_one_step_plan_without_references(text: str) -> None:
    assert references(Plan.single(text).subtasks[0].text) == set()


@pytest.mark.parametrize("text", ["", "#1", "##1#2", "#" + "9" * 5_000, "issue #1 of #12"])
def test_query_that_looks_like_references_is_a_one_step_plan(text: str) -> None:
    plan = Plan.single(text)
    assert (len(plan.subtasks), plan.depth, plan.final_id) == (1, 1, 1)


def test_plan_levels_follow_the_longest_chain_to_each_subtask() -> None:
    plan = chain("a", "b", "c #1", "d #1 #2", "e #3 #4", "f")
    assert plan.levels == ((1, 2, 6), (3, 4), (5,))
    assert (plan.depth, plan.width) == (3, 3)
    assert chain("a", "b #1", "c #2").width == 1


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("#1 and #22", {1, 22}),
        ("#0 #01 # 1", set()),
        ("#10", {10}),
        ("colour #1234567", set()),
        ("#" + "7" * 9_999, set()),
        ("", set()),
    ],
)
def test_references_of_a_text_are_found(text: str, ids: set[int]) -> None:
    assert references(text) == ids


def test_answer_that_looks_like_a_reference_is_not_substituted_again() -> None:
    assert substitute("#1 then #2", {1: "#2", 2: "#1 #1"}) == "#2 then #1 #1"


def test_reference_to_ten_is_not_one_to_one() -> None:
    assert substitute("#10 #1", {1: "a", 10: "b"}) == "b a"


def test_substituting_a_missing_answer_is_an_error() -> None:
    with pytest.raises(KeyError):
        substitute("#3", {1: "a"})


@given(st.text(), st.dictionaries(st.integers(1, 30), st.text()))
def test_text_without_references_is_untouched(text: str, answers: dict[int, str]) -> None:
    plain = REFERENCE.sub("", text).replace("#", "")
    assert substitute(plain, answers) == plain


@pytest.mark.parametrize(
    ("texts", "depth"),
    [(["a"], 1), (["a", "b", "#1 #2"], 2), (["a", "#1", "#2", "#1 #3"], 4), (["a", "b"], 1)],
)
def test_depth_is_the_length_of_the_longest_chain(texts: list[str], depth: int) -> None:
    assert chain(*texts).depth == depth


def test_final_subtask_is_the_last_unless_a_template_makes_the_answer() -> None:
    steps = chain("a", "b").subtasks
    assert Plan(subtasks=steps).final_id == 2
    assert Plan(subtasks=steps, answer="#1 #2").final_id is None


tokens = st.integers(0, 10_000_000)
prices = st.decimals("0", "1000", places=6)


@given(tokens, tokens, prices, prices)
def test_cost_is_exact(tokens_in: int, tokens_out: int, price_in: Decimal, price_out: Decimal) -> None:
    card = model("m", usd_per_mtok_in=price_in, usd_per_mtok_out=price_out)
    exact = (tokens_in * Fraction(price_in) + tokens_out * Fraction(price_out)) / 1_000_000
    assert Fraction(card.cost_usd(Usage(prompt_tokens=tokens_in, completion_tokens=tokens_out))) == exact


def test_usages_can_be_added() -> None:
    total = Usage(prompt_tokens=3, completion_tokens=4) + Usage(prompt_tokens=10)
    assert (total, total.total_tokens) == (Usage(prompt_tokens=13, completion_tokens=4), 17)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"temperature": 2.1},
        {"temperature": -1},
        {"top_p": 0},
        {"stop": ("",)},
        {"presence_penalty": 3},
        {"n": 2},
    ],
)
def test_sampling_outside_openais_limits_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(fields)
