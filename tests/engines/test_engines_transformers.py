"""TransformersEngine on a random tiny Qwen2: every claim is about tokens that a real model made."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine_calls import engine_call

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.engine, pytest.mark.smoke]

from r2_serve.config import TransformersEngineConfig  # noqa: E402
from r2_serve.engines.checkpoints import Checkpoint, load_adapter  # noqa: E402
from r2_serve.engines.cores import num_cores  # noqa: E402
from r2_serve.engines.row_batch import RowBatch  # noqa: E402
from r2_serve.engines.transformers import TransformersEngine  # noqa: E402
from r2_serve.errors import ConfigError, EngineRefused, EngineUnavailable  # noqa: E402
from r2_serve.types import Completion, EngineCall, Message, Sampling  # noqa: E402
from tests.support.tiny_checkpoint import (  # noqa: E402
    CONTEXT_TOKENS,
    character_checkpoint,
    linear_attention_checkpoint,
    random_adapter,
    word_checkpoint,
)

PROMPTS = ["one plus two", "three", "four five six seven eight", "nine is", "zero"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return word_checkpoint(tmp_path_factory.mktemp("words"))


@asynccontextmanager
async def running(path: str, **config: int) -> AsyncIterator[TransformersEngine]:
    engine = await asyncio.to_thread(
        TransformersEngine, TransformersEngineConfig(kind="transformers", path=path, **config)
    )
    try:
        yield engine
    finally:
        await engine.aclose()


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


async def together(engine: TransformersEngine, samplings: list[Sampling]) -> list[Completion]:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(engine.generate(engine_call(user(p), s)))
            for p, s in zip(PROMPTS * 20, samplings, strict=False)
        ]
    return [task.result() for task in tasks]


async def test_batched_replies_equal_those_of_single_calls(words: str) -> None:
    samplings = [Sampling(max_tokens=3 + i, logprobs=i % 2 == 0) for i in range(5)]
    async with running(words) as engine:
        batch = await together(engine, samplings)
        alone = [
            await engine.generate(engine_call(user(p), s)) for p, s in zip(PROMPTS, samplings, strict=True)
        ]
    assert [(r.text, r.usage, r.finish_reason) for r in batch] == [
        (r.text, r.usage, r.finish_reason) for r in alone
    ]
    assert len({r.text for r in batch}) > 1
    for ours, theirs in zip(batch, alone, strict=True):
        assert (ours.logprobs is None) == (theirs.logprobs is None)
        assert ours.logprobs is None or ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


async def test_max_tokens_applies_to_each_row_alone(words: str) -> None:
    async with running(words) as engine:
        replies = await together(engine, [Sampling(max_tokens=n) for n in (1, 20, 2, 7, 3)])
        whole = await engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=20)))
    assert [r.usage.completion_tokens <= n for r, n in zip(replies, (1, 20, 2, 7, 3), strict=True)] == [
        True
    ] * 5
    assert replies[0].finish_reason == "length"
    assert whole.text.split()[:1] == replies[0].text.split()
    assert all(
        r.usage.completion_tokens == n
        for r, n in zip(replies, (1, 20, 2, 7, 3), strict=True)
        if r.finish_reason == "length"
    )


async def test_end_of_sequence_is_counted_but_not_shown(words: str) -> None:
    async with running(words) as engine:
        replies = await together(engine, [Sampling(max_tokens=60, logprobs=True)] * 5)
    assert "stop" in [r.finish_reason for r in replies]
    assert all(
        r.logprobs and r.usage.completion_tokens == len(r.logprobs) and "<" not in r.text for r in replies
    )
    assert replies[1].text == "is zero"
    assert replies[1].usage.completion_tokens == 3
    assert [r.usage.prompt_tokens for r in replies] == [len(p.split()) + 2 for p in PROMPTS]


async def test_stop_strings_end_the_text_before_them(words: str) -> None:
    async with running(words) as engine:
        whole = await engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=20)))
        stop = " ".join(whole.text.split()[3:5])
        cut = await engine.generate(
            engine_call(user(PROMPTS[0]), Sampling(max_tokens=20, stop=("never", stop)))
        )
        streamed = [
            d
            async for d in engine.stream(
                engine_call(user(PROMPTS[0]), Sampling(max_tokens=20, stop=("never", stop)))
            )
        ]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert "".join(d.text for d in streamed) == cut.text
    assert streamed[-1].usage == cut.usage


async def test_streams_in_a_batch_equal_plain_replies(words: str) -> None:
    async def streamed(engine: TransformersEngine, prompt: str) -> tuple[str, int, object]:
        deltas = [d async for d in engine.stream(engine_call(user(prompt), Sampling(max_tokens=12)))]
        assert all(d.usage is None and d.finish_reason is None for d in deltas[:-1])
        return "".join(d.text for d in deltas), len(deltas), deltas[-1].usage

    async with running(words) as engine:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(streamed(engine, prompt)) for prompt in PROMPTS]
        replies = await together(engine, [Sampling(max_tokens=12)] * 5)
    for task, reply in zip(tasks, replies, strict=True):
        text, num_deltas, usage = task.result()
        assert (text, usage) == (reply.text, reply.usage)
        assert num_deltas == len(reply.text.split()) + 1


async def test_character_model_streams_whole_characters(tmp_path: Path) -> None:
    async with running(character_checkpoint(tmp_path)) as engine:
        reply = await engine.generate(engine_call(user("abc"), Sampling(max_tokens=30)))
        pieces = [d.text async for d in engine.stream(engine_call(user("abc"), Sampling(max_tokens=30)))]
    assert len(reply.text) > 5
    assert "".join(pieces) == reply.text


async def test_seeded_reply_repeats_in_any_batch_and_other_seeds_differ(words: str) -> None:
    sampling = Sampling(max_tokens=15, temperature=1.0, seed=7)
    async with running(words) as engine:
        alone = await engine.generate(engine_call(user(PROMPTS[0]), sampling))
        company = await together(engine, [sampling, *[Sampling(max_tokens=15, temperature=1.5)] * 9])
        others = {
            (
                await engine.generate(
                    engine_call(user(PROMPTS[0]), sampling.model_copy(update={"seed": seed}))
                )
            ).text
            for seed in range(8)
        }
    assert company[0].text == alone.text
    assert len(others) > 1


async def test_draws_follow_the_probabilities_of_the_model(words: str) -> None:
    async with running(words) as engine:
        greedy = await engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=1, logprobs=True)))
        draws = [
            engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=1, temperature=1.0, seed=i)))
            for i in range(400)
        ]
        share = sum(r.text == greedy.text for r in await asyncio.gather(*draws)) / 400
        nucleus = [
            engine.generate(
                engine_call(user(PROMPTS[0]), Sampling(max_tokens=1, temperature=1.0, top_p=1e-6, seed=i))
            )
            for i in range(50)
        ]
        assert {r.text for r in await asyncio.gather(*nucleus)} == {greedy.text}
    assert greedy.logprobs is not None
    probability = math.exp(greedy.logprobs[0])
    assert 0.02 < probability < 0.98
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / 400)


async def test_penalties_lower_the_number_of_repeats(words: str) -> None:
    def repeats(reply: Completion) -> int:
        return len(reply.text.split()) - len(set(reply.text.split()))

    async with running(words) as engine:
        plain, presence, frequency = await asyncio.gather(
            engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=16))),
            engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=16, presence_penalty=2.0))),
            engine.generate(engine_call(user(PROMPTS[0]), Sampling(max_tokens=16, frequency_penalty=2.0))),
        )
    assert repeats(presence) < repeats(plain)
    assert repeats(frequency) < repeats(plain)


async def test_unknown_words_are_refused_by_name(words: str) -> None:
    async with running(words) as engine:
        with pytest.raises(EngineRefused, match=r"does not have 'hello', 'a', 'b', 'c', 'd' and others"):
            await engine.generate(engine_call(user("hello one a b c hello d e"), Sampling()))
        assert (
            await engine.generate(engine_call(user("one"), Sampling(max_tokens=1)))
        ).usage.completion_tokens == 1


async def test_replies_keep_to_a_json_schema_each_to_its_own(tmp_path: Path) -> None:
    pytest.importorskip("xgrammar")

    def schema(*names: str) -> dict[str, Any]:
        items = {"type": "string", "enum": list(names)}
        models = {"type": "array", "items": items, "minItems": 2, "maxItems": 2}
        return {"type": "object", "properties": {"models": models}, "required": ["models"]}

    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema("c", "d")}}
    async with running(character_checkpoint(tmp_path)) as engine:
        replies = await together(
            engine,
            [
                Sampling(max_tokens=60, json_schema=schema("a", "b")),
                Sampling(max_tokens=60, temperature=1.0, response_format=wanted),
                Sampling(max_tokens=5),
            ],
        )
    models = [json.loads(reply.text)["models"] for reply in replies[:2]]
    assert set(models[0]) <= {"a", "b"} and set(models[1]) <= {"c", "d"} and len(models[0]) == 2
    assert [reply.finish_reason for reply in replies[:2]] == ["stop", "stop"]
    assert not replies[2].text.startswith("{")


async def test_format_is_refused_without_the_library_that_keeps_to_it(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r2_serve.engines.transformers._FORMATS", ())
    async with running(words) as engine:
        with pytest.raises(EngineRefused, match="response_format"):
            await engine.generate(
                engine_call(user(PROMPTS[0]), Sampling(response_format={"type": "json_object"}))
            )


async def test_reply_ends_at_the_end_token_of_the_chat_template(tmp_path: Path) -> None:
    """Training teaches the template's end, so serving must stop there, whatever the config names."""
    path = character_checkpoint(tmp_path, end="<user>")
    async with running(path) as engine:
        ends = engine._base.tokenizer.convert_tokens_to_ids(["<eos>", "<user>"])
        assert engine._base.eos_ids == set(ends)


