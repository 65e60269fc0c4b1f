"""Random checkpoints in the format of sentence-transformers: real small models, and files beside them as people and
versions of the library have written them. Each says what of it this project is to refuse, if anything."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.encoders.tiny import WORDS, save_llama, save_modernbert, save_roberta, save_tokenizer

POSITIONS = {"bert": 40, "roberta": 64, "mpnet": 38, "distilbert": 40, "gpt2": 40}
"""Tokens that fit the table of positions of those that have one."""
TEXTS = [
    "a bird flies over the old stone bridge",
    "Rain Falls",
    "bird",
    "the bird sings at dawn while rain falls and the old bird flies over the stone bridge " * 6,
    "a bird sings nonsense </s> at Dawn",
    "over the bridge and " * 5,
]
_WIDTH = {"llama": 128, "bidirectional": 128}
_FILES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_OLD = "sentence_transformers.models"
_NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling",
    "Dense": "sentence_transformers.base.modules.dense",
    "Normalize": "sentence_transformers.base.modules.normalize",
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm",
    "MultiVectorMask": "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask",
}
_FLAGS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}


def save_stock(folder: Path, kind: str, **config: Any) -> str:
    """A model of a stock class with random weights; the configuration has transformers' names."""
    import transformers

    size = save_tokenizer(folder, bert_like=True, length=512)
    torch.manual_seed(0)
    values = {"vocab_size": size, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.5}
    made = transformers.AutoConfig.for_model(kind, **values, **config)
    transformers.AutoModel.from_config(made).save_pretrained(folder)
    return str(folder)


def _bert_like(kind: str, positions: int) -> Callable[[Path], str]:
    return lambda folder: save_stock(
        folder, kind, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=positions,
    )  # fmt: skip


