"""The numpy engine gives the replies of the transformers engine, and batches calls without mixing them."""

import asyncio
import json
import shutil
from contextlib import aclosing
from pathlib import Path

import pytest

from r2_serve.config import NumpyEngineConfig, TransformersEngineConfig
from r2_serve.engines.numpy_engine import NumpyEngine
from r2_serve.errors import ConfigError, EngineRefused, EngineTimeout, EngineUnavailable
from r2_serve.types import Completion, EngineCall, Message, Sampling
from tests import EMBEDDED

NAMES = sorted(path.parent.name for path in EMBEDDED.glob("*/config.json"))
SUM = "3 4 + 2 8"


def call(text: str, **sampling: object) -> EngineCall:
    return EngineCall(
        messages=(Message(role="user", content=text),),
        sampling=Sampling.model_validate({"max_tokens": 24, **sampling}),
    )


def engine(name: str = "words-22k", **config: object) -> NumpyEngine:
    return NumpyEngine(
        NumpyEngineConfig.model_validate({"kind": "numpy", "path": f"embedded:{name}", **config})
    )


def prompts(name: str, number: int = 40) -> list[str]:
    """Texts of 1 to 12 words of the model's vocabulary."""
    vocabulary = json.loads((EMBEDDED / name / "tokenizer.json").read_bytes())["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("<")]
    return [
        " ".join(words[(i * 7 + j * j * 3) % len(words)] for j in range(1 + i % 12)) for i in range(number)
    ]


async def together(engine: NumpyEngine, calls: list[EngineCall]) -> list[Completion]:
    return await asyncio.gather(*(engine.generate(one) for one in calls))


@pytest.mark.engine
@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
async def test_greedy_replies_and_their_confidence_equal_the_transformers_engine(name: str) -> None:
    from r2_serve.engines.transformers import TransformersEngine

    reference = TransformersEngine(TransformersEngineConfig(kind="transformers", path=f"embedded:{name}"))
    calls = [call(text, logprobs=True) for text in prompts(name)]
    expected = await asyncio.gather(*(reference.generate(one) for one in calls))
    await reference.aclose()
    for ours, theirs in zip(await together(engine(name), calls), expected, strict=True):
        assert (ours.text, ours.usage, ours.finish_reason) == (
            theirs.text,
            theirs.usage,
            theirs.finish_reason,
        )
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


async def test_reply_does_not_depend_on_the_rest_of_the_batch() -> None:
    small = engine("words-5k", max_batch_size=3)
    calls = [
        call(text, temperature=0.0 if i % 2 else 2.0, seed=i) for i, text in enumerate(prompts("words-22k"))
    ]
    alone = [await small.generate(one) for one in calls]
    assert await together(small, calls) == alone
    assert len({completion.text for completion in alone}) > 10


async def test_reply_keeps_to_the_words_that_each_place_may_have() -> None:
    words = engine("words-22k")
    groups = [["7"], ["1", "2"], ["9", "0", "4"], ["5"]]
    free, kept, unknown = await together(
        words, [call(SUM), call(SUM, words=groups), call(SUM, words=[["7"], ["no-word"]])]
    )
    assert unknown == free, "a word that is no token cannot be kept to"
    written = kept.text.split()
    assert len(written) == len(groups)
    assert all(word in group for word, group in zip(written, groups, strict=True))
    assert kept.finish_reason == "stop" and kept.usage.completion_tokens == len(groups) + 1


async def test_late_call_joins_the_batch_of_a_long_one() -> None:
    slow, quick = call(SUM, max_tokens=400, temperature=2.0, seed=1), call(SUM, max_tokens=1)
    running = engine()
    async with aclosing(running.stream(slow)) as pieces:
        await anext(pieces)
        assert (await running.generate(quick)).usage.completion_tokens == 1
        assert (await anext(pieces)).finish_reason is None


async def test_pieces_of_a_stream_join_to_the_plain_reply() -> None:
    running = engine("words-decomposer")
    for text in prompts("words-decomposer", 10):
        whole = await running.generate(call(text))
        deltas = [delta async for delta in running.stream(call(text))]
        assert "".join(delta.text for delta in deltas) == whole.text
        assert (deltas[-1].finish_reason, deltas[-1].usage) == (whole.finish_reason, whole.usage)


async def test_max_tokens_stop_strings_and_penalties_are_kept() -> None:
    running = engine()
    reply = await running.generate(call(SUM, max_tokens=2))
    assert (reply.finish_reason, reply.usage.completion_tokens) == ("length", 2)
    words = (await running.generate(call(SUM))).text.split()
    stopped = await running.generate(call(SUM, stop=(words[1],)))
    assert (stopped.text.split(), stopped.finish_reason) == (words[:1], "stop")
    banned = await running.generate(call(SUM, frequency_penalty=2.0, presence_penalty=2.0, max_tokens=6))
    assert banned.text.split()[:1] == words[:1]


async def test_seeded_draws_repeat_and_a_small_top_p_is_greedy() -> None:
    running, text = engine("words-5k"), "9 8 7 6 * 5 4 3 2"
    draws = [await running.generate(call(text, temperature=2.0, seed=seed)) for seed in (1, 1, *range(2, 12))]
    assert draws[0] == draws[1] and len({draw.text for draw in draws}) > 1
    assert await running.generate(call(text, temperature=2.0, top_p=1e-6)) == await running.generate(
        call(text)
    )


async def test_unreadable_request_is_refused_with_its_reason() -> None:
    running = engine()
    with pytest.raises(EngineRefused, match="'hello'"):
        await running.generate(call("hello + 1"))
    with pytest.raises(EngineRefused, match="context of 512"):
        await running.generate(call("1 " * 600))
    with pytest.raises(EngineRefused, match="response_format"):
        await running.generate(call(SUM, response_format={"type": "json_object"}))
    with pytest.raises(EngineRefused, match="no adapter 'x'"):
        await running.generate(call(SUM).model_copy(update={"adapter": "x"}))


async def test_completion_goes_on_with_the_text_without_a_chat_template() -> None:
    model = engine()
    prompt = await model.generate(call(SUM, api="completions", max_tokens=1))
    chat = await model.generate(call(SUM, max_tokens=1))
    assert prompt.usage.prompt_tokens == len(SUM.split()) < chat.usage.prompt_tokens
    deltas = [delta async for delta in model.stream(call(SUM, api="completions", max_tokens=6))]
    whole = await model.generate(call(SUM, api="completions", max_tokens=6))
    assert "".join(delta.text for delta in deltas) == whole.text
    with pytest.raises(EngineRefused, match="the prompt is empty"):
        await model.generate(call("", api="completions"))


@pytest.mark.parametrize("asked", [{"tools": [{}]}, {"n": 2}, {"top_k": 5}, {"echo": True}])
async def test_parameter_that_the_engine_does_not_read_is_refused_by_name(asked: dict[str, object]) -> None:
    with pytest.raises(EngineRefused, match="this engine \\(numpy\\) is not capable") as caught:
        await engine().generate(call(SUM, forwarded=asked))
    assert caught.value.param == next(iter(asked))


async def test_adapter_is_a_whole_checkpoint_that_can_be_loaded_and_unloaded() -> None:
    running = engine(adapters={"larger": str(EMBEDDED / "words-280k")})
    asked = call("3 4 5 + 9 8 7")
    larger = await running.generate(asked.model_copy(update={"adapter": "larger"}))
    assert larger == await engine("words-280k").generate(asked)
    await running.unload_adapter("larger")
    with pytest.raises(EngineRefused):
        await running.generate(asked.model_copy(update={"adapter": "larger"}))


async def test_call_ends_at_its_timeout_and_leaves_the_batch() -> None:
    running = engine()
    slow = call(SUM, max_tokens=480, temperature=2.0, seed=1)
    with pytest.raises(EngineTimeout):
        await running.generate(slow.model_copy(update={"timeout_s": 0.001}))
    assert await running.generate(call(SUM)) == await engine().generate(call(SUM))


async def test_closed_engine_fails_its_running_calls() -> None:
    running = engine()
    waiting = asyncio.create_task(running.generate(call(SUM, max_tokens=480, temperature=2.0, seed=1)))
    await asyncio.sleep(0)
    await running.aclose()
    with pytest.raises(EngineUnavailable):
        await waiting


def test_engine_serves_one_event_loop_after_another() -> None:
    running = engine()
    assert asyncio.run(running.generate(call(SUM))) == asyncio.run(running.generate(call(SUM)))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("config.json", '"qwen2"', '"gpt2"', "model_type.*transformers and vllm"),
        ("config.json", '"default"', '"yarn"', "rope_type"),
        ("config.json", '"use_sliding_window": false', '"use_sliding_window": true', "use_sliding_window"),
        ("config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3', "no weight named"),
        ("tokenizer.json", "{", "", "cannot read the tokenizer"),
        ("tokenizer_config.json", "chat_template", "x", "no chat template"),
        ("model.safetensors", None, "", "cannot read the weights"),
    ],
)
def test_checkpoint_that_cannot_be_run_is_refused_with_the_reason(
    tmp_path: Path, file: str, old: str | None, new: str, message: str
) -> None:
    folder = shutil.copytree(EMBEDDED / "words-22k", tmp_path / "model")
    text = (folder / file).read_text() if old else ""
    (folder / file).write_text(text.replace(old, new, 1) if old else new)
    with pytest.raises(ConfigError, match=message):
        NumpyEngine(NumpyEngineConfig(kind="numpy", path=str(folder)))


def test_lora_is_refused_with_the_engines_that_serve_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"LoRA.*transformers or vllm"):
        engine(adapters={"mine": str(tmp_path)})
