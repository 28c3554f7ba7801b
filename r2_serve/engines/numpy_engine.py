"""The numpy engine: small checkpoints on the CPU, in this process, without torch.

Calls are batched continuously: a call joins the batch at the next step and leaves it with its last token. A
step takes about a millisecond and runs on the event loop, which turns to other tasks between two steps.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from r2_serve.config import NumpyEngineConfig
from r2_serve.engines import resolve_checkpoint
from r2_serve.engines.file_tokenizer import FileTokenizer
from r2_serve.engines.named_adapters import NamedAdapters
from r2_serve.engines.numpy_model import Floats, NumpyModel
from r2_serve.engines.prompting import check_chat_template, check_text_alone, prompt_ids
from r2_serve.engines.reply import Reply, ReplyLimits
from r2_serve.engines.timing import Deadline, bounded
from r2_serve.errors import ConfigError, EngineError, EngineUnavailable
from r2_serve.types import Completion, Delta, EngineCall, Message, Sampling

_log = logging.getLogger(__name__)


class NumpyEngine:
    """An `Engine` over `NumpyModel`. Loading takes milliseconds.

    Decoding is greedy unless `temperature` is above 0. Usage counts the end token. A reply without
    `max_tokens` may fill the context. `words` is kept to if each is one token of the model; `json_schema` is
    ignored and `response_format` is refused.
    """

    def __init__(self, config: NumpyEngineConfig) -> None:
        self._max_rows = config.max_batch_size
        self._base = self._loaded(resolve_checkpoint(config.path))
        self._adapters: NamedAdapters[Batch] = NamedAdapters()
        self._is_closed = False
        for name, folder in config.adapters.items():
            self._add_adapter(name, folder)

    async def generate(self, call: EngineCall) -> Completion:
        """Raises: EngineRefused for an unknown adapter or word, or too long a prompt; EngineUnavailable."""
        deadline = Deadline(call.timeout_s)
        with self._batch(call.adapter).row(call, is_streamed=False) as row:
            async with bounded(deadline.at):
                while not row.is_done:
                    await row.next_step()
        return row.reply.completion(len(row.prompt))

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """The same, token by token. Closing the iterator ends the row."""
        deadline = Deadline(call.timeout_s)
        with self._batch(call.adapter).row(call, is_streamed=True) as row:
            while not row.is_done:
                async with bounded(deadline.at):
                    await row.next_step()
                if piece := row.reply.take_piece():
                    with deadline.paused():
                        yield Delta(text=piece)
        done = row.reply.completion(len(row.prompt))
        yield Delta(finish_reason=done.finish_reason, usage=done.usage)

    def num_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        """Tokens of the rendered conversation; None for one that the model cannot take."""
        return self._base.num_prompt_tokens(messages)

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises: ConfigError if the name is taken, or if the directory holds no whole checkpoint."""
        await asyncio.to_thread(self._add_adapter, name, path)

    async def unload_adapter(self, name: str) -> None:
        """Forgets the adapter; running calls keep it. Raises: EngineRefused if the name is unknown."""
        self._adapters.pop(name)

    async def check_health(self) -> None:
        """Raises: EngineUnavailable if the engine is closed."""
        if self._is_closed:
            raise EngineUnavailable("the engine is closed")

    async def aclose(self) -> None:
        """Ends the calls that still run with EngineUnavailable."""
        self._is_closed = True
        for batch in (self._base, *self._adapters.values()):
            batch.fail(EngineUnavailable("the engine is closed"))

    def _add_adapter(self, name: str, path: str) -> None:
        self._adapters.check_free(name)
        if (Path(path) / "adapter_config.json").is_file():
            raise ConfigError(
                f"adapter {name!r} is LoRA, but the numpy engine takes whole checkpoints only: "
                "use the engine transformers or vllm"
            )
        self._adapters.add(name, self._loaded(path))

    def _loaded(self, folder: str) -> Batch:
        tokenizer = FileTokenizer(Path(folder))
        check_chat_template(tokenizer, folder)
        return Batch(NumpyModel(Path(folder)), tokenizer, self._max_rows)

    def _batch(self, adapter: str | None) -> Batch:
        if self._is_closed:
            raise EngineUnavailable("the engine is closed")
        return self._base if adapter is None else self._adapters.get(adapter)


