"""What R2's engine and training stages do on the accelerator of this machine, in at most ten minutes.

    benchmarks/gpu/check.sh                      all sections; writes runs/gpu-check.json
    benchmarks/gpu/check.sh --tiny --device cpu  a try in a few minutes, as the tests do it

Sections, each in a process of its own with its own limit, so that the failure of one leaves the others:

- serve-*: the transformers engine in bfloat16, tokens per second with 1, 32 and 256 calls at once.
- train-*: SFT and GRPO of our stages, samples per second, beside plain TRL with the same settings (for GRPO
  with a constant reward). `lora` trains an adapter, `full` all weights.
- zero2: one step of SFT under DeepSpeed ZeRO-2.

The models are SmolLM2-135M-Instruct (`r2-train fetch-smollm2`; left out where it is not there) and a random
Qwen2 of 100M parameters with a tokenizer of bytes. The figures say how fast, not how well: nothing is learned
in so few steps. Needed: torch, transformers, accelerate, peft, trl, datasets, and this package's own needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SMOLLM2 = Path("runs/SmolLM2-135M-Instruct")
LIMIT_S, SECTION_S = 580.0, 180.0
PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "deepspeed", "route-and-reason")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT_TOKENS = 4096
NUM_TASKS = 64
LOOPBACK = "127.0.0.1"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<pad>")


@dataclass(frozen=True)
class Scale:
    """How much each section does."""

    at_once: tuple[int, ...]
    reply_tokens: int
    sft_steps: int
    sft_batch: int
    grpo_steps: int
    generations: int
    completion_tokens: int
    hidden: int
    layers: int
    vocabulary: int


FULL = Scale((1, 32, 256), 128, 20, 16, 4, 16, 64, hidden=768, layers=12, vocabulary=49_152)
TINY = Scale((1, 4), 8, 2, 2, 1, 2, 8, hidden=32, layers=2, vocabulary=512)


@dataclass(frozen=True)
class Check:
    """What a section is given."""

    scale: Scale
    device: str
    folder: Path
    """Models and checkpoints of this run are written there."""
    smollm2: Path

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def model(self, name: str) -> str:
        """The directory of a model; the random one is made here."""
        if name == "smollm2":
            return str(self.smollm2)
        path = self.folder / name
        if not (path / "model.safetensors").is_file():
            write_random_model(path, self.scale)
        return str(path)


def write_random_model(path: Path, scale: Scale) -> None:
    """A Qwen2 with random weights. Its tokenizer knows bytes, and its other tokens stand for no text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    fill = [f"<|{i}|>" for i in range(scale.vocabulary - len(SPECIAL) - len(bytes_))]
    ids = {token: i for i, token in enumerate([*SPECIAL, *bytes_, *fill])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    start, end, pad = SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=pad, model_max_length=CONTEXT_TOKENS
    )
    fast.add_special_tokens({"additional_special_tokens": [start]})
    fast.chat_template = CHATML
    torch.manual_seed(0)
    heads = max(2, scale.hidden // 64)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=scale.vocabulary,
            hidden_size=scale.hidden,
            intermediate_size=scale.hidden * 8 // 3,
            num_hidden_layers=scale.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 3),
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(path)
    fast.save_pretrained(path, save_jinja_files=False)


# -- serving -------------------------------------------------------------------------------------------------


