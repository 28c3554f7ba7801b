"""A checkpoint run in the process by transformers: the default on a machine without GPU.

Concurrent calls are decoded together: one worker thread takes whatever waits and runs `generate` on it, while the event
loop stays free. A call that arrives during a batch waits for the next one; a row's reply is handed over the moment the
row ends. Not continuous batching: vLLM is for that.

Limits of this engine: `json_schema` is ignored, as every caller parses and validates anyway; adapters are refused;
positions in the padding may pass the model's context, which rotary models bear and models with a learned position
table do not.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.generation import LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from r2_serve.config import TransformersEngineConfig
from r2_serve.engines import is_local_checkpoint, resolve_checkpoint
from r2_serve.engines.decoding import Reply, ReplyLimits, Row, RowSampler, RowStops
from r2_serve.engines.prompting import check_chat_template, has_generic_tokenizer, prompt_ids
from r2_serve.engines.timing import bounded, deadline_after
from r2_serve.errors import ConfigError, EngineError, EngineRefused, EngineUnavailable
from r2_serve.types import Completion, Delta, Message, Sampling

_log = logging.getLogger(__name__)
_Event = Delta | Completion | EngineError


@dataclass
class _Call:
    """One call: made on the event loop, worked on by the thread, which answers through `events`."""

    messages: Sequence[Message]
    sampling: Sampling
    is_streamed: bool
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: asyncio.Queue[_Event] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def post(self, event: _Event) -> None:
        """From the worker's thread. A caller whose loop is gone counts as cancelled."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:
            self.cancelled.set()

    async def next_event(self, deadline: float | None) -> Delta | Completion:
        async with bounded(deadline):
            event = await self.events.get()
        if isinstance(event, EngineError):
            raise event
        return event