@dataclass(eq=False)
class Row:
    """One reply in the making."""

    prompt: list[int]
    sampling: Sampling
    reply: Reply
    random: np.random.Generator
    allowed: Sequence[list[int]] = ()
    """The tokens that may come first, second, ...; after them, any."""
    token: int = 0
    """The newest token."""
    generated: list[int] = field(default_factory=list)
    error: EngineError | None = None
    _step: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_done(self) -> bool:
        return self.reply.finish_reason is not None

    async def next_step(self) -> None:
        """Returns after the next token. Raises: the row's error."""
        await self._step.wait()
        self._step.clear()
        if self.error is not None:
            raise self.error

    def push(self, token: int, logprob: float | None) -> None:
        self.token = token
        self.generated.append(token)
        if self.sampling.logprobs and logprob is not None:
            self.reply.logprobs.append(logprob)
        self.reply.push(token)
        self._step.set()

    def fail(self, error: EngineError) -> None:
        self.error = error
        self._step.set()


class Batch:
    """The rows of one checkpoint. A task decodes while there are rows, on the event loop of their calls."""

    def __init__(self, model: NumpyModel, tokenizer: FileTokenizer, max_rows: int) -> None:
        self._model, self._tokenizer, self._max_rows = model, tokenizer, max_rows
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        """Row i of the cache is that of `_rows[i]`."""
        self._cache = model.new_cache()
        self._decoding: asyncio.Task[None] | None = None

    @contextmanager
    def row(self, call: EngineCall, *, is_streamed: bool) -> Iterator[Row]:
        """A row for as long as its caller waits for it. Raises: EngineRefused."""
        row = self._new_row(call, is_streamed)
        self._waiting.append(row)
        if self._decoding is None or self._decoding.done():
            self._decoding = asyncio.create_task(self._decode())
        try:
            yield row
        finally:
            if row in self._waiting:
                self._waiting.remove(row)
            elif row in self._rows:
                self._drop(self._rows.index(row))

    def fail(self, error: EngineError) -> None:
        """Ends every row with `error`."""
        for row in (*self._rows, *self._waiting):
            row.fail(error)
        self._waiting.clear()
        self._rows.clear()
        self._cache = self._model.new_cache()

    def num_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        try:
            return len(prompt_ids(self._tokenizer, messages, self._model.shape.max_position_embeddings))
        except EngineError:
            return None

    def _new_row(self, call: EngineCall, is_streamed: bool) -> Row:
        check_text_alone(call, "numpy")
        context_tokens = self._model.shape.max_position_embeddings
        prompt = prompt_ids(self._tokenizer, call.messages, context_tokens, call.sampling.api)
        left = context_tokens - len(prompt)
        limits = ReplyLimits(
            min(call.sampling.max_tokens or left, left), self._model.eos_ids, call.sampling.stop
        )
        reply = Reply(self._tokenizer, limits, is_streamed=is_streamed)
        random = np.random.default_rng(call.sampling.seed)
        return Row(prompt, call.sampling, reply, random, self._allowed(call.sampling.words))

    def _allowed(self, words: Sequence[Sequence[str]]) -> Sequence[list[int]]:
        """The tokens of each group, then the end; nothing if a word is not one token of this model."""
        ids = [
            [self._tokenizer(word, add_special_tokens=False)["input_ids"] for word in group]
            for group in words
        ]
        unknown = self._tokenizer.unk_token_id
        if not ids or any(len(token) != 1 or token[0] == unknown for group in ids for token in group):
            return ()
        return [*([token[0] for token in group] for group in ids), sorted(self._model.eos_ids)]

    async def _decode(self) -> None:
        try:
            while self._rows or self._waiting:
                self._admit()
                await asyncio.sleep(0)
                self._advance()
                await asyncio.sleep(0)
        except Exception as e:  # noqa: BLE001 - callers get EngineErrors only
            _log.exception("decoding a batch of %d calls failed", len(self._rows))
            self.fail(EngineUnavailable(f"the model failed: {type(e).__name__}: {str(e)[:200]}"))
        except asyncio.CancelledError:  # the event loop ends
            self.fail(EngineUnavailable("the engine's event loop has ended"))
            raise

    def _admit(self) -> None:
        """Reads the prompts of the rows that wait, as far as there is room, and takes their first tokens."""
        first = len(self._rows)
        new = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_rows - first))]
        if not new:
            return
        lengths = np.array([len(row.prompt) for row in new])
        ids = np.array([row.prompt + [0] * (lengths.max() - len(row.prompt)) for row in new])
        self._rows += new
        self._cache.add_rows(len(new))
        self._push(new, self._model.forward(ids, lengths, self._cache, first))

    def _advance(self) -> None:
        """Takes the next token of every row."""
        if self._rows:
            ids = np.array([[row.token] for row in self._rows])
            self._push(list(self._rows), self._model.forward(ids, np.ones(len(ids), np.int64), self._cache))

    def _push(self, rows: Sequence[Row], logits: Floats) -> None:
        tokens, logprobs = choose(rows, logits)
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.push(token, logprob)
        for index in reversed([i for i, row in enumerate(self._rows) if row.is_done]):
            self._drop(index)

    def _drop(self, index: int) -> None:
        self._cache.drop(index)
        self._rows[index] = self._rows[-1]
        self._rows.pop()


