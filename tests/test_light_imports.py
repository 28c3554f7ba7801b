"""What an import must not load: the router core is pure asyncio, the command line answers at once."""

import importlib.util
import subprocess
import sys

import pytest

HEAVY = ("ray", "torch", "transformers", "vllm", "aiohttp", "fastapi")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("r2_serve.router.pipeline", HEAVY),
        ("r2_serve.traces", HEAVY),
        ("r2_serve.adapters", HEAVY),
        ("r2_serve.ops.publishing.cli", HEAVY),
        ("r2_serve.engines", HEAVY),
        ("r2_serve.ops.local.in_process", HEAVY),
        ("r2_serve.engines.scripted", HEAVY),
        ("r2_serve.cli", ("ray", "torch", "transformers", "vllm")),
        (
            "r2_serve.lab.demo",
            ("torch", "transformers", "vllm", "pebble", "math_verify", "sympy", "matplotlib"),
        ),
        ("r2_train.launch.launch", ("ray", "torch", "transformers", "deepspeed")),
    ],
)
def test_import_loads_no_heavy_library(module: str, unwanted: tuple[str, ...]) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} does not exist")
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "r2_serve" in loaded
    assert sorted(set(loaded) & set(unwanted)) == []
