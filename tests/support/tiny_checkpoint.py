"""Random tiny Qwen2 checkpoints for the tests of local engines: no download, made in a second."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "plus",
    "is",
    ".",
    ",",
    ";",
)
CHARACTERS = tuple('abcdefghijklmnopqrstuvwxyz0123456789{}[]":,.-_ \n')
SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<reply>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)
TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<user> {{ message['role'] }}: {{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "<tool_call>{{ call['function']['name'] }} {{ call['function']['arguments'] | tojson }}</tool_call>"
    "{% endfor %}{% if message['tool_call_id'] %} for {{ message['tool_call_id'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% if shout %}HEY{% endif %}{% endif %}"
)
"""A template that shows tools, calls and results; `shout` stands for a switch of `chat_template_kwargs`."""
MORE_CHARACTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ<>/?!'()#=")
CONTEXT_TOKENS = 128


def word_checkpoint(folder: Path, *, seed: int = 0) -> str:
    """A model of `WORDS`, split at spaces; other words are unknown to it."""
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _save(folder, tokenizer, seed)


def linear_attention_checkpoint(folder: Path) -> str:
    """A model of `WORDS` whose first layer has linear attention, as in Qwen3-Next."""
    from transformers import AutoModelForCausalLM, Qwen3NextConfig

    word_checkpoint(folder)
    config = Qwen3NextConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        num_experts=0,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.4,
        eos_token_id=SPECIAL.index("<eos>"),
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def character_checkpoint(folder: Path, *, seed: int = 0, end: str = "") -> str:
    """A model whose tokens are single characters, enough of them for JSON.

    `end` is the special token with which its template ends each message; its config always names <eos>.
    """
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    template = CHAT_TEMPLATE.replace("{{ message['content'] }} ", "{{ message['content'] }} " + end)
    return _save(folder, tokenizer, seed, template)


def tool_checkpoint(folder: Path, *, seed: int = 0, context_tokens: int = 2048) -> str:
    """A model of single characters whose chat template renders tools."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS, *MORE_CHARACTERS))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return _save(folder, tokenizer, seed, TOOL_TEMPLATE, context_tokens)


def _save(
    folder: Path,
    tokenizer: Tokenizer,
    seed: int,
    chat_template: str = CHAT_TEMPLATE,
    context_tokens: int = CONTEXT_TOKENS,
) -> str:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<user>", "<reply>"]})
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context_tokens,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    return str(folder)


def random_adapter(checkpoint: str, folder: Path, *, seed: int) -> str:
    """A LoRA adapter whose random weights are large enough to change what the model says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(
        Qwen2ForCausalLM.from_pretrained(checkpoint),
        LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return str(folder)
