"""Conversations as prompts, with the chat templates of models that have no system role."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r2_serve.engines.prompting import end_token_of, prompt_ids
from r2_serve.errors import EngineRefused
from r2_serve.types import Message

GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}</s>{% endif %}{% endfor %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<u>{{ m['content'] }}{% endif %}{% endfor %}"
)
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


class CharacterTokenizer:
    """Renders with a chat template; every character is a token, so that ids give the prompt back."""

    unk_token_id = None

    def __init__(self, chat_template: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = self._refuse
        self.chat_template = chat_template
        self.all_special_ids: list[int] = []
        self.added_tokens_decoder: dict[int, Any] = {}
        self._template = environment.from_string(chat_template)

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        return self._template.render(messages=conversation, add_generation_prompt=add_generation_prompt)

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        return {"input_ids": [ord(character) for character in text]}

    @staticmethod
    def _refuse(reason: str) -> NoReturn:
        raise TemplateError(reason)


def rendered(template: str, *conversation: tuple[str, str]) -> str:
    messages = [Message.model_validate({"role": role, "content": content}) for role, content in conversation]
    return "".join(map(chr, prompt_ids(CharacterTokenizer(template), messages, 10_000)))


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (GEMMA, "<start_of_turn>user\nBe short.\n\n2 + 2?<end_of_turn>\n<start_of_turn>model\n"),
        (MISTRAL, "[INST] Be short.\n\n2 + 2? [/INST]"),
        (DROPS_SYSTEM, "<u>Be short.\n\n2 + 2?"),
        (CHATML, "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"),
    ],
)
def test_instructions_reach_a_model_whose_template_has_no_system_role(
    template: str, expected: str, role: str
) -> None:
    assert rendered(template, (role, "Be short."), ("user", "2 + 2?")) == expected


def test_instructions_go_before_the_first_question_of_a_long_conversation() -> None:
    talk = [("user", "a"), ("assistant", "b"), ("system", "Be long."), ("user", "c")]
    expected = "[INST] Be short.\n\nBe long.\n\na [/INST]b</s>[INST] c [/INST]"
    assert rendered(MISTRAL, ("system", "Be short."), *talk) == expected


def test_conversation_that_the_template_refuses_in_any_form_is_refused() -> None:
    with pytest.raises(EngineRefused, match="must alternate"):
        rendered(MISTRAL, ("assistant", "b"), ("user", "a"))


@pytest.mark.parametrize(("is_special", "end"), [(True, ord("<")), (False, None)])
def test_reply_ends_with_the_token_of_the_template_if_it_is_flagged_as_special(
    is_special: bool, end: int | None
) -> None:
    """The tokenizer of a GGUF file names no role for `<|im_end|>`, and only flags it."""
    tokenizer = CharacterTokenizer(CHATML)
    tokenizer.added_tokens_decoder = {ord("<"): SimpleNamespace(special=is_special)}
    assert end_token_of(tokenizer) == end
