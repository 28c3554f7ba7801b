"""Token ids of a prompt, for every engine that has the tokenizer itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jinja2 import TemplateError

from r2_serve.engines.roles import INSTRUCTION_ROLES, has_instructions, without_instruction_roles
from r2_serve.errors import ConfigError, ContextOverflow, EngineRefused
from r2_serve.types import Ability, Api, EngineCall, Message, needs_of

MAX_WORDS_NAMED = 5
GENERIC_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


class AddedToken(Protocol):
    """A token beside the vocabulary that was learned from text."""

    special: bool


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    chat_template: object
    unk_token_id: int | None

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, list[int]]: ...


class SpecialTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows which of its tokens are special."""

    all_special_ids: list[int]
    """Those with a role, such as the end of a sequence. Others are special by their flag alone."""
    added_tokens_decoder: Mapping[int, AddedToken]


def has_generic_tokenizer(path: str) -> bool:
    """Whether `path` is a directory whose `tokenizer.json` alone describes its tokenizer.

    transformers 5.17 ignores that file for model type `qwen2`: `AutoTokenizer` takes Qwen2's own byte-level
    BPE for any `tokenizer_class` (`MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS`), which breaks a word-level
    vocabulary.
    """
    config = Path(path) / "tokenizer_config.json"
    if not config.is_file() or not (Path(path) / "tokenizer.json").is_file():
        return False
    return json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class") in GENERIC_CLASSES


def end_token_of(tokenizer: SpecialTokenizer) -> int | None:
    """The special token with which the chat template ends a reply; None if it writes none.

    A tokenizer and a generation config often name others, such as the end of a document. A model that learned
    to end its turns as the template does would then never stop.
    """
    question, reply = {"role": "user", "content": "one"}, {"role": "assistant", "content": "one"}
    try:
        text = tokenizer.apply_chat_template([question, reply], add_generation_prompt=False, tokenize=False)
    except TemplateError:
        return None
    after = text.rpartition("one")[2].strip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    flagged = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return ids[0] if ids and ids[0] in {*tokenizer.all_special_ids, *flagged} else None


def check_chat_template(tokenizer: Tokenizer, path: str, *, renders_tools: bool = False) -> None:
    """Raises: ConfigError if the checkpoint has no chat template, or none that `renders_tools`."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of {path!r} has no chat template: chat messages cannot be rendered for it"
        )
    if renders_tools and "tools" not in str(tokenizer.chat_template):
        raise ConfigError(f"the chat template of {path!r} does not render tools: leave out tool_parser")


def check_text_alone(call: EngineCall, engine: str, formats: Collection[Ability] = ()) -> None:
    """Raises: EngineRefused naming the first thing that an engine of text does not do.

    `formats` are the formats of replies that it keeps to.
    """
    for need in needs_of(call.messages, call.sampling):
        if need.ability not in ("chat", "completions", *formats):
            what = f"is not capable of {need.ability or need.param}"
            message = f"this engine ({engine}) {what}: leave {need.param} out, or ask another model"
            raise EngineRefused.of(need.param, message)


def prompt_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], context_tokens: int, api: Api = "chat"
) -> list[int]:
    """Token ids of the rendered conversation, or of the text to go on with, up to where the reply begins.

    Raises: EngineRefused if the template refuses the roles, a word is not in the vocabulary, or no token of
    the context is left for a reply.
    """
    is_text = api == "completions"
    text = messages[0].text if is_text else _rendered(tokenizer, messages)
    ids: list[int] = tokenizer(text, add_special_tokens=is_text)["input_ids"]
    if not ids:
        raise EngineRefused.of("prompt", "the prompt is empty: this model needs a text to go on with")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise EngineRefused(f"this model's vocabulary does not have {_unknown_words(tokenizer, messages)}")
    if len(ids) >= context_tokens:
        raise ContextOverflow(
            f"the prompt has {len(ids)} tokens; "
            f"the model's context of {context_tokens} leaves none for a reply"
        )
    return ids


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The conversation as text. A system message that the template refuses or drops joins the user's."""
    try:
        text = _templated(tokenizer, messages)
    except EngineRefused:
        if not has_instructions(messages):
            raise
    else:
        if all(m.text.strip() in text for m in messages if m.role in INSTRUCTION_ROLES):
            return text
    return _templated(tokenizer, without_instruction_roles(messages))


def _templated(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Renders `developer` messages as `system`, the name that templates know. Raises: EngineRefused."""
    chat = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
    try:
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except TemplateError as e:
        raise EngineRefused(f"the model's chat template refuses this conversation: {e}") from e


def _unknown_words(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The first few distinct words of `messages` that become the unknown token."""
    unknown: dict[str, None] = {}
    for word in (word for message in messages for word in message.text.split()):
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]:
            unknown[word[:40]] = None
        if len(unknown) > MAX_WORDS_NAMED:
            break
    named = ", ".join(repr(word) for word in list(unknown)[:MAX_WORDS_NAMED])
    return (named or "some of its symbols") + (" and others" if len(unknown) > MAX_WORDS_NAMED else "")
