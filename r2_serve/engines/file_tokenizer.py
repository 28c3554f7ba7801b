"""A checkpoint's own tokenizer and chat template, read from its files: no transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from r2_serve.errors import ConfigError


class FileTokenizer:
    """The part of a transformers tokenizer that `prompting` and `reply` use.

    `tokenizer.json` splits the text. `tokenizer_config.json` names the special tokens and holds the chat
    template, which runs in jinja2's sandbox with the settings that transformers gives it.
    """

    def __init__(self, folder: Path) -> None:
        """Raises: ConfigError where a file is missing or broken."""
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._config = json.loads((folder / "tokenizer_config.json").read_bytes())
            template = folder / "chat_template.jinja"
            self.chat_template = (
                template.read_text("utf-8") if template.is_file() else self._config.get("chat_template")
            )
        except Exception as e:  # tokenizers raises plain Exception for a broken file
            raise ConfigError(f"cannot read the tokenizer in {folder}: {e}") from e
        self.unk_token_id = self._id_of("unk_token")
        self.eos_token_id = self._id_of("eos_token")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        self._render = environment.from_string(self.chat_template or "").render

    def apply_chat_template(
        self, conversation: Sequence[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool = False
    ) -> str:
        """The conversation as text. Raises: jinja2's TemplateError where the template refuses it."""
        names = {
            name: _content(self._config.get(name))
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        return self._render(messages=conversation, add_generation_prompt=add_generation_prompt, **names)

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool = False
    ) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def _id_of(self, name: str) -> int | None:
        token = _content(self._config.get(name))
        return None if token is None else self._tokenizer.token_to_id(token)


def _content(token: str | dict[str, str] | None) -> str | None:
    """The text of a special token, which older files write as an object."""
    return token["content"] if isinstance(token, dict) else token


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)