def choose(rows: Sequence[Row], logits: Floats) -> tuple[list[int], Sequence[float | None]]:
    """The next token of each row, and its log-probability by the model alone if a row asks for it.

    A row with a temperature draws by the Gumbel-max trick from its own generator. So a seeded reply does not
    depend on the rest of the batch.
    """
    scores = logits.copy()
    for i, row in enumerate(rows):
        sampling = row.sampling
        if sampling.presence_penalty or sampling.frequency_penalty:
            counts = np.bincount(row.generated, minlength=logits.shape[1])
            scores[i] -= (sampling.frequency_penalty or 0) * counts + (sampling.presence_penalty or 0) * (
                counts > 0
            )
        if (place := len(row.generated)) < len(row.allowed):
            scores[i] = _only(row.allowed[place], scores[i])
        if sampling.temperature:
            logprobs = _log_softmax(scores[i] / np.float32(sampling.temperature))
            scores[i] = _within_top_p(logprobs, sampling.top_p) + row.random.gumbel(size=len(logprobs))
    tokens: list[int] = scores.argmax(axis=1).tolist()
    if not any(row.sampling.logprobs for row in rows):
        return tokens, [None] * len(rows)
    return tokens, _log_softmax(logits)[np.arange(len(rows)), tokens].tolist()


def _only(tokens: list[int], scores: Floats) -> Floats:
    """The scores (V,) with all other tokens at minus infinity."""
    kept = np.full_like(scores, -np.inf)
    kept[tokens] = scores[tokens]
    return kept


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logprobs: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logprobs


def _within_top_p(logprobs: Floats, top_p: float | None) -> Floats:
    """(V,) with all tokens outside the smallest set whose probability reaches `top_p` at minus infinity."""
    if top_p is None or top_p >= 1:
        return logprobs
    order = np.argsort(-logprobs)
    probabilities = np.exp(logprobs[order])
    is_outside = probabilities.cumsum() - probabilities >= top_p
    kept = logprobs.copy()
    kept[order[is_outside]] = -np.inf
    return kept
