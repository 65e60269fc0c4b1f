"""Tiny random checkpoints of every family that is trained, and batches of their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import Tokenizer
from raycurate.training.model.bi_encoder import BiEncoder
from tests.encoders.tiny import save_llama, save_modernbert, save_roberta, save_tokenizer

_COMMON = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
_STOCK: dict[str, dict[str, Any]] = {
    "bert": {},
    "mpnet": {},
    "gpt2": {},
    "mistral": {**_GROUPED, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma3_text": {**_GROUPED, "sliding_window": 16, "sliding_window_pattern": 2},
}
ENCODERS = ("bert", "mpnet", "roberta", "modernbert")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")


class Batch(NamedTuple):
    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def save_family(folder: Path, family: str) -> str:
    """A random model of `family` in `folder`, which has dropout where the family has it."""
    own = {"roberta": save_roberta, "modernbert": save_modernbert, "llama": save_llama}
    if family in own:
        return own[family](folder)
    from transformers import AutoConfig, AutoModel

    size = save_tokenizer(folder, bert_like=family in ENCODERS, length=64)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=size, **_COMMON, **_STOCK[family])
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


def save_mistral3(folder: Path, *, head: bool) -> Any:
    """A random model for images and text of Ministral's kind in `folder`, and that model."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Mistral3Model

    size = save_tokenizer(folder, bert_like=False, length=64)
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 8, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    text = {"model_type": "ministral3", "vocab_size": size, **_COMMON, **_GROUPED, "max_position_embeddings": 64}
    torch.manual_seed(0)
    config = Mistral3Config(vision_config=vision, text_config=text, image_token_index=3)
    model = (Mistral3ForConditionalGeneration if head else Mistral3Model)(config)
    model.save_pretrained(folder)
    return model.eval()


def batch_of(model: BiEncoder, texts: list[str], role: str, *, left: int = 0, right: int = 0) -> Batch:
    """`texts` as the model's tower reads them, with so many columns of padding on each side."""
    tower = model.tower(role)
    tokenizer = Tokenizer(EncoderOptions(model=tower.source, role=role), tower.contract)
    tokens, _ = tokenizer(texts)
    width = int(tokens.lengths.max())
    ids = np.full((len(tokens), left + width + right), 1, np.int64)
    mask = np.zeros_like(ids)
    for row in range(len(tokens)):
        length = len(tokens[row])
        # Padding on the left is between it and the text, as where a batch is padded on the left
        start = left + (width - length if left else 0)
        ids[row, start : start + length], mask[row, start : start + length] = tokens[row], 1
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask))


def vectors(model: BiEncoder, texts: list[str], role: str, **padding: int) -> Any:
    """What the model gives without dropout and without gradients."""
    training = model.training
    model.eval()
    with torch.no_grad():
        found = model.encode(batch_of(model, texts, role, **padding), role)
    model.train(training)
    return found


def shake(model: BiEncoder) -> BiEncoder:
    """Move every parameter, as training would; the towers of a role differently."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return model


def least_cosine(one: Any, other: Any) -> float:
    return float(torch.nn.functional.cosine_similarity(torch.as_tensor(one), torch.as_tensor(other), dim=-1).min())