async def test_completion_goes_on_with_the_text_without_a_chat_template(words: str) -> None:
    engine = TransformersEngine(TransformersEngineConfig(kind="transformers", path=words))
    reply = await engine.generate(
        engine_call(user("one plus two"), Sampling(api="completions", max_tokens=4))
    )
    assert reply.usage.prompt_tokens == 3
    with pytest.raises(EngineRefused, match="not capable of tools"):
        await engine.generate(engine_call(user("one"), Sampling(forwarded={"tools": [{}]})))
    await engine.aclose()


async def test_prompt_that_fills_the_context_is_refused(words: str) -> None:
    async with running(words) as engine:
        with pytest.raises(EngineRefused, match=f"context of {CONTEXT_TOKENS}"):
            await engine.generate(engine_call(user("one " * CONTEXT_TOKENS), Sampling()))
        reply = await engine.generate(engine_call(user("one " * (CONTEXT_TOKENS - 4)), Sampling()))
    assert reply.usage.total_tokens <= CONTEXT_TOKENS


async def reply_text(engine: TransformersEngine, adapter: str | None = None, prompt: str = PROMPTS[0]) -> str:
    return (await engine.generate(engine_call(user(prompt), Sampling(max_tokens=16), adapter=adapter))).text


async def test_checkpoint_loaded_by_name_answers_only_the_calls_that_name_it(
    words: str, tmp_path: Path
) -> None:
    other = word_checkpoint(tmp_path / "other", seed=1)
    async with running(other) as alone:
        theirs = await reply_text(alone)
    async with running(words) as engine:
        ours = await reply_text(engine)
        with pytest.raises(EngineRefused, match=r"no adapter 'other'; this engine has \[\]"):
            await reply_text(engine, "other")
        calls = [asyncio.create_task(reply_text(engine)) for _ in range(100)]
        await engine.load_adapter("other", other)
        calls += [asyncio.create_task(reply_text(engine, name)) for name in (None, "other") * 20]
        replies = await asyncio.gather(*calls)
        streamed = "".join(
            [
                d.text
                async for d in engine.stream(
                    engine_call(user(PROMPTS[0]), Sampling(max_tokens=16), adapter="other")
                )
            ]
        )
    assert ours != theirs
    assert replies == [ours] * 100 + [ours, theirs] * 20
    assert streamed == theirs


