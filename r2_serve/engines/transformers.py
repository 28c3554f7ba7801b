"""A checkpoint run in this process by transformers, for machines without GPU.

Concurrent calls are decoded together: one worker thread runs `generate` on all calls that wait, while the
event loop stays free. A call that arrives during a batch waits for the next one; a reply is handed over when
its row ends. vLLM batches continuously, this engine does not.

Adapters are checkpoints held by name next to the base (`checkpoints`). A batch holds calls of one checkpoint,
the one that the oldest call asks for.

Replies keep to a JSON schema if xgrammar is installed; without it, `json_schema` is ignored and
`response_format` refused. Positions in the padding may pass the model's context, which works for rotary
models but not for models with a learned position table.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from r2_serve.config import TransformersEngineConfig
from r2_serve.engines.checkpoints import Checkpoint, load_adapter, load_checkpoint
from r2_serve.engines.decoding import Row, RowSampler, RowStops
from r2_serve.engines.grammar import HAS_XGRAMMAR, schema_of
from r2_serve.engines.named_adapters import NamedAdapters
from r2_serve.engines.prompting import check_text_alone, prompt_ids
from r2_serve.engines.reply import Reply, ReplyLimits
from r2_serve.engines.timing import Deadline, bounded
from r2_serve.errors import EngineError, EngineUnavailable
from r2_serve.types import Ability, Completion, Delta, EngineCall, Message, Sampling

_log = logging.getLogger(__name__)
_FORMATS: tuple[Ability, ...] = ("json_object", "json_schema") if HAS_XGRAMMAR else ()
_Event = Delta | Completion | EngineError


@dataclass
class _Call:
    """One call, made on the event loop. The worker thread answers it through `events`."""

    checkpoint: Checkpoint
    """The adapter's or the base; the call keeps it even if the adapter is unloaded."""
    messages: Sequence[Message]
    sampling: Sampling
    is_streamed: bool
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: asyncio.Queue[_Event] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def post(self, event: _Event) -> None:
        """Sends an event from the worker's thread. A caller whose loop has ended counts as cancelled."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:
            self.cancelled.set()

    async def next_event(self, deadline: Deadline) -> Delta | Completion:
        async with bounded(deadline.at):
            event = await self.events.get()
        if isinstance(event, EngineError):
            raise event
        return event


class TransformersEngine:
    """An `Engine` over `generate`. Loading takes seconds; `aclose` ends the worker thread.

    Decoding is greedy unless `temperature` is above 0. Usage counts the prompt without padding, and the reply
    with its end-of-sequence token. A reply without `max_tokens` may fill the context.
    """

    def __init__(self, config: TransformersEngineConfig) -> None:
        self._config = config
        torch.set_num_threads(config.num_threads)
        self._base = load_checkpoint(config.path, config)
        self._adapters: NamedAdapters[Checkpoint] = NamedAdapters()
        for name, folder in config.adapters.items():
            self._add_adapter(name, folder)
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._put_back: deque[_Call] = deque()
        """Calls taken from `_waiting` for another checkpoint than the batch's, in order of arrival."""
        self._closing = threading.Event()
        self._submit_lock = threading.Lock()
        self._worker = threading.Thread(target=self._work, name="transformers-engine", daemon=True)
        self._worker.start()

    async def generate(self, call: EngineCall) -> Completion:
        """Raises: EngineRefused for an unknown adapter or word, or too long a prompt; EngineUnavailable."""
        deadline = Deadline(call.timeout_s)
        check_text_alone(call, "transformers", _FORMATS)
        submitted = self._submitted(
            _Call(self._checkpoint(call.adapter), call.messages, call.sampling, is_streamed=False)
        )
        try:
            reply = await submitted.next_event(deadline)
        finally:
            submitted.cancelled.set()
        assert isinstance(reply, Completion)
        return reply

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Raises: as `generate`. Closing the iterator ends the row."""
        deadline = Deadline(call.timeout_s)
        check_text_alone(call, "transformers", _FORMATS)
        submitted = self._submitted(
            _Call(self._checkpoint(call.adapter), call.messages, call.sampling, is_streamed=True)
        )
        try:
            while isinstance(event := await submitted.next_event(deadline), Delta):
                with deadline.paused():
                    yield event
            yield Delta(finish_reason=event.finish_reason, usage=event.usage)
        finally:
            submitted.cancelled.set()

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises: ConfigError if the name is taken or the adapter cannot be loaded."""
        await asyncio.to_thread(self._add_adapter, name, path)

    async def unload_adapter(self, name: str) -> None:
        """Forgets the adapter; running calls keep it. Raises: EngineRefused if the name is unknown."""
        self._adapters.pop(name)

    async def check_health(self) -> None:
        """Raises: EngineUnavailable if the engine is closed or its worker thread has ended."""
        if self._closing.is_set() or not self._worker.is_alive():
            raise EngineUnavailable("the engine is closed")

    async def aclose(self) -> None:
        """Ends the worker within about one decoding step; calls that still run get EngineUnavailable."""
        with self._submit_lock:
            self._closing.set()
            self._waiting.put(None)
        await asyncio.to_thread(self._worker.join)

    def _add_adapter(self, name: str, path: str) -> None:
        self._adapters.check_free(name)
        self._adapters.add(name, load_adapter(name, path, self._base, self._config))

    def _checkpoint(self, adapter: str | None) -> Checkpoint:
        return self._base if adapter is None else self._adapters.get(adapter)

    def _submitted(self, call: _Call) -> _Call:
        with self._submit_lock:
            if self._closing.is_set():
                raise EngineUnavailable("the engine is closed")
            self._waiting.put(call)
        return call

    # -- the worker's thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while calls := self._next_calls():
            try:
                self._run(calls)
            except Exception as e:  # noqa: BLE001 - the worker outlives any batch, and callers get EngineErrors only
                _log.exception("a batch of %d calls failed", len(calls))
                for call in calls:
                    call.post(EngineUnavailable(f"the model failed: {type(e).__name__}: {str(e)[:200]}"))

    def _next_calls(self) -> list[_Call]:
        """The oldest call and others for the same checkpoint, up to a full batch; empty at the end."""
        waiting = self._drained()
        if waiting is None:
            return []
        calls: list[_Call] = []
        for call in waiting:
            if not calls or (
                call.checkpoint is calls[0].checkpoint and len(calls) < self._config.max_batch_size
            ):
                calls.append(call)
            else:
                self._put_back.append(call)
        return calls

    def _drained(self) -> list[_Call] | None:
        """All waiting calls that are not cancelled, at least one, oldest first; None at the end."""
        calls: list[_Call] = []
        while True:
            if self._put_back:
                call: _Call | None = self._put_back.popleft()
            else:
                try:
                    call = self._waiting.get(block=not calls)
                except queue.Empty:
                    return calls
            if call is None:
                for refused in calls:
                    refused.post(EngineUnavailable("the engine is closed"))
                return None
            if not call.cancelled.is_set():
                calls.append(call)

    def _run(self, calls: Sequence[_Call]) -> None:
        rows = [row for call in calls if (row := self._row(call)) is not None]
        if rows:
            self._decode(rows, calls[0].checkpoint)
        if self._closing.is_set():
            for call in calls:
                call.post(EngineUnavailable("the engine is closed"))

    def _row(self, call: _Call) -> Row | None:
        checkpoint = call.checkpoint
        try:
            prompt = prompt_ids(
                checkpoint.tokenizer, call.messages, checkpoint.context_tokens, call.sampling.api
            )
            schema = schema_of(call.sampling) if HAS_XGRAMMAR else None
            constraint = None if schema is None else checkpoint.grammars.constraint(schema)
        except EngineError as e:
            call.post(e)
            return None
        left = checkpoint.context_tokens - len(prompt)
        limits = ReplyLimits(
            min(call.sampling.max_tokens or left, left), checkpoint.eos_ids, call.sampling.stop
        )
        reply = Reply(checkpoint.tokenizer, limits, is_streamed=call.is_streamed)
        is_cancelled = partial(_any_set, call.cancelled, self._closing)
        pass_on = partial(_pass_on, call, reply, len(prompt))
        return Row(prompt, call.sampling, reply, pass_on, is_cancelled, constraint)

    def _decode(self, rows: Sequence[Row], checkpoint: Checkpoint) -> None:
        """Decodes the rows to their ends, padded on the left, as each goes on at its right end."""
        model = checkpoint.model
        width = max(len(row.prompt) for row in rows)
        pad = model.generation_config.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in rows])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        sampler = RowSampler(rows, width)
        with torch.inference_mode():
            model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
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
