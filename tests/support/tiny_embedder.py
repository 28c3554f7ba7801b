"""A random tiny model of sentence embeddings: no download, made in a second."""

from __future__ import annotations

from pathlib import Path

WORDS = ("a", "red", "green", "apple", "pear", "car", "on", "the", "table", "fast")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIZE, MAX_TOKENS = 16, 12


def embedder_checkpoint(folder: Path, *, seed: int = 0) -> str:
    """A directory of the model; each text has two special tokens and one for each word."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_TOKENS,
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=SIZE,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=MAX_TOKENS,
    )
    parts = folder / "parts"
    fast.save_pretrained(parts)
    BertModel(config).save_pretrained(parts)
    transformer = Transformer(str(parts), max_seq_length=MAX_TOKENS)
    model = SentenceTransformer(modules=[transformer, Pooling(SIZE), Normalize()], device="cpu")
    model.save(str(folder / "model"))
    return str(folder / "model")