async def test_loading_an_adapter_does_not_block_the_event_loop(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def recorded(*args: Any) -> Checkpoint:
        threads.append(threading.current_thread())
        return load_adapter(*args)

    monkeypatch.setattr("r2_serve.engines.transformers.load_adapter", recorded)
    async with running(words) as engine:
        await engine.load_adapter("other", word_checkpoint(tmp_path, seed=1))
    assert threads and threads[0] is not threading.main_thread()


@pytest.mark.parametrize("adapter", [None, "other"])
async def test_short_call_behind_a_long_one_ends_first(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str | None
) -> None:
    """The engine stands still in the middle of the long reply until the short call has come."""
    long = engine_call(user("eight eight"), Sampling(max_tokens=60))
    short = engine_call(user("nine is"), Sampling(max_tokens=4), adapter=adapter)
    has_come, advance = threading.Event(), RowBatch.advance
    ended: list[Completion] = []

    async def record(call: EngineCall) -> None:
        ended.append(await engine.generate(call))

    def held(batch: RowBatch) -> None:
        assert len(batch.rows[0].generated) < 5 or has_come.wait(10)
        advance(batch)

    async with running(words) as engine:
        await engine.load_adapter("other", word_checkpoint(tmp_path, seed=1))
        alone = [await engine.generate(call) for call in (short, long)]
        monkeypatch.setattr(RowBatch, "advance", held)
        first = asyncio.create_task(record(long))
        stream = engine.stream(long)
        await anext(stream)
        await stream.aclose()
        second = asyncio.create_task(record(short))
        await asyncio.sleep(0)
        has_come.set()
        await asyncio.gather(first, second)
    assert ended == alone and alone[1].usage.completion_tokens == 60


async def test_a_full_engine_takes_calls_in_the_order_of_arrival(words: str) -> None:
    order: list[int] = []

    async def one(engine: TransformersEngine, number: int) -> None:
        await engine.generate(engine_call(user(PROMPTS[number % 5]), Sampling(max_tokens=3)))
        order.append(number)

    async with running(words, max_batch_size=1) as engine:
        await asyncio.gather(*(one(engine, number) for number in range(20)))
    assert order == list(range(20))


async def test_model_that_cannot_change_its_rows_answers_group_by_group(tmp_path: Path) -> None:
    """Qwen3-Next keeps the state of its linear attention, which has no columns to pad."""
    path = linear_attention_checkpoint(tmp_path)
    async with running(path) as engine:
        batch = await together(engine, [Sampling(max_tokens=3 + i) for i in range(15)])
        alone = [
            await engine.generate(engine_call(user(p), Sampling(max_tokens=3 + i)))
            for i, p in enumerate(PROMPTS * 3)
        ]
    assert batch == alone


async def test_no_more_threads_than_cores_are_used(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    advance = RowBatch.advance

    def counted(batch: RowBatch) -> None:
        seen.append(torch.get_num_threads())
        advance(batch)

    monkeypatch.setattr(RowBatch, "advance", counted)
    before = torch.get_num_threads()
    try:
        async with running(words, num_threads=1000) as engine:
            await reply_text(engine)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {num_cores()}


async def test_removed_adapter_finishes_its_running_calls_and_takes_no_new_one(
    words: str, tmp_path: Path
) -> None:
    long = Sampling(max_tokens=60, frequency_penalty=2.0)
    async with running(words) as engine:
        await engine.load_adapter("other", word_checkpoint(tmp_path, seed=1))
        whole = (await engine.generate(engine_call(user("one"), long, adapter="other"))).text
        stream = engine.stream(engine_call(user("one"), long, adapter="other"))
        pieces = [(await anext(stream)).text]
        waiting = asyncio.create_task(engine.generate(engine_call(user("one"), long, adapter="other")))
        await asyncio.sleep(0)
        await engine.unload_adapter("other")
        with pytest.raises(EngineRefused, match="no adapter 'other'"):
            await reply_text(engine, "other")
        with pytest.raises(EngineRefused, match="no adapter 'other'"):
            await engine.unload_adapter("other")
        pieces += [delta.text async for delta in stream]
        assert "".join(pieces) == (await waiting).text == whole


async def test_lora_by_name_equals_peft_and_leaves_the_base_unchanged(words: str, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import Qwen2ForCausalLM

    path = random_adapter(words, tmp_path / "lora", seed=1)
    async with running(words) as engine:
        base = await reply_text(engine)
        await engine.load_adapter("lora", path)
        adapted = await reply_text(engine, "lora")
        assert await reply_text(engine) == base
        tokenizer = engine._base.tokenizer
    model = PeftModel.from_pretrained(Qwen2ForCausalLM.from_pretrained(words), path).eval()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    theirs = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
    )[0, ids.shape[1] :]
    assert adapted == tokenizer.decode(theirs, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert adapted != base


async def test_adapters_that_cannot_be_loaded_are_named_and_the_engine_still_answers(
    words: str, tmp_path: Path
) -> None:
    async with running(words) as engine:
        with pytest.raises(ConfigError, match=r"adapter_config\.json \(LoRA\) or config\.json"):
            await engine.load_adapter("empty", str(tmp_path))
        broken = tmp_path / "broken"
        shutil.copytree(words, broken)
        (broken / "model.safetensors").write_bytes(b"not safetensors")
        with pytest.raises(ConfigError, match="cannot load the model"):
            await engine.load_adapter("broken", str(broken))
        pickled = Path(random_adapter(words, tmp_path / "pickled", seed=1))
        (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
        with pytest.raises(ConfigError, match="other formats are not loaded"):
            await engine.load_adapter("pickled", str(pickled))
        await engine.load_adapter("again", words)
        with pytest.raises(ConfigError, match="new name"):
            await engine.load_adapter("again", words)
        assert await reply_text(engine, "again") == await reply_text(engine)


async def test_configured_adapters_are_loaded_at_the_start(words: str, tmp_path: Path) -> None:
    config = TransformersEngineConfig(
        kind="transformers", path=words, adapters={"other": word_checkpoint(tmp_path, seed=1)}
    )
    engine = await asyncio.to_thread(TransformersEngine, config)
    assert await reply_text(engine, "other") != await reply_text(engine)
    await engine.aclose()


async def test_cancelled_call_ends_without_ending_its_neighbour(words: str) -> None:
    async with running(words) as engine:
        long = Sampling(max_tokens=100, frequency_penalty=2.0)
        async with aclosing(engine.stream(engine_call(user("one"), long))) as abandoned:
            await anext(abandoned)
            task = asyncio.create_task(engine.generate(engine_call(user("two"), long)))
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (
            await engine.generate(engine_call(user("three"), Sampling(max_tokens=2)))
        ).usage.completion_tokens <= 2


async def test_call_past_its_timeout_is_unavailable(words: str) -> None:
    async with running(words) as engine:
        with pytest.raises(EngineUnavailable, match="in time"):
            await engine.generate(engine_call(user("one"), Sampling(max_tokens=100), timeout_s=0.0))


async def test_close_ends_the_thread_and_the_calls_in_flight(words: str) -> None:
    others = set(threading.enumerate())
    async with running(words, max_batch_size=1) as engine:
        calls = [
            asyncio.create_task(
                engine.generate(engine_call(user("one"), Sampling(max_tokens=120, frequency_penalty=2.0)))
            )
            for _ in range(20)
        ]
        await asyncio.sleep(0)
        await engine.check_health()
        await engine.aclose()
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        assert isinstance(results[-1], EngineUnavailable)
        assert all(isinstance(result, Completion | EngineUnavailable) for result in results)
        with pytest.raises(EngineUnavailable, match="closed"):
            await engine.generate(engine_call(user("one"), Sampling()))
        with pytest.raises(EngineUnavailable, match="closed"):
            await engine.check_health()
    assert not [
        thread for thread in set(threading.enumerate()) - others if thread.name == "transformers-engine"
    ]


async def test_a_hundred_calls_at_once_decode_together(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    advance = RowBatch.advance

    def counted(batch: RowBatch) -> None:
        widths.append(len(batch.rows))
        advance(batch)

    monkeypatch.setattr(RowBatch, "advance", counted)
    async with running(words, max_batch_size=64) as engine:
        replies = await together(engine, [Sampling(max_tokens=4)] * 100)
    assert len(replies) == 100
    assert max(widths) == 64 and len(widths) <= 20


async def test_failed_step_ends_its_calls_and_the_engine_goes_on(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: RowBatch) -> None:
        raise RuntimeError("no memory")

    async with running(words) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(RowBatch, "advance", broken)
            with pytest.raises(EngineUnavailable, match="RuntimeError: no memory"):
                await reply_text(engine)
        assert await reply_text(engine)


def test_folder_without_a_model_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot load"):
        TransformersEngine(TransformersEngineConfig(kind="transformers", path=str(tmp_path)))