def serve(check: Check, name: str) -> dict[str, Any]:
    """Tokens per second of the transformers engine, by the number of calls at once."""
    from r2_serve.config import TransformersEngineConfig
    from r2_serve.engines.transformers import TransformersEngine
    from r2_serve.types import EngineCall, Message, Sampling

    config = TransformersEngineConfig(
        kind="transformers",
        path=check.model(name),
        device="cuda:0" if check.is_gpu else "cpu",
        dtype="bfloat16" if check.is_gpu else "float32",
        max_batch_size=max(check.scale.at_once),
    )
    engine = TransformersEngine(config)
    tokens = check.scale.reply_tokens

    async def ask(number: int) -> int:
        call = EngineCall(
            messages=(Message(role="user", content=f"Write a long story about the number {number}."),),
            sampling=Sampling(max_tokens=tokens, temperature=1.0, seed=number),
        )
        return (await engine.generate(call)).usage.completion_tokens

    async def measured() -> dict[str, float]:
        await ask(0)  # the first call compiles and reserves
        found = {}
        for num in check.scale.at_once:
            start_s = time.perf_counter()
            written = sum(await asyncio.gather(*map(ask, range(num))))
            found[str(num)] = written / (time.perf_counter() - start_s)
        await engine.aclose()
        return found

    return {"tokens_per_s": asyncio.run(measured())}


# -- training ------------------------------------------------------------------------------------------------


def train(check: Check, name: str, kind: str) -> dict[str, Any]:
    """Samples per second of our SFT and GRPO, and of plain TRL with the same arguments."""
    lora = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"} if kind == "lora" else None
    base, found = check.model(name), {}
    for method, ours, plain in (("sft", our_sft, plain_sft), ("grpo", our_grpo, plain_grpo)):
        for label, run in (("ours", ours), ("trl", plain)):
            directory = check.folder / f"{name}-{kind}-{method}-{label}"
            found[f"{method}_{label}_samples_per_s"] = run(check, base, lora, directory)
    return found


def zero2(check: Check) -> dict[str, Any]:
    """One step of SFT under DeepSpeed ZeRO-2, in one process that stands for all workers."""
    import torch

    from r2_train.launch import zero
    from r2_train.launch.deepspeed_worker import start_deepspeed

    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": port}
    os.environ["TORCH_EXTENSIONS_DIR"] = str(check.folder / "extensions")
    if not check.is_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.distributed.init_process_group("nccl" if check.is_gpu else "gloo")
    start_deepspeed(use_gpu=check.is_gpu)
    config = zero.read_config("zero2")
    config = config if check.is_gpu else zero.cpu_variant(config)
    model, directory = check.model("random-100m"), check.folder / "zero2"
    return {"steps": 1, "samples_per_s": our_sft(check, model, None, directory, deepspeed=config, steps=1)}


def sft_arguments(check: Check, steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "per_device_train_batch_size": check.scale.sft_batch,
        "optim": "adamw_torch",
        "logging_steps": 1000,
    }


def grpo_arguments(check: Check) -> dict[str, Any]:
    scale = check.scale
    return {
        "max_steps": scale.grpo_steps,
        "per_device_train_batch_size": scale.generations,
        "num_generations": scale.generations,
        "max_completion_length": scale.completion_tokens,
        "optim": "adamw_torch",
        "logging_steps": 1000,
        "save_strategy": "no",
    }


def our_sft(
    check: Check, base: str, lora: Any, directory: Path, *, deepspeed: Any = None, steps: int | None = None
) -> float:
    from r2_train.config import SftConfig
    from r2_train.stages import sft

    steps = check.scale.sft_steps if steps is None else steps
    run = stage_run(check, directory, deepspeed)
    stage = sft.SftStage(
        examples=sft_examples(directory),
        base=base,
        sft=SftConfig(lora=lora, trainer=sft_arguments(check, steps)),
    )
    sft.run(stage, run)
    return speed_in(run.callbacks, steps * check.scale.sft_batch)


def plain_sft(check: Check, base: str, lora: Any, directory: Path) -> float:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from r2_train.stages import sft
    from r2_train.stages.examples import read_examples
    from r2_train.stages.model_files import load_causal_lm, load_tokenizer, lora_config

    run = stage_run(check, directory)
    arguments = {**sft.DEFAULTS, **run.training_arguments(), **sft_arguments(check, check.scale.sft_steps)}
    tokenizer = load_tokenizer(base)
    rows = [sft.tokenized(example, tokenizer) for example in read_examples(sft_examples(directory))]
    trainer = SFTTrainer(
        model=load_causal_lm(base),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[*run.callbacks],
        peft_config=lora_config(lora),
    )
    trainer.train()
    return speed_in(run.callbacks, check.scale.sft_steps * check.scale.sft_batch)


