"""vLLM's own OpenAI-compatible server code over an engine in this process, without HTTP.

It renders tools and tool results with the model's chat template, parses tool calls and thoughts with vLLM's
parsers, holds a reply to a required tool by structured outputs, and reads images. Its replies are read like
those of a provider (`hosted_replies`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from r2_serve.config import VllmEngineConfig
from r2_serve.config.abilities import VLLM_PARAMETERS
from r2_serve.engines.apis import TRANSLATIONS
from r2_serve.engines.chat_body import chat_body
from r2_serve.engines.chat_parts import first_fault
from r2_serve.engines.hosted_replies import StreamReader, parse_completion
from r2_serve.engines.provider_errors import failure_from_body
from r2_serve.engines.roles import (
    has_instructions,
    is_role_refusal,
    with_system_role,
    without_instruction_roles,
)
from r2_serve.engines.timing import Deadline, bounded
from r2_serve.engines.vllm_errors import as_engine_errors
from r2_serve.errors import ConfigError, EngineRefused
from r2_serve.types import Api, Completion, Delta, EngineCall, Json, Priority, Usage, needs_of

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

PREFIXES: dict[Api, str] = {"chat": "chatcmpl-", "completions": "cmpl-", "embeddings": "embd-"}
"""What the server code puts before the id of a request."""
RANKS: dict[Priority, int] = {"user": 0, "batch": 1, "training": 2}
"""vLLM takes waiting requests of a lower number first."""
MODEL = "model"
"""The name by which the server code knows the model."""


class VllmServer:
    """Answers bodies of chat completions. Raises: ConfigError for an unknown parser."""

    def __init__(self, engine: AsyncLLM, config: VllmEngineConfig) -> None:
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
        from vllm.entrypoints.openai.models.protocol import BaseModelPath
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels
        from vllm.renderers.online_renderer import OnlineRenderer

        options: dict[str, Any] = {
            "request_logger": None,
            "chat_template": None,
            "chat_template_content_format": "auto",
            "default_chat_template_kwargs": config.chat_template_kwargs,
            "enable_auto_tools": config.tool_parser is not None,
            "tool_parser": config.tool_parser,
            "reasoning_parser": config.reasoning_parser or "",
        }
        base = BaseModelPath(name=MODEL, model_path=config.model)
        self._models = models = OpenAIServingModels(engine, [base])
        try:
            renderer = OnlineRenderer(engine.model_config, engine.renderer, **options)
            self._chat = OpenAIServingChat(engine, models, "assistant", online_renderer=renderer, **options)
        except TypeError as e:
            raise ConfigError(f"vLLM does not know a parser of model {config.model!r}: {e}") from e
        self._completions = OpenAIServingCompletion(
            engine, models, online_renderer=renderer, request_logger=None
        )
        self._may_fetch = bool(config.engine_kwargs.get("allowed_media_domains"))

    def know_adapter(self, name: str, request: LoRARequest) -> None:
        """Makes the adapter's name a model to the server code, like the base's."""
        self._models.lora_requests[name] = request

    def forget_adapter(self, name: str) -> None:
        self._models.lora_requests.pop(name, None)

    async def generate(self, call: EngineCall, request_id: str) -> Completion:
        """Raises: EngineError."""
        with as_engine_errors():
            async with bounded(Deadline(call.timeout_s).at):
                reply = await self._reply(call, request_id, is_streamed=False)
        assert isinstance(reply, BaseModel)
        content = json.dumps(reply.model_dump(exclude=_VLLMS_OWN)).encode()
        parts = parse_completion(content, TRANSLATIONS[call.sampling.api].read, is_verbatim=call.is_verbatim)
        return Completion(
            text=parts.text,
            others=parts.others,
            usage=parts.tokens.whole() or Usage(),
            finish_reason=parts.finish_reason,
            logprobs=parts.logprobs,
            body=parts.body if call.is_verbatim else None,
        )

    async def stream(self, call: EngineCall, request_id: str) -> AsyncGenerator[Delta, None]:
        """Raises: EngineError. Closing the iterator aborts the request."""
        deadline = Deadline(call.timeout_s)
        reader = StreamReader(TRANSLATIONS[call.sampling.api].read_event, is_verbatim=call.is_verbatim)
        with as_engine_errors():
            async with bounded(deadline.at):
                events = await self._reply(call, request_id, is_streamed=True)
        assert isinstance(events, AsyncGenerator)
        async with aclosing(events):
            while (event := await self._next(events, deadline)) is not None:
                for piece in reader.feed(event.encode()):
                    with deadline.paused():
                        yield piece
        yield Delta(
            finish_reason=reader.finish(),
            usage=reader.usage or Usage(),
            body={"usage": reader.usage_body} if call.is_verbatim else None,
        )

    async def _next(self, events: AsyncGenerator[str, None], deadline: Deadline) -> str | None:
        with as_engine_errors():
            async with bounded(deadline.at):
                return await anext(events, None)

    async def _reply(
        self, call: EngineCall, request_id: str, *, is_streamed: bool
    ) -> BaseModel | AsyncGenerator[str, None]:
        """Asks once more without a system role if the chat template refuses that role."""
        for need in needs_of(call.messages, call.sampling):
            if need.ability is None and need.param not in VLLM_PARAMETERS:
                raise EngineRefused.of(
                    need.param, f"this engine (vllm) does not read {need.param}: leave it out"
                )
        self._check_media(call)
        messages = with_system_role(call.messages)
        body = chat_body(call, call.adapter or MODEL, messages=messages, is_streamed=is_streamed)
        body["request_id"] = request_id
        body["priority"] = RANKS[call.priority]
        if call.sampling.num_choices == 1:
            body.setdefault("temperature", 0.0)  # vLLM would take the checkpoint's, or 1
        try:
            return await self._answered(body, call.sampling.api)
        except (EngineRefused, ValueError) as e:
            if not (has_instructions(call.messages) and is_role_refusal(str(e))):
                raise
        body["messages"] = [message.wire for message in without_instruction_roles(call.messages)]
        return await self._answered(body, call.sampling.api)

    async def _answered(self, body: Json, api: Api) -> BaseModel | AsyncGenerator[str, None]:
        """The reply to a body of chat completions, in the words of `api`."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        try:
            kind = CompletionRequest if api == "completions" else ChatCompletionRequest
            request = kind.model_validate(TRANSLATIONS[api].write(body))
        except ValidationError as e:
            param = ".".join(map(str, e.errors(include_url=False)[0]["loc"]))
            raise EngineRefused.of(param, f"vLLM refused the request: {first_fault(e)}") from e
        answer = (
            self._completions.create_completion if api == "completions" else self._chat.create_chat_completion
        )
        reply: BaseModel | AsyncGenerator[str, None] = await answer(request)
        if isinstance(reply, ErrorResponse):
            raise failure_from_body(HTTPStatus.BAD_REQUEST, reply.model_dump())
        return reply

    def _check_media(self, call: EngineCall) -> None:
        """Raises: EngineRefused for an address that the replica would have to fetch, unless it may."""
        for i, message in enumerate(call.messages if not self._may_fetch else ()):
            for j, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
                media = part.get("image_url")
                url = media.get("url") if isinstance(media, Mapping) else media
                if media is not None and not str(url).startswith("data:"):
                    raise EngineRefused.of(
                        f"messages.{i}.content.{j}",
                        "this model takes images as data: URLs alone, so that no client can make it fetch an "
                        "address; the operator can list hosts in engine_kwargs.allowed_media_domains",
                    )


_VLLMS_OWN = {
    "prompt_logprobs",
    "prompt_token_ids",
    "prompt_text",
    "kv_transfer_params",
    "ec_transfer_params",
    "metrics",
}
"""Keys of a reply that no client of OpenAI knows."""


def is_for_server(call: EngineCall, config: VllmEngineConfig) -> bool:
    """Whether a call asks for more than the engine's own way gives, which takes text and formats alone."""
    if config.reasoning_parser is not None or config.chat_template_kwargs:
        return True
    own = (("model", "chat"), ("response_format", "json_object"), ("response_format", "json_schema"))
    return any(need not in own for need in needs_of(call.messages, call.sampling)) or not all(
        message.is_plain for message in call.messages
    )
