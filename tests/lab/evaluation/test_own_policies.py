"""Policies of serving and policies of a user's own are compared like ours."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from r2_serve.errors import ConfigError
from r2_serve.lab.evaluation.policies import PolicyConfig, Routed
from r2_serve.lab.evaluation.policy_names import parse_policy
from tests import ROOT
from tests.support.scripted_evaluation import (
    asker_of,
    engines_of,
    lines_of,
    runner_of,
    scripts,
    setting,
    sums,
)

OWN = """
async def fails(task, desk):
    raise ValueError("no such luck")


async def says_nothing(task, desk):
    return None
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own: the example of docs/extending.md, and two that are broken."""
    page = (ROOT / "docs" / "extending.md").read_text()
    example = re.search(r"```python\n(# more of mine\.py.*?)```", page, re.DOTALL)
    assert example is not None
    (tmp_path / "own_policies.py").write_text(example[1] + OWN)
    monkeypatch.chdir(tmp_path)
    return "own_policies"


async def test_policy_of_serving_answers_as_in_serving(tmp_path: Path) -> None:
    engines = engines_of(scripts())
    await runner_of(tmp_path, sums(3), ["all:large", "one:small"], asker_of(engines)).run()
    rows = {(line["policy"], line["task_id"]): line for line in lines_of(tmp_path)}
    assert rows["all:large", "sum-1"]["outcome"]["subtask_models"] == ["large"] * 3
    assert [rows["one:small", f"sum-{i}"]["status"] for i in (1, 2, 3)] == ["correct", "correct", "wrong"]


@pytest.mark.parametrize("name", ["one:gate", "all:gate", "final-only:small,gate"])
def test_gate_of_the_virtual_model_is_compared_by_its_name(name: str) -> None:
    assert parse_policy(name, replace(setting(), gates=("gate",)), PolicyConfig()) == Routed(name, name)
    with pytest.raises(ConfigError, match="gate"):
        parse_policy(name, setting(), PolicyConfig())


async def test_own_policy_asks_through_the_desk_and_pays_for_each_call(tmp_path: Path, mine: str) -> None:
    await runner_of(tmp_path / "run", sums(1), [f"{mine}:twice", "single:small"]).run()
    rows = {line["policy"]: line for line in lines_of(tmp_path / "run")}
    own, single = rows[f"{mine}:twice"], rows["single:small"]
    assert own["status"] == "correct"
    assert [call["model"] for call in own["outcome"]["calls"]] == ["small", "small"]
    assert len(single["outcome"]["calls"]) == 1


async def test_own_policy_that_fails_is_a_row_that_says_so(tmp_path: Path, mine: str) -> None:
    await runner_of(tmp_path / "run", sums(1), [f"{mine}:fails", f"{mine}:says_nothing"]).run()
    assert sorted(line["detail"] for line in lines_of(tmp_path / "run")) == [
        f"{mine}:fails failed: ValueError: no such luck",
        f"{mine}:says_nothing returned None, expected a text or a Solved",
    ]


def test_wrong_import_path_of_a_policy_is_named(mine: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'twice'"):
        parse_policy(f"{mine}:twicee", setting(), PolicyConfig())