def our_grpo(check: Check, base: str, lora: Any, directory: Path) -> float:
    """The stage itself: each reply is parsed, run on the embedded workers if it is a plan, and rewarded."""
    from r2_train.config import GrpoConfig, PoolConfig
    from r2_train.stages import grpo
    from r2_train.stages.rewards import Reference

    run = stage_run(check, directory)
    stage = grpo.GrpoStage(
        module="decomposer",
        base=base,
        examples=grpo_examples(directory),
        grpo=GrpoConfig(lora=lora, max_flat_steps=None, trainer=grpo_arguments(check)),
        pool=PoolConfig(virtual_model="r2"),
        data=word_problems(),
        reference=Reference(cost_usd=1e-4, critical_path_tokens=10),
        cache=directory / "calls",
    )
    grpo.run(stage, run)
    return speed_in(run.callbacks, check.scale.grpo_steps * check.scale.generations)


def plain_grpo(check: Check, base: str, lora: Any, directory: Path) -> float:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from r2_train.stages import grpo
    from r2_train.stages.examples import read_examples
    from r2_train.stages.model_files import load_causal_lm, load_tokenizer, lora_config

    run = stage_run(check, directory)
    rows = [
        {"prompt": [message.model_dump() for message in example.messages]}
        for example in read_examples(grpo_examples(directory))
    ]
    trainer = GRPOTrainer(
        model=load_causal_lm(base),
        reward_funcs=lambda completions, **more: [1.0] * len(completions),
        args=GRPOConfig(**{**grpo.DEFAULTS, **run.training_arguments(), **grpo_arguments(check)}),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(base),
        callbacks=[*run.callbacks],
        peft_config=lora_config(lora),
    )
    trainer.train()
    return speed_in(run.callbacks, check.scale.grpo_steps * check.scale.generations)


def word_problems() -> Any:
    from r2_train.config import DataConfig

    return DataConfig(benchmark="words", num_train=NUM_TASKS, num_validation=8)


def sft_examples(directory: Path) -> Path:
    """Prompts and plans in plain English, as a chat model is trained on."""
    from r2_serve.lab.domains import words
    from r2_serve.prompts import get_codec
    from r2_serve.prompts.conversation import asked
    from r2_train.stages.examples import Example, write_examples

    codec = get_codec("instruct")
    examples = [
        Example(
            task_id=task.id,
            query=task.query,
            messages=tuple(codec.render_decompose(asked(task.query), 16)),
            target=codec.format_plan(task.reference_plan, task.query),
        )
        for task in words.tasks("train", NUM_TASKS)
    ]
    return write_examples(directory / "examples.jsonl", examples)


def grpo_examples(directory: Path) -> Path:
    from r2_train.config import PoolConfig
    from r2_train.rollouts.described_pool import described
    from r2_train.stages.examples import plan_example, write_examples
    from r2_train.stages.tasks import TaskSplit

    pool = described(PoolConfig(virtual_model="r2"))
    examples = [plan_example(pool, task.id, task.query) for task in TaskSplit.load(word_problems()).train]
    return write_examples(directory / "examples.jsonl", examples)


def stage_run(check: Check, directory: Path, deepspeed: Any = None) -> Any:
    """A stage's place in this process, with a clock that starts at the first step."""
    from transformers import TrainerCallback

    from r2_train.launch.stage_run import StageRun

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        start_s = end_s = 0.0

        def on_train_begin(self, *_: Any, **more: Any) -> None:
            self.start_s = now_s(check)

        def on_step_end(self, *_: Any, **more: Any) -> None:
            self.end_s = now_s(check)

    directory.mkdir(parents=True, exist_ok=True)
    return StageRun(directory, callbacks=(Clock(),), deepspeed=deepspeed, use_gpu=check.is_gpu)


