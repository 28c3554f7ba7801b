"""The field names of TRL's and PEFT's configuration classes, read from their source.

A run checks its keys before any stage starts, and importing these libraries for that would take 20 seconds.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_TRAINER = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
)
OWN = {
    "output_dir": "the option --out names the directory",
    "seed": "`seed` at the top of the file sets it",
    "deepspeed": "`launch.deepspeed` sets it",
    "use_cpu": "`launch.use_gpu` sets it",
    "task_type": "it is always CAUSAL_LM",
}
"""Fields that follow from other settings of the run."""
_CLASSES = {
    "trl.SFTConfig": (*_TRAINER, ("trl", "trainer/sft_config.py", "SFTConfig")),
    "trl.GRPOConfig": (*_TRAINER, ("trl", "trainer/grpo_config.py", "GRPOConfig")),
    "peft.LoraConfig": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
}


def known_field(class_name: str) -> Callable[[str], str]:
    """A validator of keys for `class_name`. Without the library it accepts every key, as nothing can be
    trained then."""

    def check(key: str) -> str:
        if key in OWN:
            raise ValueError(f"{key} is not set here: {OWN[key]}")
        names = field_names(class_name)
        if names and key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ": its documentation lists them"
            raise ValueError(f"{class_name} has no field {key!r}{hint}")
        return key

    return check


@cache
def field_names(class_name: str) -> frozenset[str]:
    """The fields of the class and of its bases; empty if a library is not installed."""
    parts = [_annotated_names(*place) for place in _CLASSES[class_name]]
    return frozenset().union(*parts) if all(parts) else frozenset()


def _annotated_names(package: str, file: str, class_name: str) -> frozenset[str]:
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    path = next((path for folder in folders if (path := Path(folder) / file).is_file()), None)
    if path is None:
        return frozenset()
    classes = (node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef))
    body = next((node.body for node in classes if node.name == class_name), [])
    lines = (line for line in body if isinstance(line, ast.AnnAssign))
    return frozenset(line.target.id for line in lines if isinstance(line.target, ast.Name))
