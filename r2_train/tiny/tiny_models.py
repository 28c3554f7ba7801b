"""Tiny Qwen2 checkpoints: made from nothing, trained on pairs of prompt and target, decoded greedily, saved.

This is no general trainer: it has one CPU thread, full precision and a vocabulary of whole words. A
checkpoint is an ordinary Hugging Face directory, so every engine that serves Qwen2 serves it.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from r2_serve.types import Message
from r2_train.stages.model_files import complete_checkpoint
from r2_train.tiny.muon import Muon

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
CHAT_TEMPLATE = "{{ messages[-1]['content'] }}{% if add_generation_prompt %} =>{% endif %}"
MAX_CONTEXT_TOKENS = 512
IGNORED = -100
"""The label of a token that has no part in the loss."""
WARMUP_SHARE = 0.05
REPORT_STEPS = 250

TokenRow = tuple[list[int], int]
"""Token ids of prompt, target and end, and the length of the prompt."""


@dataclass(frozen=True)
class Shape:
    """Size of a model. `hidden / heads` is the size of an attention head."""

    hidden: int
    layers: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class TextExample:
    """One exchange as text of the compact codec. The loss is on `target` only."""

    prompt: str
    target: str


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training: warm-up, then a cosine to zero."""

    steps: int
    batch_tokens: int = 4096
    """Most tokens of a step, with padding."""
    learning_rate: float = 3e-3
    muon_learning_rate: float | None = None
    """Learning rate of Muon for the matrices inside the layers; None trains everything with AdamW.
    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024)."""
    num_parts: int = 1
    """A step adds up the gradients of this many batches, each of examples of similar length; 1 mixes
    lengths."""