BODIES: dict[str, Callable[[Path], str]] = {
    "bert": _bert_like("bert", 40),
    "roberta": save_roberta,
    "mpnet": _bert_like("mpnet", 40),
    "distilbert": lambda f: save_stock(
        f, "distilbert", dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=40
    ),
    "gpt2": lambda f: save_stock(f, "gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=40),
    "modernbert": save_modernbert,
    "t5": lambda f: save_stock(f, "t5", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    "llama": save_llama,
    "bidirectional": lambda folder: save_llama(folder, causal=False),
}


@dataclass
class Checkpoint:
    """A folder, and the words of which a refusal names one; none where it is to be read."""

    path: str
    body: str
    many: bool
    prompts: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


class Maker:
    """Writes checkpoints whose every choice comes from one seed; the bodies are built once."""

    def __init__(self, bodies: Path, seed: int) -> None:
        self.bodies = bodies
        self.random = random.Random(seed)

    def make(self, folder: Path) -> Checkpoint:
        pick = self.random.choice
        body = pick(sorted(BODIES))
        if not (self.bodies / body).is_dir():
            BODIES[body](self.bodies / body)
        shutil.copytree(self.bodies / body, folder)
        made = Checkpoint(str(folder), body, many=pick([False, False, False, True]))
        self._tokenizer(folder)
        self._transformer(folder, made)
        self._modules(folder, made)
        self._settings(folder, made)
        return made

    def _maybe(self, *values: Any) -> Any:
        return self.random.choice([None, None, *values])

    def _tokenizer(self, folder: Path) -> None:
        values = _read(folder / "tokenizer_config.json")
        for key, value in {
            "model_max_length": self._maybe(9, 20, 512, int(1e30)),
            "truncation_side": self._maybe("left", "right"),
            "padding_side": self._maybe("left", "right"),
        }.items():
            if value is not None:
                values[key] = value
        _write(folder / "tokenizer_config.json", values)

    def _transformer(self, folder: Path, made: Checkpoint) -> None:
        values: dict[str, Any] = {}
        if self.random.random() < 0.5:
            values["max_seq_length"] = self.random.choice([None, 7, 16, 30, 64])
        values["do_lower_case"] = self.random.choice([False, True])
        arguments = {
            "model_max_length": self._maybe(6, 25),
            "truncation_side": self._maybe("left", "right"),
            "padding_side": self._maybe("left"),
        }
        given = {key: value for key, value in arguments.items() if value is not None}
        if given:
            values[self.random.choice(["tokenizer_args", "processor_kwargs"])] = given
        if self.random.random() < 0.3:
            text = {"method": "forward", "method_output_name": "last_hidden_state"}
            new = {"transformer_task": "feature-extraction", "modality_config": {"text": text}}
            values |= new | {"module_output_name": "token_embeddings", "unpad_inputs": None}
        if self.random.random() < 0.2:
            values["processing_kwargs"] = {"text": {"max_length": 11}, "chat_template": {"add_generation_prompt": True}}
        if self.random.random() < 0.1:
            key, value = self.random.choice(
                [
                    ("query_length", 9),
                    ("config_args", {"hidden_act": "relu"}),
                    ("model_args", {"variant": "fp16"}),
                    ("transformer_task", "fill-mask"),
                    ("tokenizer_args", {"do_lower_case": True}),
                ]
            )
            values[key] = value
            made.refused.append(key.replace("args", "kwargs").replace("tokenizer_kwargs", "processor_kwargs"))
            if key == "tokenizer_args":
                values.pop("processor_kwargs", None)
        _write(folder / f"sentence_{self.random.choice(_FILES)}_config.json", values)

    def _modules(self, folder: Path, made: Checkpoint) -> None:
        chosen: list[tuple[str, dict[str, Any]]] = [("Transformer", {})]
        width = _WIDTH.get(made.body, 32)
        if not made.many:
            chosen.append(("Pooling", self._pooling(width, made)))
        for _ in range(self.random.choice([0, 0, 1, 2])):
            dense = self._dense(width, made)
            width = dense["out_features"]
            chosen.append(("Dense", dense))
        odd = self.random.random() < 0.06
        if odd:
            chosen.append(("LayerNorm", {"dimension": width}))
        if self.random.random() < 0.2 and not made.many:
            chosen.append(("Dropout", {"dropout": 0.3}))
        if made.many:
            mask = {"skiplist_words": ["the"], "skiplist_tasks": ["document"]} if self.random.random() < 0.1 else {}
            chosen.append(("MultiVectorMask", mask))
            made.refused += ["skiplist_words"] if mask else []
        if self.random.random() < 0.6:
            key = "token_embeddings" if made.many else "sentence_embedding"
            chosen.append(("Normalize", {"module_input_name": key} if made.many else {}))
        listed = []
        if odd:
            made.refused.append("LayerNorm")
        for index, (kind, config) in enumerate(chosen):
            place = "" if index == 0 else f"{index}_{kind}"
            name = f"{_NEW[kind]}.{kind}" if made.many or self.random.random() < 0.5 else f"{_OLD}.{kind}"
            listed.append({"idx": index, "name": str(index), "path": place, "type": name})
            if place and (config or kind == "LayerNorm"):
                _write(folder / place / "config.json", config)
            if kind in ("Dense", "LayerNorm"):
                self._weights(folder / place, kind, config)
        _write(folder / "modules.json", listed)

    def _pooling(self, width: int, made: Checkpoint) -> dict[str, Any]:
        modes = self.random.sample(sorted(_FLAGS), 2 if self.random.random() < 0.06 else 1)
        without_prompt = self.random.random() < 0.05
        if without_prompt or len(modes) > 1:
            made.refused.append("pooling")
        if self.random.random() < 0.5:
            flags = {f"pooling_mode_{flag}": mode in modes for mode, flag in _FLAGS.items()}
            return {"word_embedding_dimension": width, **flags} | ({"include_prompt": False} if without_prompt else {})
        mode = modes[0] if len(modes) == 1 and self.random.random() < 0.5 else modes
        return {"embedding_dimension": width, "pooling_mode": mode, "include_prompt": not without_prompt}

    def _dense(self, width: int, made: Checkpoint) -> dict[str, Any]:
        activation = self.random.choice(
            ["activation.Tanh", "activation.ReLU", "activation.GELU", "linear.Identity", "activation.SiLU"]
        )
        values = {
            "in_features": width,
            "out_features": self.random.choice([8, 24, 40]),
            "bias": self.random.choice([True, False]),
            "activation_function": f"torch.nn.modules.{activation}",
        }
        if self.random.random() < 0.2:
            del values["activation_function"]  # Tanh
        if made.many:
            values["module_input_name"] = "token_embeddings"
        if self.random.random() < 0.05:
            values["use_residual"] = True
            made.refused.append("use_residual")
        return values

    def _weights(self, folder: Path, kind: str, config: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        if kind == "LayerNorm":
            save_file({f"norm.{name}": torch.ones(config["dimension"]) for name in ("weight", "bias")},
                      folder / "model.safetensors")  # fmt: skip
            return
        generator = torch.Generator().manual_seed(self.random.randrange(2**31))
        shape = (config["out_features"], config["in_features"])
        state = {"linear.weight": torch.randn(shape, generator=generator) / 5}
        if config["bias"]:
            state["linear.bias"] = torch.randn(shape[0], generator=generator)
        if config.get("use_residual"):
            state["residual.weight"] = torch.randn(shape, generator=generator)
        if self.random.random() < 0.5:
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors")

    def _settings(self, folder: Path, made: Checkpoint) -> None:
        words = iter(self.random.sample(WORDS, 5))
        names = ("query", "document", "passage", "corpus", "other")
        made.prompts = {
            name: self.random.choice(["", f"{next(words)} "]) for name in names if self.random.random() < 0.4
        }
        values: dict[str, Any] = {"prompts": made.prompts, "similarity_fn_name": None}
        if made.prompts and self.random.random() < 0.5:
            values["default_prompt_name"] = self.random.choice(sorted(made.prompts))
        if made.many:
            values["model_type"] = "MultiVectorEncoder"
        elif self.random.random() < 0.05:
            values["truncate_dim"] = 4
        if made.many or self.random.random() < 0.8:
            made.refused += ["truncate_dim"] if "truncate_dim" in values else []
            _write(folder / "config_sentence_transformers.json", values)
        else:
            made.prompts = {}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
