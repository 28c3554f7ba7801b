"""Tools, log-probabilities and other extras of VllmEngine on vLLM's CPU build, with random weights.

Required and named tools are held by structured outputs, so that even such a model must call them rightly.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.util import find_spec
from typing import Any

import pytest
import pytest_asyncio

from tests.support.engine_calls import engine_call

pytest.importorskip("torch")
if find_spec("vllm") is None:
    pytest.skip("needs vllm", allow_module_level=True)
pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

from r2_serve.config import RouterConfig, ServerConfig, VllmEngineConfig  # noqa: E402
from r2_serve.engines.vllm import VllmEngine  # noqa: E402
from r2_serve.engines.vllm_server import VllmServer, is_for_server  # noqa: E402
from r2_serve.errors import ConfigError, EngineRefused, EngineUnavailable  # noqa: E402
from r2_serve.http.api import create_app  # noqa: E402
from r2_serve.router.router import in_process  # noqa: E402
from r2_serve.types import Completion, Delta, EngineCall, Message, Sampling  # noqa: E402
from tests.support.in_process import model, routing  # noqa: E402
from tests.support.served_app import openai_client  # noqa: E402
from tests.support.tiny_checkpoint import character_checkpoint, tool_checkpoint  # noqa: E402


def tool(name: str) -> dict[str, Any]:
    city = {"type": "string", "maxLength": 5}
    days = {"type": "integer", "minimum": 1, "maximum": 9}
    parameters = {
        "type": "object",
        "properties": {"city": city, "days": days},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("weather"), tool("traffic")]
USER = Message(role="user", content="how is oslo?")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    path = tool_checkpoint(tmp_path_factory.mktemp("tools"))
    config = VllmEngineConfig(
        kind="vllm", model=path, tool_parser="hermes", engine_kwargs={"enable_prefix_caching": True}
    )
    engine = VllmEngine(config)
    yield engine
    await engine.aclose()


def call(*messages: Message, max_tokens: int = 300, **asked: Any) -> EngineCall:
    fields = {key: asked.pop(key) for key in ("temperature", "seed", "response_format") if key in asked}
    sampling = Sampling(max_tokens=max_tokens, forwarded=asked, **fields)
    return engine_call(list(messages) or [USER], sampling).model_copy(update={"is_verbatim": True})


def message_of(completion: Completion, choice: int = 0) -> dict[str, Any]:
    body: Any = completion.body
    return body["choices"][choice]["message"]


def check_arguments(function: dict[str, Any]) -> None:
    arguments = json.loads(function["arguments"])
    assert set(arguments) == {"city", "days"}
    assert len(arguments["city"]) <= 5
    assert 1 <= arguments["days"] <= 9


async def test_required_tool_is_called_with_arguments_of_its_schema(engine: VllmEngine) -> None:
    asked = [
        call(tools=TOOLS, tool_choice="required", temperature=1.0, seed=seed, max_tokens=1000)
        for seed in range(8)
    ]
    replies = await asyncio.gather(*map(engine.generate, asked))
    ended = [reply for reply in replies if reply.finish_reason == "tool_calls"]
    assert len(ended) >= 4, "random weights may make calls without an end"
    for made in (made for reply in ended for made in message_of(reply)["tool_calls"]):
        assert made["function"]["name"] in ("weather", "traffic")
        check_arguments(made["function"])


async def test_named_tool_is_the_one_that_is_called(engine: VllmEngine) -> None:
    choice = {"type": "function", "function": {"name": "traffic"}}
    (made,) = message_of(await engine.generate(call(tools=TOOLS, tool_choice=choice)))["tool_calls"]
    assert made["function"]["name"] == "traffic"
    check_arguments(made["function"])


async def test_streamed_tool_call_comes_in_pieces_that_join_to_the_plain_one(engine: VllmEngine) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    asked = call(tools=TOOLS, tool_choice=choice)
    (whole,) = message_of(await engine.generate(asked))["tool_calls"]
    deltas = [delta async for delta in engine.stream(asked)]
    pieces: list[Any] = [piece for delta in deltas for piece in tool_pieces(delta)]
    assert len(pieces) > 5
    assert pieces[0]["function"]["name"] == "weather"
    assert {piece["index"] for piece in pieces} == {0}
    joined = "".join(piece["function"].get("arguments") or "" for piece in pieces)
    assert json.loads(joined) == json.loads(whole["function"]["arguments"])
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens > 5


def tool_pieces(delta: Delta) -> list[Any]:
    choices: Any = (delta.body or {}).get("choices", ())
    return [piece for choice in choices for piece in choice["delta"].get("tool_calls") or ()]


async def test_text_that_the_parser_finds_no_call_in_is_the_answer(engine: VllmEngine) -> None:
    reply = await engine.generate(call(tools=TOOLS, tool_choice="auto", max_tokens=8))
    assert message_of(reply)["content"] == reply.text != ""
    assert not message_of(reply).get("tool_calls")
    assert reply.finish_reason == "length"


@pytest.mark.parametrize(
    ("result", "city", "added"),
    [("sun", "oslo", 0), ("sun and rain", "oslo", len(" and rain")), ("sun", "rome-north", len("-north"))],
)
async def test_tool_calls_and_results_in_history_are_rendered_by_the_template(
    engine: VllmEngine, result: str, city: str, added: int
) -> None:
    def history(result: str, city: str) -> tuple[Message, ...]:
        function = {"name": "weather", "arguments": json.dumps({"city": city})}
        made = {"id": "c1", "type": "function", "function": function}
        return (
            USER,
            Message(role="assistant", content=None, more={"tool_calls": [made]}),
            Message(role="tool", content=result, more={"tool_call_id": "c1"}),
        )

    async def num_tokens(*messages: Message) -> int:
        return (await engine.generate(call(*messages, tools=TOOLS, max_tokens=4))).usage.prompt_tokens

    shortest = await num_tokens(*history("sun", "oslo"))
    assert await num_tokens(*history(result, city)) == shortest + added
    more = ' assistant: <tool_call>weather {"city": "oslo"}</tool_call>\n'
    more += " tool: sun for c1\n"
    assert shortest - await num_tokens(USER) == len(more), "a token <user> takes the blank after it"


async def test_chat_template_switches_reach_the_template(engine: VllmEngine) -> None:
    plain = await engine.generate(call(max_tokens=2))
    switched = await engine.generate(call(max_tokens=2, chat_template_kwargs={"shout": True}))
    assert switched.usage.prompt_tokens == plain.usage.prompt_tokens + len("HEY")


async def test_switches_of_the_config_hold_for_calls_that_name_none(engine: VllmEngine) -> None:
    config = engine._config.model_copy(update={"chat_template_kwargs": {"shout": True}})
    server, plain = VllmServer(engine._engine, config), await engine.generate(call(max_tokens=2))
    switched = await server.generate(call(max_tokens=2), "a")
    own = await server.generate(call(max_tokens=2, chat_template_kwargs={"shout": False}), "b")
    assert switched.usage.prompt_tokens == plain.usage.prompt_tokens + len("HEY")
    assert own.usage.prompt_tokens == plain.usage.prompt_tokens
    assert is_for_server(call(max_tokens=2), config), "the engine's own way renders no switches"


async def test_several_replies_have_log_probabilities_of_each_token(engine: VllmEngine) -> None:
    asked = call(n=3, logprobs=True, top_logprobs=2, temperature=1.0, seed=1, max_tokens=5)
    reply = await engine.generate(asked)
    body: Any = reply.body
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    for choice in body["choices"]:
        assert 1 <= len(choice["logprobs"]["content"]) <= 5
        assert all(len(token["top_logprobs"]) == 2 for token in choice["logprobs"]["content"])
    assert reply.usage.completion_tokens <= 15
    assert reply.logprobs is not None


async def test_biased_token_is_chosen_and_top_k_of_one_is_greedy(engine: VllmEngine) -> None:
    z = engine._tokenizer.convert_tokens_to_ids("z")
    biased = await engine.generate(call(logit_bias={str(z): 100}, max_tokens=4))
    assert biased.text == "zzzz"
    greedy = await engine.generate(call(max_tokens=6, min_p=0.0))
    narrowed = await engine.generate(call(max_tokens=6, temperature=1.5, top_k=1))
    assert narrowed.text == greedy.text


async def test_image_for_a_model_of_text_is_refused_and_no_address_is_fetched(engine: VllmEngine) -> None:
    def image(url: str) -> Message:
        return Message(role="user", content=({"type": "image_url", "image_url": {"url": url}},))

    with pytest.raises(EngineRefused, match="not a multimodal model"):
        await engine.generate(call(image("data:image/png;base64,AAAA")))
    with pytest.raises(EngineRefused, match="data: URLs alone") as caught:
        await engine.generate(call(image("http://127.0.0.1:1/secret")))
    assert caught.value.param == "messages.0.content.0"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"n": 2, "temperature": 0.0}, "n must be 1"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "untrusted chat template"),
        ({"prompt_logprobs": 3}, "prompt_logprobs"),
    ],
)
async def test_request_that_vllm_refuses_is_refused_with_its_reason(
    engine: VllmEngine, asked: Any, reason: str
) -> None:
    with pytest.raises(EngineRefused, match=reason) as caught:
        await engine.generate(call(**asked))
    assert caught.value.param in (None, reason)
    with pytest.raises(EngineRefused, match=reason):
        async for _ in engine.stream(call(**asked)):
            pass


async def test_text_is_gone_on_with_and_comes_back_with_echo_and_log_probabilities(
    engine: VllmEngine,
) -> None:
    asked = completions("two plus", echo=True, logprobs=2, max_tokens=4)
    reply = await engine.generate(asked)
    body: Any = reply.body
    assert reply.text.startswith("two plus")
    assert reply.usage.prompt_tokens == len("two plus"), "no chat template"
    assert len(body["choices"][0]["logprobs"]["tokens"]) == len("two plus") + reply.usage.completion_tokens
    plain = await engine.generate(completions("two plus", max_tokens=4))
    deltas = [delta async for delta in engine.stream(completions("two plus", max_tokens=4))]
    assert "".join(delta.text for delta in deltas) == plain.text == reply.text.removeprefix("two plus")
    assert deltas[-1].usage == plain.usage


async def test_several_prompts_get_a_choice_each(engine: VllmEngine) -> None:
    reply = await engine.generate(completions("x", prompt=["one", "two", "three"], max_tokens=2))
    body: Any = reply.body
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert reply.usage.prompt_tokens == len("onetwothree")


async def test_suffix_is_refused_by_name(engine: VllmEngine) -> None:
    with pytest.raises(EngineRefused, match="does not read suffix") as caught:
        await engine.generate(completions("x", suffix="y"))
    assert caught.value.param == "suffix"


def completions(text: str, **asked: Any) -> EngineCall:
    made = call(Message(role="user", content=text), **asked)
    return made.model_copy(update={"sampling": made.sampling.model_copy(update={"api": "completions"})})


async def test_abandoned_tool_call_is_aborted(engine: VllmEngine) -> None:
    async with aclosing(engine.stream(call(max_tokens=1500, min_tokens=1500))) as deltas:
        await anext(deltas)
        assert engine._engine.output_processor.has_unfinished_requests()
    for _ in range(5_000):
        if not engine._engine.output_processor.has_unfinished_requests():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the request was not aborted")


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_client_gets_the_tool_call_of_a_local_model(engine: VllmEngine, stream: bool) -> None:
    names = ("decomposer", "allocator", "small", "large")
    local = model("local", engine=VllmEngineConfig(kind="vllm", model="x", tool_parser="hermes"))
    cards = (*(model(name) for name in names), local)
    router = in_process(RouterConfig(models=cards), routing(), lambda _: engine)
    asked: Any = {"model": "local", "messages": [{"role": "user", "content": "how is oslo?"}], "tools": TOOLS}
    asked["tool_choice"] = {"type": "function", "function": {"name": "weather"}}
    async with openai_client(create_app(router, ServerConfig())) as client:
        if stream:
            async with client.chat.completions.stream(**asked) as events:
                made: Any = (await events.get_final_completion()).choices[0].message.tool_calls
        else:
            made = (await client.chat.completions.create(**asked)).choices[0].message.tool_calls
    assert made[0].function.name == "weather"
    check_arguments({"arguments": made[0].function.arguments})


async def test_unknown_parser_and_template_without_tools_end_the_start(
    engine: VllmEngine, tmp_path: Any
) -> None:
    path = character_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="does not render tools"):
        VllmEngine(VllmEngineConfig(kind="vllm", model=path, tool_parser="hermes"))


async def test_closed_engine_answers_no_tool_call(engine: VllmEngine) -> None:
    await engine.aclose()
    with pytest.raises(EngineUnavailable):
        await engine.generate(call(tools=TOOLS))