class TinyModel:
    """A model with its tokenizer. `name` names its directory and its card."""

    def __init__(self, name: str, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer

    @classmethod
    def create(cls, name: str, shape: Shape, words: Sequence[str], seed: int) -> TinyModel:
        """A model of random weights that knows `words`."""
        tokenizer = _make_tokenizer(words)
        torch.manual_seed(seed)
        return cls(name, Qwen2ForCausalLM(_make_config(shape, tokenizer)), tokenizer)

    @classmethod
    def load(cls, directory: Path) -> TinyModel:
        model = Qwen2ForCausalLM.from_pretrained(directory, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        return cls(directory.name, model.eval(), tokenizer)

    def save(self, parent: Path) -> None:
        """Writes the directory `parent/name`, readable by everyone."""
        self.model.save_pretrained(parent / self.name)
        complete_checkpoint(parent / self.name, self.tokenizer)

    @property
    def num_params(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; nothing is added."""
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []

    def chat(
        self, conversations: Sequence[Sequence[Message]], *, max_tokens: int, batch_size: int = 256
    ) -> tuple[list[str], int]:
        """Greedy replies in order, and their cost in parameter-tokens. Prompts of one length share a
        batch."""
        prompts = self.encode([f"{messages[-1].text} =>" for messages in conversations])
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            by_length[len(prompt)].append(i)
        replies = [""] * len(prompts)
        num_tokens = sum(map(len, prompts))
        for indices in by_length.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                generated = self._generate(torch.tensor([prompts[i] for i in batch]), max_tokens)
                num_tokens += sum(map(len, generated))
                texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
                for i, text in zip(batch, texts, strict=True):
                    replies[i] = text
        return replies, num_tokens * self.num_params

    @torch.inference_mode()
    def solves(self, examples: Sequence[TextExample], *, batch_size: int = 512) -> list[bool]:
        """True for each example whose target greedy decoding gives. One pass: every target token is
        likeliest."""
        rows = _token_rows(self, examples)
        solved = [False] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            tokens, labels = _collate([rows[i] for i in batch])
            wanted = labels[:, 1:]
            wrong = (self.model(tokens).logits[:, :-1].argmax(-1) != wanted) & (wanted != IGNORED)
            for i, is_wrong in zip(batch, wrong.any(1).tolist(), strict=True):
                solved[i] = not is_wrong
        return solved

    @torch.inference_mode()
    def _generate(self, tokens: torch.Tensor, max_tokens: int) -> list[list[int]]:
        """The new tokens of each prompt of (B, T), with the end token if it was reached."""
        eos = self.tokenizer.eos_token_id
        cache = DynamicCache(config=self.model.config)
        steps: list[torch.Tensor] = []
        is_done = torch.zeros(len(tokens), dtype=torch.bool)
        while len(steps) < max_tokens and not is_done.all():
            logits = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            steps.append(tokens)
            is_done |= tokens[:, 0] == eos
        rows = torch.cat(steps, 1).tolist()
        return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def train(tiny: TinyModel, examples: Sequence[TextExample], schedule: Schedule, seed: int) -> None:
    """Trains the model in place on one thread and prints the progress."""
    torch.set_num_threads(1)
    started_s = time.process_time()
    optimizers = _make_optimizers(tiny.model, schedule)
    schedulers = [_make_scheduler(optimizer, schedule.steps) for optimizer in optimizers]
    tiny.model.train()
    running = 0.0
    batches = _batches(tiny, examples, schedule, seed)
    for step in range(1, schedule.steps + 1):
        tiny.model.zero_grad(set_to_none=True)
        for tokens, labels in islice(batches, schedule.num_parts):
            loss = _loss(tiny.model, tokens, labels) / schedule.num_parts
            loss.backward()  # type: ignore[no-untyped-call]
            running += loss.item()
        torch.nn.utils.clip_grad_norm_(tiny.model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        if step % REPORT_STEPS == 0 or step == schedule.steps:
            mean_loss = running / ((step - 1) % REPORT_STEPS + 1)
            cpu_s = time.process_time() - started_s
            progress = f"step {step}/{schedule.steps} loss {mean_loss:.4f} cpu {cpu_s:.0f}s"
            print(f"{tiny.name}: {progress}", flush=True)
            running = 0.0
    tiny.model.eval()


def _make_optimizers(model: Qwen2ForCausalLM, schedule: Schedule) -> list[Optimizer]:
    muon_rate = schedule.muon_learning_rate
    hidden = [weight for weight in model.model.layers.parameters() if weight.ndim == 2] if muon_rate else []
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in hidden)]
    adam = torch.optim.AdamW(others, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    return [adam, Muon(hidden, muon_rate)] if muon_rate else [adam]


def _make_scheduler(optimizer: Optimizer, steps: int) -> LRScheduler:
    warmup = max(1, round(WARMUP_SHARE * steps))
    rise = LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, max(1, steps - warmup))
    return SequentialLR(optimizer, [rise, fall], [warmup])


def _loss(model: Qwen2ForCausalLM, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the target tokens of (B, T). Only these reach the output layer."""
    hidden = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
    is_target = labels[:, 1:] != IGNORED
    return F.cross_entropy(model.lm_head(hidden[is_target]), labels[:, 1:][is_target])


def _token_rows(tiny: TinyModel, examples: Sequence[TextExample]) -> list[TokenRow]:
    prompts = tiny.encode([f"{example.prompt} =>" for example in examples])
    targets = tiny.encode([f"{example.target} {EOS}" for example in examples])
    return [(prompt + target, len(prompt)) for prompt, target in zip(prompts, targets, strict=True)]


def _batches(
    tiny: TinyModel, examples: Sequence[TextExample], schedule: Schedule, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches, shuffled in each epoch. Parts of a step are cut by length, which saves padding."""
    rows, rng = _token_rows(tiny, examples), random.Random(f"batches/{seed}")
    batch_tokens = schedule.batch_tokens // schedule.num_parts
    while True:
        rng.shuffle(rows)
        if schedule.num_parts > 1:
            rows.sort(key=lambda row: len(row[0]))
        batches = _cut(rows, batch_tokens)
        rng.shuffle(batches)
        yield from map(_collate, batches)


def _cut(rows: Sequence[TokenRow], batch_tokens: int) -> list[list[TokenRow]]:
    """Batches of neighbours, each of as many as fit into `batch_tokens` with padding."""
    batches: list[list[TokenRow]] = [[]]
    width = 0
    for row in rows:
        width = max(width, len(row[0]))
        if batches[-1] and (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = len(row[0])
        batches[-1].append(row)
    return batches


def _collate(rows: Sequence[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels (B, T). Padding on the right needs no mask, as causal attention never looks there."""
    width = max(len(tokens) for tokens, _ in rows)
    padded = [tokens + [0] * (width - len(tokens)) for tokens, _ in rows]
    labels = [
        [IGNORED] * start + tokens[start:] + [IGNORED] * (width - len(tokens)) for tokens, start in rows
    ]
    return torch.tensor(padded), torch.tensor(labels)


def _make_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([PAD, EOS, UNK, "=>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK,
        model_max_length=MAX_CONTEXT_TOKENS, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _make_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        tie_word_embeddings=True,
        initializer_range=shape.hidden**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
