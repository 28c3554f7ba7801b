"""The embedded models' training data, and the checkpoint and manifest that pretraining writes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from r2_serve.lab.domains import everyday, scan, words  # noqa: E402
from r2_serve.lab.ladder.policies import chain_answer  # noqa: E402
from r2_train.tiny.chain_of_thought import MAX_REPLY_TOKENS, chain_examples, evaluate_chain  # noqa: E402
from r2_train.tiny.muon import orthogonal  # noqa: E402
from r2_train.tiny.pretrain import RECIPES, pretrain  # noqa: E402
from r2_train.tiny.tiny_data import (  # noqa: E402
    CODEC,
    everyday_worker_examples,
    plan_examples,
    vocabulary,
    words_plan_examples,
)
from r2_train.tiny.tiny_models import Shape, TinyModel, train  # noqa: E402

pytestmark = pytest.mark.train

SHAPES = (Shape(8, 1, 1, 8), Shape(16, 1, 1, 16))


def test_a_decomposer_learns_every_style_or_the_reference_plans_only() -> None:
    tasks = scan.tasks("train")[::500]
    assert [e.target for e in plan_examples(tasks, "reference")] == [
        CODEC.format_plan(t.reference_plan, t.query) for t in tasks
    ]
    assert [e.target for e in plan_examples(tasks, "mixed")] == [
        CODEC.format_plan(plan, t.query) for t in tasks for plan in t.plans
    ]


def test_a_words_decomposer_sees_no_digits_and_names_each_number_once() -> None:
    for example in words_plan_examples(200, 0, "mixed"):
        numbers = re.findall(r"\bn\d+\b", example.prompt)
        assert numbers == [f"n{i}" for i in range(1, len(numbers) + 1)]
        assert sorted(re.findall(r"\bn\d+\b", example.target)) == sorted(numbers)
        assert not re.search(r"(?<!\S)\d", f"{example.prompt} {example.target}")


def test_a_chain_of_thought_is_right_in_every_step_and_ends_in_the_answer() -> None:
    for example in chain_examples(100, 0):
        chain, _, answer = example.target.partition(" | ")
        results = []
        for step in chain.split(" ; "):
            asked, _, result = step.partition(" = ")
            assert words.solve(CODEC.parse_answer(asked)) == CODEC.parse_answer(result)
            results.append(CODEC.parse_answer(result))
        assert chain_answer(example.target) == CODEC.parse_answer(answer) == results[-1]
        assert chain_answer(chain) == "", "a chain that was cut short has no answer"


def test_a_chain_of_everyday_steps_ends_in_every_result_of_the_problem() -> None:
    tasks = everyday.tasks("train", 200)
    for example, task in zip(chain_examples(200, 0, "everyday"), tasks, strict=True):
        assert chain_answer(example.target) == task.gold
        assert example.target.count(" = ") == len(task.reference_plan.subtasks)
        assert len(example.target.split()) < MAX_REPLY_TOKENS["everyday"]


def test_the_cost_of_a_chain_of_thought_is_proportional_to_its_tokens() -> None:
    small, large = (
        TinyModel.create("words-cot", shape, vocabulary(chain_examples(300, 0)), 0).num_params
        for shape in SHAPES
    )
    few, many = (
        evaluate_chain(TinyModel.create("words-cot", shape, vocabulary(chain_examples(300, 0)), 0), 3)
        for shape in SHAPES
    )
    assert few.accuracy == 0.0, "it is not trained"
    assert few.cost / (small * few.tokens_per_task) == pytest.approx(
        many.cost / (large * many.tokens_per_task)
    )


def test_training_one_model_writes_its_checkpoint_and_manifest(tmp_path: Path) -> None:
    pretrain("scan", tmp_path, only="scan-decomposer", steps_scale=0.002, styles="reference")
    entry = json.loads((tmp_path / "manifest.json").read_text())["models"]["scan-decomposer"]
    assert TinyModel.load(tmp_path / "scan-decomposer").num_params == entry["params"]
    assert (entry["codec"], entry["codec_version"]) == ("compact", CODEC.version)
    assert entry["command"] == (
        "r2-train pretrain --domain scan --only scan-decomposer --seed 0 --steps-scale 0.002 "
        "--styles reference --out DIR"
    )


def test_training_again_gives_the_same_weights_after_any_other_work() -> None:
    recipe = RECIPES["everyday"][0]
    examples = everyday_worker_examples(500, 0, recipe.kinds)
    weights = []
    for seed_before in (1, 2):
        torch.manual_seed(seed_before)
        tiny = TinyModel.create(recipe.name, recipe.shape, vocabulary(examples), 0)
        train(tiny, examples, replace(recipe.schedule, steps=3), 0)
        weights.append(tiny.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_muon_makes_the_singular_values_of_an_update_nearly_equal() -> None:
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3


def test_a_baseline_is_trained_only_by_its_name() -> None:
    roles = [recipe.role for recipe in RECIPES["words"]]
    assert roles.count("baseline") == 1
    with pytest.raises(ValueError, match="no model 'words-9k'"):
        pretrain("words", Path("unused"), only="words-9k")
