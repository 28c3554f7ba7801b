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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import FULL, TINY, Check
from benchmarks.gpu.training import train, zero2

SMOLLM2 = Path("runs/SmolLM2-135M-Instruct")
LIMIT_S, SECTION_S = 580.0, 180.0
PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "deepspeed", "route-and-reason")


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
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.check",
        "--section",
        name,
        "--device",
        check.device,
        "--out",
        str(out),
    ]
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
