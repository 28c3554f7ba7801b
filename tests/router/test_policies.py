"""Each policy prescribes the models it names, and an unknown one is refused by name."""

from collections import Counter

import pytest

from r2_serve.errors import InvalidRequest
from r2_serve.router.policies import AllocationPolicy
from tests.support.in_process import plan_of

PLAN = plan_of("find the height", "halve #1", "add #1 and #2")
NAMES = ("small", "large")


def models(policy: str, seed: str = "req-1") -> tuple[str, ...] | None:
    allocation = AllocationPolicy.parse(policy, NAMES).allocation(PLAN, seed=seed)
    return allocation.models if allocation else None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("learned", None),
        ("all:small", ("small",) * 3),
        ("cheapest", ("small",) * 3),
        ("final-only:small,large", ("small", "small", "large")),
        ("random:small=0,large=1", ("large",) * 3),
    ],
)
def test_policy_prescribes_models_without_a_call(policy: str, expected: tuple[str, ...] | None) -> None:
    assert models(policy) == expected


def test_random_policy_is_uniform_and_repeats_for_the_same_request() -> None:
    drawn = [models("random", f"req-{i}") for i in range(600)]
    assert drawn == [models("random", f"req-{i}") for i in range(600)]
    share = Counter(name for allocation in drawn for name in allocation or ())["small"] / 1_800
    assert 0.45 < share < 0.55


@pytest.mark.parametrize(
    "policy",
    [
        *(
            "",
            "all",
            "all:",
            "all:gpt-9",
            "all:picker",
            "all:small,large",
            "Learned",
            "learned:small",
            "dearest",
            "cheapest:small",
        ),
        *(
            "final-only:small",
            "random:small=much",
            "random:small=-1,large=2",
            "random:small=0",
            "random:small=nan",
        ),
        *("random:small=1,gpt-9=1", "random:small"),
    ],
)
def test_unknown_policy_is_refused_by_name(policy: str) -> None:
    with pytest.raises(InvalidRequest, match=f"unknown policy {policy!r}; expected") as caught:
        AllocationPolicy.parse(policy, NAMES)
    assert caught.value.param == "r2.policy"
