"""A checkpoint run in this process by transformers, for machines without GPU.

Concurrent calls are decoded together by one worker thread, while the event loop stays free. A call joins at
the next step and leaves with its last token (`row_batch`), so a short call does not wait for a long one.

Adapters are checkpoints held by name next to the base (`checkpoints`). Each checkpoint in use has a batch of
its own, and the batches take their steps in turn.

Replies keep to a JSON schema if xgrammar is installed; without it, `json_schema` is ignored and
`response_format` refused.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from r2_serve.config import TransformersEngineConfig
from r2_serve.engines.checkpoints import Checkpoint, load_adapter, load_checkpoint
from r2_serve.engines.cores import num_threads
from r2_serve.engines.decoding import Row
from r2_serve.engines.grammar import HAS_XGRAMMAR, schema_of
from r2_serve.engines.named_adapters import NamedAdapters
from r2_serve.engines.prompting import check_text_alone, prompt_ids
from r2_serve.engines.reply import Reply, ReplyLimits
from r2_serve.engines.row_batch import RowBatch
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
    """An `Engine` over `RowBatch`. Loading takes seconds; `aclose` ends the worker thread.

    Decoding is greedy unless `temperature` is above 0. Usage counts the prompt without padding, and the reply
    with its end-of-sequence token. A reply without `max_tokens` may fill the context.
    """

    def __init__(self, config: TransformersEngineConfig) -> None:
        self._config = config
        self._num_threads = num_threads(config.num_threads)
        torch.set_num_threads(self._num_threads)
        self._base = load_checkpoint(config.path, config)
        self._adapters: NamedAdapters[Checkpoint] = NamedAdapters()
        for name, folder in config.adapters.items():
            self._add_adapter(name, folder)
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._arrived: deque[_Call] = deque()
        """Calls taken from `_waiting` that are in no batch yet, oldest first."""
        self._batches: dict[Checkpoint, RowBatch] = {}
        """The rows at work, by checkpoint. The worker's thread alone uses it."""
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
        torch.set_num_threads(self._num_threads)  # of this thread
        while self._take_calls():
            self._admit()
            for checkpoint, batch in list(self._batches.items()):
                self._guarded(checkpoint, batch, batch.advance)
        for batch in self._batches.values():
            _fail(batch.rows, EngineUnavailable("the engine is closed"))
        for call in self._arrived:
            call.post(EngineUnavailable("the engine is closed"))

    def _take_calls(self) -> bool:
        """Moves what waits to `_arrived`. Blocks while there is nothing to do; False at the end."""
        try:
            while (call := self._waiting.get(block=not self._arrived and not self._batches)) is not None:
                self._arrived.append(call)
        except queue.Empty:
            return True
        return False

    def _admit(self) -> None:
        """Gives the oldest calls their rows, as far as there is room. The others keep their order."""
        free = self._config.max_batch_size - sum(len(batch.rows) for batch in self._batches.values())
        new: dict[Checkpoint, list[Row]] = {}
        left: deque[_Call] = deque()
        for call in self._arrived:
            batch = self._batches.get(call.checkpoint)
            if call.cancelled.is_set():
                continue
            if free <= 0 or (batch is not None and not batch.takes_rows):
                left.append(call)
            elif (row := _row(call)) is not None:
                new.setdefault(call.checkpoint, []).append(row)
                free -= 1
        self._arrived = left
        for checkpoint, rows in new.items():
            if checkpoint not in self._batches:
                self._batches[checkpoint] = RowBatch(checkpoint.model)
            batch = self._batches[checkpoint]
            self._guarded(checkpoint, batch, partial(batch.admit, rows), rows)

    def _guarded(
        self, checkpoint: Checkpoint, batch: RowBatch, step: Callable[[], None], new: Sequence[Row] = ()
    ) -> None:
        """Takes a step of a batch. A failed one ends the calls of this batch; an empty batch is forgotten."""
        try:
            batch.drop_ended()
            if batch.rows or new:
                with torch.inference_mode():
                    step()
        except Exception as e:  # noqa: BLE001 - the worker outlives any batch, and callers get EngineErrors only
            rows = {*batch.rows, *new}
            _log.exception("a batch of %d calls failed", len(rows))
            _fail(rows, EngineUnavailable(f"the model failed: {type(e).__name__}: {str(e)[:200]}"))
            batch.rows = []
        if not batch.rows:
            del self._batches[checkpoint]


def _row(call: _Call) -> Row | None:
    """The row of a call; None if the engine refuses it, which its caller then gets."""
    checkpoint = call.checkpoint
    try:
        prompt = prompt_ids(checkpoint.tokenizer, call.messages, checkpoint.context_tokens, call.sampling.api)
        schema = schema_of(call.sampling) if HAS_XGRAMMAR else None
        constraint = None if schema is None else checkpoint.grammars.constraint(schema)
    except EngineError as e:
        call.post(e)
        return None
    left = checkpoint.context_tokens - len(prompt)
    limits = ReplyLimits(min(call.sampling.max_tokens or left, left), checkpoint.eos_ids, call.sampling.stop)
    reply = Reply(checkpoint.tokenizer, limits, is_streamed=call.is_streamed)
    pass_on = partial(_pass_on, call, reply, len(prompt))
    return Row(prompt, call.sampling, reply, pass_on, call.post, call.cancelled.is_set, constraint)


def _fail(rows: Iterable[Row], error: EngineError) -> None:
    for row in rows:
        row.fail(error)


def _pass_on(call: _Call, reply: Reply, num_prompt_tokens: int) -> None:
    if call.is_streamed and (piece := reply.take_piece()):
        call.post(Delta(text=piece))
    if reply.finish_reason is not None:
        call.post(reply.completion(num_prompt_tokens))
