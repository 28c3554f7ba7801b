"""Sentence embeddings by the library sentence-transformers, in this process.

Calls that arrive while a batch is computed wait for the next one, which takes them all. The library loads a
directory or a hub name; only safetensors and no code of the checkpoint.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from r2_serve.config import EmbeddingsEngineConfig
from r2_serve.dialects.embeddings import completion_of
from r2_serve.engines import is_local_checkpoint
from r2_serve.engines.cores import num_threads
from r2_serve.engines.timing import Deadline, bounded
from r2_serve.errors import (
    ConfigError,
    ContextOverflow,
    EngineError,
    EngineRefused,
    EngineUnavailable,
)
from r2_serve.types import Completion, Delta, EngineCall, Json, Usage

Vectors = NDArray[np.float32]
MAX_INPUTS = 2048
"""Most inputs of one request, as at OpenAI."""


@dataclass
class _Waiting:
    """The texts of one call, and what its caller waits for."""

    texts: Sequence[str]
    vectors: asyncio.Future[Vectors]


class EmbeddingsEngine:
    """A `LocalEngine` without chat. Loading takes seconds."""

    def __init__(self, config: EmbeddingsEngineConfig) -> None:
        """Raises: ConfigError if the library is missing or the model cannot be loaded."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as e:
            hint = "pip install 'route-and-reason[embeddings]'"
            raise ConfigError(f"kind sentence-embeddings needs sentence-transformers: {hint} ({e})") from e
        torch.set_num_threads(num_threads(config.num_threads))
        self._config = config
        try:
            self._model = SentenceTransformer(
                config.path,
                device=config.device,
                trust_remote_code=False,
                local_files_only=is_local_checkpoint(config.path),
                model_kwargs={"use_safetensors": True},
            )
            self._model.encode(["warm"], show_progress_bar=False)  # the first call takes seconds
        except Exception as e:  # the library raises many types for a broken file
            raise ConfigError(f"cannot load the model {config.path!r}: {str(e)[:500]}") from e
        self._waiting: list[_Waiting] = []
        self._work: asyncio.Task[None] | None = None
        self._is_closed = False

    async def generate(self, call: EngineCall) -> Completion:
        """The vectors, in `body`. Raises: EngineRefused, ContextOverflow, EngineUnavailable."""
        if self._is_closed:
            raise EngineUnavailable("the engine is closed")
        if call.sampling.api != "embeddings":
            raise EngineRefused.of("model", "this model makes embeddings and nothing else: ask another one")
        asked = call.sampling.forwarded
        texts = _texts(asked.get("input"))
        write = _writer(asked.get("encoding_format", "float"))
        num_tokens = self._num_tokens(texts)
        async with bounded(Deadline(call.timeout_s).at):
            vectors = _cut(await self._encoded(texts), asked.get("dimensions"))
        data = [{"object": "embedding", "index": i, "embedding": write(v)} for i, v in enumerate(vectors)]
        body: Json = {"data": data, "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}
        usage = Usage(prompt_tokens=num_tokens)
        return Completion(text="", usage=usage, finish_reason="stop", body=completion_of(body))

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Raises: EngineRefused."""
        raise EngineRefused.of("stream", "embeddings are not streamed")
        yield

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises: ConfigError."""
        raise ConfigError(f"adapter {name!r}: a model of embeddings takes none")

    async def unload_adapter(self, name: str) -> None:
        """Raises: EngineRefused."""
        raise EngineRefused(f"no adapter {name!r}")

    async def check_health(self) -> None:
        """Raises: EngineUnavailable if the engine is closed."""
        if self._is_closed:
            raise EngineUnavailable("the engine is closed")

    async def aclose(self) -> None:
        """Ends the calls that wait with EngineUnavailable."""
        self._is_closed = True
        for waiting in self._waiting:
            _fail(waiting, EngineUnavailable("the engine is closed"))

    def _num_tokens(self, texts: Sequence[str]) -> int:
        """Tokens of all texts. Raises: ContextOverflow if one is too long and may not be cut."""
        limit = self._model.max_seq_length
        counts = [len(ids) for ids in self._model.tokenizer(list(texts), truncation=False)["input_ids"]]
        for index, count in enumerate(counts):
            if limit is not None and count > limit and not self._config.cuts_inputs:
                message = f"input {index} has {count} tokens; the model reads at most {limit}"
                raise ContextOverflow.of("input", message)
        return sum(count if limit is None else min(count, limit) for count in counts)

    async def _encoded(self, texts: Sequence[str]) -> Vectors:
        waiting = _Waiting(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._encode())
        return await waiting.vectors

    async def _encode(self) -> None:
        """Computes batches until nothing waits."""
        while self._waiting:
            calls, self._waiting = self._waiting, []
            texts = [text for call in calls for text in call.texts]
            try:
                vectors: Vectors = await asyncio.to_thread(
                    self._model.encode,
                    texts,
                    batch_size=self._config.max_batch_size,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                )
            except Exception as e:  # noqa: BLE001 - callers get EngineErrors only
                for call in calls:
                    _fail(call, EngineUnavailable(f"the model failed: {type(e).__name__}: {str(e)[:200]}"))
                continue
            ends = np.cumsum([len(call.texts) for call in calls])
            for call, part in zip(calls, np.split(vectors.astype(np.float32), ends[:-1]), strict=True):
                if not call.vectors.done():
                    call.vectors.set_result(part)


def _fail(call: _Waiting, error: EngineError) -> None:
    if not call.vectors.done():
        call.vectors.set_exception(error)


def _texts(given: object) -> list[str]:
    """Raises: EngineRefused for anything but texts."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise EngineRefused.of("input", "this model takes texts that are not empty, and no tokens of others")
    if not 0 < len(texts) <= MAX_INPUTS:
        raise EngineRefused.of("input", f"got {len(texts)} inputs; expected 1 to {MAX_INPUTS}")
    return texts


def _cut(vectors: Vectors, dimensions: object) -> Vectors:
    """The first `dimensions` of each vector, again of length 1. Raises: EngineRefused."""
    size = vectors.shape[1]
    if dimensions in (None, size):
        return vectors
    if type(dimensions) is not int or not 1 <= dimensions <= size:
        raise EngineRefused.of("dimensions", f"dimensions: got {dimensions!r}, expected 1 to {size}")
    shorter = vectors[:, :dimensions]
    cut: Vectors = shorter / np.linalg.norm(shorter, axis=1, keepdims=True)
    return cut


def _writer(encoding: object) -> Callable[[Vectors], object]:
    """How one vector is written: as numbers, or as base64 of little-endian float32. Raises: EngineRefused."""
    if encoding == "float":
        return lambda vector: vector.tolist()
    if encoding == "base64":
        return lambda vector: base64.b64encode(vector.astype("<f4").tobytes()).decode()
    raise EngineRefused.of("encoding_format", f"encoding_format: got {encoding!r}, expected float or base64")
