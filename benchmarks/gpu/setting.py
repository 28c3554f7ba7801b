"""What a section of the GPU check is given: its sizes, its device, and its models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT_TOKENS = 4096
SPECIAL = ("<|im_start|>", "<|im_end|>", "<pad>")


@dataclass(frozen=True)
class Scale:
    """How much each section does."""

    at_once: tuple[int, ...]
    reply_tokens: int
    sft_steps: int
    sft_batch: int
    grpo_steps: int
    generations: int
    completion_tokens: int
    hidden: int
    layers: int
    vocabulary: int


FULL = Scale((1, 32, 256), 128, 20, 16, 4, 16, 64, hidden=768, layers=12, vocabulary=49_152)
TINY = Scale((1, 4), 8, 2, 2, 1, 2, 8, hidden=32, layers=2, vocabulary=512)


@dataclass(frozen=True)
class Check:
    """What a section is given."""

    scale: Scale
    device: str
    folder: Path
    """Models and checkpoints of this run are written there."""
    smollm2: Path

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def model(self, name: str) -> str:
        """The directory of a model; the random one is made here."""
        if name == "smollm2":
            return str(self.smollm2)
        path = self.folder / name
        if not (path / "model.safetensors").is_file():
            write_random_model(path, self.scale)
        return str(path)


def write_random_model(path: Path, scale: Scale) -> None:
    """A Qwen2 with random weights. Its tokenizer knows bytes, and its other tokens stand for no text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    fill = [f"<|{i}|>" for i in range(scale.vocabulary - len(SPECIAL) - len(bytes_))]
    ids = {token: i for i, token in enumerate([*SPECIAL, *bytes_, *fill])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    start, end, pad = SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=pad, model_max_length=CONTEXT_TOKENS
    )
    fast.add_special_tokens({"additional_special_tokens": [start]})
    fast.chat_template = CHATML
    torch.manual_seed(0)
    heads = max(2, scale.hidden // 64)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=scale.vocabulary,
            hidden_size=scale.hidden,
            intermediate_size=scale.hidden * 8 // 3,
            num_hidden_layers=scale.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 3),
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(path)
    fast.save_pretrained(path, save_jinja_files=False)
