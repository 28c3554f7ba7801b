"""The recorded engine: the replies that a model gave before, from a book of outcomes (`r2-serve outcomes`).

A call is answered with the recorded reply to its last message, word for word and with the recorded tokens. A
prompt that the book does not hold is refused, as no honest reply exists. No model runs.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

from r2_serve.config import RecordedEngineConfig
from r2_serve.engines.scripted import Reply, ScriptedEngine
from r2_serve.errors import ConfigError, EngineRefused
from r2_serve.types import Completion, Message, Sampling, Usage


def recorded_engine(config: RecordedEngineConfig) -> ScriptedEngine:
    """The engine of one model of a book. Raises: ConfigError if it cannot be read or lacks the model."""
    replies = _replies(Path(config.book), config.model)
    if not replies:
        raise ConfigError(f"{config.book} holds no reply of model {config.model!r}")

    def reply(messages: Sequence[Message], _: Sampling) -> Reply:
        found = replies.get(_key(messages[-1].text if messages else ""))
        if found is None:
            return EngineRefused(
                f"{config.book} holds no reply of {config.model!r} to this prompt: ask a prompt that it holds"
            )
        return found

    return ScriptedEngine(reply, delay_s=config.delay_s)


def _key(prompt: str) -> str:
    """Prompts that differ in blanks alone are one prompt."""
    return re.sub(r"\s+", " ", prompt).strip()


def _replies(path: Path, model: str) -> dict[str, Completion]:
    """The replies of one model by prompt."""
    found: dict[str, Completion] = {}
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for line in file:
                row = json.loads(line)
                if row["model"] == model:
                    used = Usage(
                        prompt_tokens=row.get("tokens_in", 0), completion_tokens=row.get("tokens_out", 0)
                    )
                    found[_key(row.get("prompt", ""))] = Completion(
                        text=row.get("reply", ""), usage=used, finish_reason="stop"
                    )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path} cannot be read as a book of outcomes: {e}") from e
    return found