def now_s(check: Check) -> float:
    if check.is_gpu:
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def speed_in(callbacks: Sequence[Any], num_samples: int) -> float:
    (clock,) = callbacks
    return float(num_samples / (clock.end_s - clock.start_s))


# -- the report ----------------------------------------------------------------------------------------------


def sections(check: Check) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every section by name, the quick ones first."""
    names = ["random-100m", *(["smollm2"] if check.smollm2.is_dir() else [])]
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in names:
        found[f"serve-{name}"] = lambda name=name: serve(check, name)
    for kind in ("lora", "full"):
        for name in names:
            found[f"train-{name}-{kind}"] = lambda name=name, kind=kind: train(check, name, kind)
    found["zero2"] = lambda: zero2(check)
    return found


def machine(device: str) -> dict[str, Any]:
    """The card and the versions."""
    import torch

    card: dict[str, Any] = {"card": platform.processor() or platform.machine()}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        card = {"card": properties.name, "card_gib": round(properties.total_memory / 2**30, 1)}
        card["cuda"] = torch.version.cuda
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"device": device, **card, "cpus": os.cpu_count(), "python": platform.python_version(), **versions}


def run_all(arguments: argparse.Namespace, check: Check) -> dict[str, Any]:
    """Runs each section in a process; what fails or finds no time says so."""
    start_s = time.monotonic()
    report: dict[str, Any] = {"machine": machine(check.device), "tiny": arguments.tiny, "sections": {}}
    if not check.smollm2.is_dir():
        report["left_out"] = f"SmolLM2-135M-Instruct is not at {check.smollm2}: r2-train fetch-smollm2"
    for name in arguments.only or sections(check):
        left_s = arguments.limit_s - (time.monotonic() - start_s)
        print(f"{time.monotonic() - start_s:5.0f} s  {name}", flush=True)
        report["sections"][name] = one(name, check, arguments.tiny, min(left_s, SECTION_S))
        report["wall_s"] = round(time.monotonic() - start_s, 1)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return report


def one(name: str, check: Check, tiny: bool, limit_s: float) -> dict[str, Any]:
    if limit_s < 10:
        return {"error": "no time was left"}
    out = check.folder / f"{name}.json"
    command = [sys.executable, __file__, "--section", name, "--device", check.device, "--out", str(out)]
    command += ["--folder", str(check.folder), "--smollm2", str(check.smollm2), *(["--tiny"] if tiny else [])]
    environment = os.environ | ({} if check.is_gpu else {"OMP_NUM_THREADS": "1"})
    start_s, log = time.monotonic(), check.folder / f"{name}.log"
    with log.open("w") as file:
        try:
            done = subprocess.run(  # noqa: S603 - this very script
                command, stdout=file, stderr=file, timeout=limit_s, env=environment, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"did not end within {limit_s:.0f} s", "log": log.read_text()[-1500:]}
    if done.returncode != 0:
        return {"error": f"ended with status {done.returncode}", "log": log.read_text()[-1500:]}
    return {**json.loads(out.read_text()), "wall_s": round(time.monotonic() - start_s, 1)}


@contextlib.contextmanager
def folder_of(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="r2-gpu-check-") as made:
        yield Path(made)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smollm2", type=Path, default=SMOLLM2, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("--tiny", action="store_true", help="sizes for a try on a CPU")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds for all sections")
    parser.add_argument("--only", nargs="*", help="names of sections; default: all")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with folder_of(arguments.folder) as folder:
        check = Check(TINY if arguments.tiny else FULL, arguments.device, folder, arguments.smollm2)
        if arguments.section is not None:
            arguments.out.write_text(json.dumps(sections(check)[arguments.section]()))
            return 0
        report = run_all(arguments, check)
    print(json.dumps(report, indent=2))
    return int(any("error" in section for section in report["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
