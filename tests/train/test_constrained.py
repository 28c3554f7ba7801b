"""GRPO of a random tiny model: rollouts keep to the schemas of serving, and flat rewards end the stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytestmark = [pytest.mark.train, pytest.mark.smoke]
pytest.importorskip("trl")

from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from trl import GRPOConfig  # noqa: E402

from r2_serve.prompts.conversation import asked  # noqa: E402
from r2_train.config import PoolConfig  # noqa: E402
from r2_train.rollouts.described_pool import described  # noqa: E402
from r2_train.rollouts.markets import draw_market  # noqa: E402
from r2_train.stages.constrained import (  # noqa: E402
    ConstrainedGrpoTrainer,
    _ask_each,
    _generate_each,
    schemas_by_prompt,
    words_by_prompt,
)
from r2_train.stages.examples import Example, allocation_example  # noqa: E402
from r2_train.stages.flat_rewards import Stopped, StopWhenFlat, read_stopped  # noqa: E402
from r2_train.stages.model_files import complete_checkpoint, load_tokenizer  # noqa: E402
from tests import EMBEDDED  # noqa: E402
from tests.support.in_process import plan_of  # noqa: E402
from tests.support.scripted_training import cache_in, engines, pool_over  # noqa: E402
from tests.support.tiny_checkpoint import character_checkpoint  # noqa: E402

EXAMPLES = [
    Example(task_id=str(n), query=word, messages=asked(word), plan=plan_of(*["step"] * n))
    for n, word in ((1, "one"), (2, "two"))
]


def trainer_in(tmp_path: Path, reward: Any, *, steps: int, callbacks: Sequence[Any] = ()) -> Any:
    base = character_checkpoint(tmp_path / "base")
    tokenizer = load_tokenizer(base)
    trainer = ConstrainedGrpoTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=steps, num_generations=4,
            per_device_train_batch_size=8, max_completion_length=60, report_to="none", logging_steps=1,
            save_strategy="no", disable_tqdm=True, temperature=1.0,
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": [m.model_dump() for m in example.messages], "num_steps": int(example.task_id)}
                for example in EXAMPLES
            ]
        ),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )  # fmt: skip
    with cache_in(tmp_path) as cache:
        trainer.schemas = schemas_by_prompt(EXAMPLES, "allocator", pool_over(cache, engines()), tokenizer)
    return trainer


def test_rollouts_of_a_random_model_are_allocations_of_the_right_length(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def reward(completions: Any, num_steps: list[int], **more: Any) -> list[float]:
        texts = [completion[-1]["content"] for completion in completions]
        seen.extend(zip(texts, num_steps, strict=True))
        return [float(len(text)) for text in texts]

    trainer = trainer_in(tmp_path, reward, steps=2)
    trainer.train()
    assert len(seen) == 16
    for text, num_steps in seen:
        models = json.loads(text)["models"]
        assert len(models) == num_steps and set(models) <= {"tiny", "small", "large"}
    assert "generate" not in vars(trainer.model), "the model's own method is back"


def test_rollouts_keep_to_the_words_of_each_place(tmp_path: Path) -> None:
    seen: list[str] = []

    def reward(completions: Any, **more: Any) -> list[float]:
        seen.extend(completion[-1]["content"] for completion in completions)
        return [float(text.startswith("a")) for text in seen[-len(completions) :]]

    trainer = trainer_in(tmp_path, reward, steps=1)
    a, b, c = (trainer.processing_class.convert_tokens_to_ids(letter) for letter in "abc")
    ends = [trainer.processing_class.eos_token_id]
    trainer.words = {prompt: [[a, b], [c], ends] for prompt in trainer.schemas}
    trainer.train()
    assert len(seen) == 8 and set(seen) <= {"ac", "bc"}


def test_words_of_a_described_pool_are_the_candidates_of_each_step_in_its_market() -> None:
    pool = described(PoolConfig(virtual_model="r2-everyday"))
    tokenizer = load_tokenizer(str(EMBEDDED / "everyday/seed-0/allocator"))
    plan, market = plan_of("3 + 4", "max 1 , 2 , #1"), draw_market(pool.cards, Random(0))
    examples = [
        allocation_example(pool, "t", "q", plan),
        allocation_example(pool, "t", "q", plan, market=market),
    ]
    found = list(words_by_prompt(examples, pool, tokenizer).values())
    offered = [pool.cards, market.cards(pool.cards)]
    for places, cards in zip(found, offered, strict=True):
        counts = [len(words) for words in pool.codec_of("allocator").allocation_words(plan, cards)]
        assert [len(place) for place in places] == [*counts, 1]
        assert places[-1] == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("accuracy", "is_hopeless"), [(0.0, True), (1.0, False)], ids=["nothing right", "all right"]
)
def test_stage_stops_when_rewards_no_longer_differ_and_says_why(
    tmp_path: Path, accuracy: float, is_hopeless: bool
) -> None:
    def reward(completions: Any, log_metric: Any = None, **more: Any) -> list[float]:
        log_metric("accuracy", accuracy)
        log_metric("well_formed", 0.75)
        log_metric("invalid/not_json", 0.25)
        return [0.2] * len(completions)

    flat = StopWhenFlat(tmp_path, 3)
    trainer = trainer_in(tmp_path, reward, steps=10, callbacks=[flat])
    trainer.train()
    stopped = read_stopped(tmp_path)
    assert isinstance(stopped, Stopped) and stopped == flat.stopped
    assert (stopped.step, stopped.is_hopeless) == (3, is_hopeless)
    assert "75 % of the replies are well-formed" in stopped.reason and "not_json 25 %" in stopped.reason
    assert trainer.state.global_step == 3


def test_vllm_gets_the_schema_of_each_prompt() -> None:
    pytest.importorskip("vllm")
    from vllm.sampling_params import SamplingParams

    given: list[Any] = []

    def generate(prompts: Any, *, sampling_params: Any, **more: Any) -> str:
        given.extend(params.structured_outputs for params in sampling_params)
        return "outputs"

    prompts = [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}]
    schemas = {(1, 2): {"type": "object"}}
    reply = _generate_each(
        generate, lambda ids: schemas.get(tuple(ids)), prompts, SamplingParams(max_tokens=3)
    )
    assert reply == "outputs"
    assert given[0].json == {"type": "object"} and given[1] is None


def test_vllm_server_gets_a_request_for_each_schema() -> None:
    """The bodies are read by vLLM's own class, and the replies come back in the order of the prompts."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    def generate(*, prompts: Any, n: int, generation_kwargs: Any, max_tokens: int) -> dict[str, Any]:
        body = {"model": "m", "prompt": prompts, "n": n, "max_tokens": max_tokens, **generation_kwargs}
        wanted = CompletionRequest.model_validate(body).structured_outputs
        schema = None if wanted is None else wanted.json["enum"]
        replies = [(prompt, schema, i) for prompt in prompts for i in range(n)]
        return {"prompt_ids": prompts, "completion_ids": replies, "logprobs": None}

    schemas = {(1,): {"enum": ["a"]}, (2,): {"enum": ["b"]}, (4,): {"enum": ["a"]}}
    prompts = [[1], [2], [3], [4]]
    output = _ask_each(
        generate, lambda ids: schemas.get(tuple(ids)), prompts=prompts, n=2, max_tokens=9,
        generation_kwargs={"seed": 1},
    )  # fmt: skip
    assert output["prompt_ids"] == prompts and output["logprobs"] is None
    assert output["completion_ids"] == [
        (prompt, schema, i)
        for prompt, schema in zip(prompts, (["a"], ["b"], None, ["a"]), strict=True)
        for i in range(2)
    ]


def test_trained_model_names_the_end_token_of_its_template(tmp_path: Path) -> None:
    """The tokenizer and the generation config of the base name another one, as those of SmolLM2 do."""
    folder = Path(character_checkpoint(tmp_path, end="<reply>"))
    tokenizer = load_tokenizer(str(folder))
    end = tokenizer.convert_tokens_to_ids("<reply>")
    assert tokenizer.eos_token_id == end
    complete_checkpoint(folder, tokenizer)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == end