class TransformersEngine:
    """An `Engine` over `generate`. Loading takes seconds; `close` or `aclose` ends the worker thread.

    Decoding is greedy unless `temperature` is above 0. Usage counts the prompt without padding, and in the reply
    the end-of-sequence token, as it was generated too. A reply without `max_tokens` may fill the context.
    """

    def __init__(self, config: TransformersEngineConfig) -> None:
        self._config = config
        torch.set_num_threads(config.num_threads)
        self._tokenizer, self._model = _load(config)
        self._eos_ids = frozenset(self._model.generation_config.eos_token_id)
        self._context_tokens = int(self._model.config.get_text_config().max_position_embeddings)
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._submit_lock = threading.Lock()
        self._worker = threading.Thread(target=self._work, name="transformers-engine", daemon=True)
        self._worker.start()

    async def generate(
        self, messages: Sequence[Message], sampling: Sampling, *, adapter: str | None = None, timeout_s: float | None = None
    ) -> Completion:
        """Raises: EngineRefused for an adapter, an unknown word or too long a prompt; EngineUnavailable."""
        deadline = deadline_after(timeout_s)
        call = self._submitted(_Call(messages, sampling, is_streamed=False), adapter)
        try:
            reply = await call.next_event(deadline)
        finally:
            call.cancelled.set()
        assert isinstance(reply, Completion)
        return reply

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, *, adapter: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[Delta, None]:
        """The same, token by token. Closing the iterator ends the row."""
        deadline = deadline_after(timeout_s)
        call = self._submitted(_Call(messages, sampling, is_streamed=True), adapter)
        try:
            while isinstance(event := await call.next_event(deadline), Delta):
                yield event
            yield Delta(finish_reason=event.finish_reason, usage=event.usage)
        finally:
            call.cancelled.set()

    def close(self) -> None:
        """Ends the worker; calls in flight get EngineUnavailable. Blocks for at most about one decoding step."""
        with self._submit_lock:
            self._closing.set()
            self._waiting.put(None)
        self._worker.join()

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)

    def _submitted(self, call: _Call, adapter: str | None) -> _Call:
        if adapter is not None:
            raise EngineRefused(f"adapter {adapter!r}: this engine runs whole models only; adapters need the vllm engine")
        with self._submit_lock:
            if self._closing.is_set():
                raise EngineUnavailable("the engine is closed")
            self._waiting.put(call)
        return call

    # -- the worker's thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while calls := self._next_calls():
            try:
                self._run(calls)
            except Exception as e:  # noqa: BLE001 - the worker outlives any batch, and callers get EngineErrors only
                _log.exception("a batch of %d calls failed", len(calls))
                for call in calls:
                    call.post(EngineUnavailable(f"the model failed: {type(e).__name__}: {str(e)[:200]}"))

    def _next_calls(self) -> list[_Call]:
        """Everything that waits, up to a full batch; empty when the engine closes."""
        calls: list[_Call] = []
        while len(calls) < self._config.max_batch_size:
            try:
                call = self._waiting.get(block=not calls)
            except queue.Empty:
                break
            if call is None:
                for refused in calls:
                    refused.post(EngineUnavailable("the engine is closed"))
                return []
            if not call.cancelled.is_set():
                calls.append(call)
        return calls

    def _run(self, calls: Sequence[_Call]) -> None:
        rows = [row for call in calls if (row := self._row(call)) is not None]
        if rows:
            self._decode(rows)
        if self._closing.is_set():
            for call in calls:
                call.post(EngineUnavailable("the engine is closed"))

    def _row(self, call: _Call) -> Row | None:
        try:
            prompt = prompt_ids(self._tokenizer, call.messages, self._context_tokens)
        except EngineError as e:
            call.post(e)
            return None
        left = self._context_tokens - len(prompt)
        limits = ReplyLimits(min(call.sampling.max_tokens or left, left), self._eos_ids, call.sampling.stop)
        reply = Reply(self._tokenizer, limits, is_streamed=call.is_streamed)
        is_cancelled = partial(_any_set, call.cancelled, self._closing)
        return Row(prompt, call.sampling, reply, partial(_pass_on, call, reply, len(prompt)), is_cancelled)

    def _decode(self, rows: Sequence[Row]) -> None:
        """Left-padded, as each row goes on at its right end."""
        width = max(len(row.prompt) for row in rows)
        pad = self._model.generation_config.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in rows])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        sampler = RowSampler(rows, width)
        with torch.inference_mode():
            self._model.generate(
                input_ids=input_ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                max_new_tokens=max(row.reply.max_tokens for row in rows),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([RowStops(rows, sampler)]),
            )


def _any_set(*events: threading.Event) -> bool:
    return any(event.is_set() for event in events)


def _pass_on(call: _Call, reply: Reply, num_prompt_tokens: int) -> None:
    if call.is_streamed and (piece := reply.take_piece()):
        call.post(Delta(text=piece))
    if reply.finish_reason is not None:
        call.post(reply.completion(num_prompt_tokens))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _load(config: TransformersEngineConfig) -> tuple[Any, Any]:
    """Tokenizer and model, the latter with plain greedy decoding as its default: what a checkpoint sets is not mixed in."""
    # Its one warning, that the padded batch is longer than the context, is expected here: rows are bounded one by one.
    logging.getLogger("transformers.generation.stopping_criteria").setLevel(logging.ERROR)
    path = resolve_checkpoint(config.path)
    tokenizers = PreTrainedTokenizerFast if has_generic_tokenizer(path) else AutoTokenizer
    options = {"trust_remote_code": False, "local_files_only": is_local_checkpoint(config.path)}
    try:
        tokenizer = tokenizers.from_pretrained(path, **options)
        with _no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, config.dtype), use_safetensors=True, **options)
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot load the model {config.path!r}: {e}") from e
    check_chat_template(tokenizer, config.path)
    eos = model.generation_config.eos_token_id
    eos_ids = [eos] if isinstance(eos, int) else list(eos or [])
    if not eos_ids and tokenizer.eos_token_id is None:
        raise ConfigError(f"the model {config.path!r} names no end-of-sequence token")
    eos_ids = eos_ids or [tokenizer.eos_token_id]
    pad = eos_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=eos_ids, pad_token_id=pad, use_cache=True)
    return tokenizer, model.to(config.device).eval()
