"""SmolLM2-135M-Instruct for the tests of this tier, converted once per checkout."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from r2_train.fetch_smollm2 import DEFAULT_OUT, PACKAGES, fetch
from tests import ROOT


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The directory of the model."""
    missing = [name for name in ("torch", "transformers", "peft", *PACKAGES) if find_spec(name) is None]
    folder = ROOT / DEFAULT_OUT
    if missing and not folder.is_dir():
        pytest.skip(f"needs {', '.join(missing)} for a real chat model: r2-train fetch-smollm2")
    fetch(folder, print)
    return str(folder)


@pytest.fixture(scope="session")
def lora(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the model with random weights, which change what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("lora")
    model.save_pretrained(folder)
    return folder
