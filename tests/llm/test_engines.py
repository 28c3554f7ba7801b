"""Both engines serve a real chat model: SmolLM2-135M-Instruct, whose template and end tokens are its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio

from r2_serve.config import Config, TransformersEngineConfig, VllmEngineConfig
from r2_serve.config.prompts import PromptExample, read_prompts
from r2_serve.errors import ConfigError, EngineRefused
from r2_serve.prompts import get_codec
from r2_serve.prompts.conversation import asked
from r2_serve.types import Completion, Engine, Message, ModelCard, Plan, Sampling
from tests import ROOT
from tests.support.engine_calls import engine_call
from tests.support.in_process import plan_of

pytestmark = [pytest.mark.llm, pytest.mark.asyncio(loop_scope="module")]

QUESTION = "What is 17 + 25? Answer briefly."
PROBLEM = "Ann has 3 bags of 9 coins. Bob has 12 coins. How many coins do they have in all?"
EXAMPLE = PromptExample(
    query="Ann has 3 bags of 9 coins. Bob has 45 coins and loses 12. How many coins do they have in all?",
    plan=plan_of("3 * 9", "45 - 12", "#1 + #2"),
)
PROMPTS = read_prompts(str(ROOT / "benchmarks/smollm2/prompts.yaml"))
CODEC = get_codec("instruct").with_prompts(PROMPTS.model_copy(update={"examples": (EXAMPLE,)}))
"""It shows an example, as the untrained model writes on to its limit without one."""
POOL = tuple(ModelCard(name=name, usd_per_mtok_in=1, usd_per_mtok_out=1) for name in ("small", "large"))


def config_of(kind: str, path: str, **more: object) -> Config:
    if kind == "transformers":
        return TransformersEngineConfig.model_validate({"kind": kind, "path": path, **more})
    kwargs = {"max_model_len": 2048, "max_num_seqs": 8, "enable_lora": True, "max_lora_rank": 8}
    return VllmEngineConfig.model_validate({"kind": kind, "model": path, "engine_kwargs": kwargs, **more})


def started(config: Config) -> Engine:
    if isinstance(config, TransformersEngineConfig):
        from r2_serve.engines.transformers import TransformersEngine

        return TransformersEngine(config)
    from r2_serve.engines.vllm import VllmEngine

    assert isinstance(config, VllmEngineConfig)
    return VllmEngine(config)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["transformers", "vllm"])
async def engine(request: pytest.FixtureRequest, smollm2: str) -> AsyncIterator[Engine]:
    if find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    engine = started(config_of(request.param, smollm2))
    yield engine
    await engine.aclose()


async def reply(engine: Engine, text: str, sampling: Sampling, adapter: str | None = None) -> Completion:
    message = Message(role="user", content=text)
    return await engine.generate(engine_call([message], sampling, adapter=adapter))


async def test_greedy_answer_is_the_model_s_and_ends_at_the_end_of_its_turn(engine: Engine) -> None:
    answer = await reply(engine, QUESTION, Sampling(max_tokens=40, temperature=0.0))
    assert (answer.text, answer.finish_reason) == ("17 + 25 = 32.", "stop")


async def test_stream_is_the_plain_reply_in_pieces(engine: Engine) -> None:
    sampling = Sampling(max_tokens=12, temperature=0.0)
    call = engine_call([Message(role="user", content="Name three colours.")], sampling)
    deltas = [delta async for delta in engine.stream(call)]
    whole = await engine.generate(call)
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].usage == whole.usage and len(deltas) > 4


async def test_plan_and_allocation_keep_to_their_schemas(engine: Engine) -> None:
    sampling = Sampling(max_tokens=200, temperature=0.0, json_schema=CODEC.plan_schema(3))
    text = (await engine.generate(engine_call(CODEC.render_decompose(asked(PROBLEM), 3), sampling))).text
    plan = CODEC.parse_plan(text, PROBLEM)
    assert 1 <= len(plan.subtasks) <= 3 and all(subtask.text for subtask in plan.subtasks)
    two = Plan.model_validate(
        {"subtasks": [{"id": 1, "text": "3 * 9"}, {"id": 2, "text": "#1 + 12", "depends_on": [1]}]}
    )
    sampling = Sampling(max_tokens=40, temperature=0.0, json_schema=CODEC.allocation_schema(two, POOL))
    chosen = await engine.generate(engine_call(CODEC.render_allocate(asked(PROBLEM), two, POOL), sampling))
    assert len(CODEC.parse_allocation(chosen.text, two, POOL).models) == 2


async def test_no_step_is_a_copy_of_the_dots_in_the_built_in_prompt(engine: Engine) -> None:
    """The grammar asks for a word in each step. The plans of this model were all `...` before."""
    codec = get_codec("instruct")
    sampling = Sampling(max_tokens=40, temperature=0.0, json_schema=codec.plan_schema(3))
    text = (await engine.generate(engine_call(codec.render_decompose(asked(PROBLEM), 3), sampling))).text
    assert re.search(r'"text": ?".{0,5}\w', text), text


async def test_tools_are_refused_as_the_template_of_the_model_has_none(engine: Engine) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    with pytest.raises(EngineRefused, match="tool"):
        await reply(engine, QUESTION, Sampling(max_tokens=4, forwarded={"tools": [tool]}))


async def test_lora_by_name_changes_its_calls_alone_and_is_forgotten(engine: Engine, lora: Path) -> None:
    sampling = Sampling(max_tokens=8, temperature=0.0)
    before = await reply(engine, QUESTION, sampling)
    await engine.load_adapter("lora", str(lora))
    base, adapted = await asyncio.gather(
        reply(engine, QUESTION, sampling), reply(engine, QUESTION, sampling, "lora")
    )
    assert base.text == before.text != adapted.text
    await engine.unload_adapter("lora")
    with pytest.raises(EngineRefused, match="no adapter 'lora'"):
        await reply(engine, QUESTION, sampling, "lora")


async def test_short_call_behind_a_long_one_ends_first(engine: Engine) -> None:
    ended: list[int] = []

    async def one(num_tokens: int) -> None:
        sampling = Sampling(max_tokens=num_tokens, temperature=0.0, stop=("no such text",))
        await reply(engine, "Tell a long story about a cat.", sampling)
        ended.append(num_tokens)

    long = asyncio.create_task(one(60))
    await asyncio.sleep(0)
    await asyncio.gather(long, one(4))
    assert ended == [4, 60]


async def test_tool_parser_for_this_template_is_refused_at_the_start(smollm2: str) -> None:
    from r2_serve.engines.prompting import check_chat_template
    from r2_train.stages.model_files import load_tokenizer

    with pytest.raises(ConfigError, match="does not render tools: leave out tool_parser"):
        check_chat_template(load_tokenizer(smollm2), smollm2, renders_tools=True)
