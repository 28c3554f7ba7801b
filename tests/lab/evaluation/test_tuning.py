"""Baselines are tuned on development tasks, which are never reported."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from r2_serve.cli import app
from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.lab.evaluation.policies import PolicyConfig
from r2_serve.lab.evaluation.policy_names import all_policies, fixed, parse_policy, split_tau
from r2_serve.lab.evaluation.tuning import TAUS, Tuning, settings_of, tune
from tests.support.scripted_evaluation import asker_of, engines_of, scripts, setting, sums
from tests.support.scripted_pool import scripted_yaml

TASKS = sums(30)


async def tuned(*names: str, has_r2: bool = True) -> Tuning:
    async with Grader() as grader:
        return await tune(
            names,
            TASKS,
            asker_of(engines_of(scripts())),
            grader,
            setting(),
            PolicyConfig(),
            made_for="-",
            has_r2=has_r2,
            num_at_once=8,
        )


async def test_threshold_that_pays_is_chosen() -> None:
    """`small` is wrong where its confidence is 0.5, so 0.8 escalates these, and no higher one is needed."""
    found = await tuned("cascade:tuned", "dot:tuned")
    assert found.target_accuracy == 1.0
    cascade, dot = found.chosen["cascade:tuned"], found.chosen["dot:tuned"]
    assert cascade.policy == "cascade:small,large@0.8"
    assert cascade.accuracy == 1.0
    assert cascade.num_settings == len(TAUS)
    assert dot.policy == "dot:small,large@0.5"  # each step alone is easy


async def test_without_r2_the_most_accurate_setting_is_chosen() -> None:
    found = await tuned("cascade:tuned", has_r2=False)
    assert found.target_accuracy is None
    assert found.chosen["cascade:tuned"].policy == "cascade:small,large@0.8"


async def test_no_question_is_asked_twice() -> None:
    engines = engines_of(scripts())
    async with Grader() as grader:
        found = await tune(
            ("cascade:tuned",),
            TASKS,
            asker_of(engines),
            grader,
            setting(),
            PolicyConfig(),
            made_for="-",
            has_r2=False,
            num_at_once=8,
        )
    assert len(engines["small"].calls) == len(TASKS)
    assert found.num_asked == len(engines["small"].calls) + len(engines["large"].calls)


def test_judged_pairs_have_no_threshold() -> None:
    assert list(settings_of("datashunt", setting())) == ["datashunt:small,large"]
    assert list(settings_of("dot", setting())) == [f"dot:small,large@{tau:g}" for tau in TAUS]


def test_threshold_stands_at_the_end_of_a_name() -> None:
    assert split_tau("dot:a,b@0.97") == ("dot:a,b", 0.97)
    assert split_tau("dot:a,b@latest") == ("dot:a,b@latest", None)
    assert split_tau("single:a@0.5") == ("single:a@0.5", None)
    assert parse_policy("dot:small,large@0.97", setting(), PolicyConfig()).name == "dot:small,large@0.97"
    with pytest.raises(ConfigError, match=r"the threshold 1\.5 is not between 0 and 1"):
        parse_policy("dot:small,large@1.5", setting(), PolicyConfig())


def test_all_policies_hold_the_constant_allocations_and_the_tuned_baselines() -> None:
    names = all_policies(setting())
    assert {"all:small", "all:large", "dot:tuned", "cascade:tuned", "datashunt:tuned"} <= set(names)


def test_policies_that_read_confidence_need_models_that_report_it() -> None:
    all_silent = setting(capabilities={"logprobs": False})
    assert not {"dot:tuned", "cascade:tuned"} & set(all_policies(all_silent))
    assert "datashunt:tuned" in all_policies(all_silent)
    assert list(settings_of("cascade", all_silent)) == []
    only_the_last = dataclasses.replace(setting(), mute=frozenset({"large"}))
    assert all_policies(only_the_last) == all_policies(setting())
    three = dataclasses.replace(setting(), pool=("tiny", "small", "large"), mute=frozenset({"tiny"}))
    assert {name.partition("@")[0] for name in settings_of("cascade", three)} == {"cascade:small,large"}
    assert fixed("cascade:tuned", three) == "cascade:small,large"
    assert fixed("datashunt:tuned", three) == "datashunt:tiny,large"


def run(directory: Path, *more: object) -> Result:
    config = directory / "serve_config.yaml"
    config.write_text(scripted_yaml(replies={"large": ["I_WALK"]}))
    arguments = ("-b", "scan", "-d", "length", "-c", config, "-o", directory / "run", "--limit", 5)
    return CliRunner().invoke(app, ["eval", "run", *map(str, (*arguments, *more))])


def tuning_of(directory: Path) -> Tuning:
    return Tuning.model_validate_json((directory / "run" / "tuning.json").read_bytes())


def task_ids(lines: Sequence[str]) -> set[str]:
    return {json.loads(line)["task_id"] for line in lines}


def test_tuned_policies_never_see_a_task_that_is_reported(tmp_path: Path) -> None:
    ran = run(tmp_path, "-p", "cascade:tuned", "-p", "single:large", "--tuning-tasks", 25)
    assert ran.exit_code == 0, ran.output
    tuning = tuning_of(tmp_path)
    reported = task_ids((tmp_path / "run" / "rows.jsonl").read_text().splitlines())
    assert (len(reported), len(tuning.task_ids), tuning.num_tasks) == (5, 25, 25)
    assert not reported & set(tuning.task_ids)
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["split"] == "test"
    assert manifest["policies"] == [tuning.chosen["cascade:tuned"].policy, "single:large"]
    report = CliRunner().invoke(app, ["eval", "report", str(tmp_path / "run")])
    text = " ".join(report.output.split())
    assert "Tuned on 25 development tasks, none of which is reported" in text


def test_choice_is_kept_for_the_run_that_goes_on(tmp_path: Path) -> None:
    options = ("-p", "cascade:tuned", "--tuning-tasks", 25)
    assert run(tmp_path, *options).exit_code == 0
    path = tmp_path / "run" / "tuning.json"
    kept = path.read_text().replace('"num_asked": ', '"num_asked": 1')
    path.write_text(kept)
    assert run(tmp_path, *options).exit_code == 0
    assert path.read_text() == kept  # it was read and not made anew


@pytest.mark.parametrize("split", ["all", "development"])
def test_development_tasks_are_not_reported_with_tuned_policies(tmp_path: Path, split: str) -> None:
    ran = run(tmp_path, "-p", "dot:tuned", "--split", split)
    assert ran.exit_code == 1
    assert "--split has to be test" in ran.output


def test_few_development_tasks_leave_baselines_fixed(tmp_path: Path) -> None:
    ran = run(tmp_path, "-p", "cascade:tuned", "--tuning-tasks", 10)
    assert ran.exit_code == 0, ran.output
    assert "to tune cascade:tuned: they stay fixed" in " ".join(ran.output.split())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["policies"] == ["cascade:small,large"]


def test_several_seeds_are_run_by_one_command_and_reported_as_one(tmp_path: Path) -> None:
    ran = run(tmp_path, "-p", "single:large", "-p", "random", "--seeds", 2)
    assert ran.exit_code == 0, ran.output
    folders = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert folders == ["seed-0", "seed-1"]
    assert "asked for 0 replies" not in ran.output.partition("reused")[0].partition("came from")[0]
    report = CliRunner().invoke(app, ["eval", "report", str(tmp_path / "run")])
    assert report.exit_code == 0 and "2 seeds" in report.output, report.output
