"""Tiny random checkpoints of several architectures, as folders: built once a test session, no download."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = [
    "a",
    "bird",
    "flies",
    "over",
    "the",
    "old",
    "stone",
    "bridge",
    "and",
    "sings",
    "at",
    "dawn",
    "while",
    "rain",
    "falls",
]
TEXTS = [
    "a bird flies over the old stone bridge",
    "rain falls",
    "bird",
    "the bird sings at dawn while rain falls and the old bird flies over the stone bridge " * 3,
    "a bird sings",
    "over the bridge",
]


def save_tokenizer(folder: Path, *, bert_like: bool, length: int) -> int:
    """A word-level tokenizer with <pad> at 1, as RoBERTa has it; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "<s> $A </s>" if bert_like else "<s> $A"
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 2)][: 2 if bert_like else 1]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
    )
    tokenizer.save_pretrained(folder)
    return len(vocab)


def save_llama(folder: Path, *, causal: bool = True, model_type: str | None = None) -> str:
    """A Llama with grouped-query attention; `model_type` puts another name in config.json, as llama_bidirec does."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    size = save_tokenizer(folder, bert_like=False, length=64)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        initializer_range=0.5,
    )  # fmt: skip
    if not causal:
        config.is_causal = False
    LlamaModel(config).save_pretrained(folder)
    if model_type:
        path = folder / "config.json"
        values = json.loads(path.read_text()) | {
            "model_type": model_type,
            "pooling": "avg",
            "auto_map": {"AutoModel": "x.Y"},
        }
        values.pop("is_causal", None)
        path.write_text(json.dumps(values))
    return str(folder)


def save_roberta(folder: Path) -> str:
    """A RoBERTa: position ids start at padding_idx + 1 = 2."""
    import torch
    from transformers import RobertaConfig, RobertaModel

    size = save_tokenizer(folder, bert_like=True, length=64)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=66, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1,
        initializer_range=0.5,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    return str(folder)


def save_modernbert(folder: Path) -> str:
    """A ModernBERT whose second layer sees only 4 tokens to each side."""
    import torch
    from transformers import ModernBertConfig, ModernBertModel

    size = save_tokenizer(folder, bert_like=True, length=64)
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
        local_attention=8, global_attn_every_n_layers=2, initializer_range=0.5, initializer_cutoff_factor=3.0,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(folder)
    return str(folder)
