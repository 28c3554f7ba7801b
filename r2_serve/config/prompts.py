"""The texts of a virtual model's prompts where an operator or training replaces the built-in ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml
from pydantic import Field

from r2_serve.config.engines import Config
from r2_serve.files import encoding_fault
from r2_serve.types import Plan


class PromptExample(Config):
    """A question with its plan and, for the allocator, the models of the plan's steps."""

    query: str = Field(min_length=1)
    plan: Plan
    models: tuple[str, ...] | None = None


class Prompts(Config):
    """What the models of a virtual model are asked to do, after the client's conversation.

    Only the instruct dialect has texts. What a reply must look like is a part of `decompose` and `allocate`,
    so their texts must ask for the same JSON as the built-in ones (`r2_serve/prompts/instruct.py`).
    """

    decompose: str | None = None
    """Asks for a plan; `MAX` in it becomes the largest number of steps. None: the built-in text."""
    allocate: str | None = None
    """Asks for the models of a plan; the pool follows it, a line per model. None: the built-in text."""
    step: str | None = None
    """Asks for the result of an inner step. None: the built-in text."""
    last_step: str | None = None
    """Asks for the final answer. None: the built-in text."""
    examples: tuple[PromptExample, ...] = ()
    """Questions with good plans, which the decomposer and the allocator read before they are asked. Each
    costs its tokens in every call."""

    @property
    def sha256(self) -> str:
        """The version of these texts. An adapter that was trained with them names it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_prompts(path: str) -> Prompts:
    """The texts of a YAML file. Raises: ValueError, for a reader that names the line."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise ValueError(f"cannot read the prompts {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ValueError(f"cannot read the prompts {path}: {encoding_fault(e)}") from e
    except yaml.YAMLError as e:
        raise ValueError(f"the prompts {path} are not YAML: {e}") from e
    return Prompts.model_validate(raw or {})


def prompts_sha256(prompts: Prompts | None) -> str | None:
    """The version of the texts; None for the built-in ones."""
    return None if prompts is None else prompts.sha256
