"""The files that sentence-transformers reads beside a transformer's own, written from a contract.

The names of classes and keys are those of its version 2, which every later one reads. A multi-vector model
has no Pooling module: config.json's `pooling` says so, and only late-interaction readers can use it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from raycurate.models.contract import EmbeddingContract

_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
ROLES = ("query", "document")


def write_modules(folder: Path, contract: EmbeddingContract, width: int, *, lowercase: bool) -> None:
    """modules.json and the modules' configurations; the Dense heads' weights are the caller's.

    Args:
        width: of the transformer's hidden states.
        lowercase: whether the text is lower-cased before tokenizing.
    """
    modules = [("Transformer", "")]
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": contract.max_length, "do_lower_case": lowercase}
    )
    if contract.pooling != "multi_vector":
        modules.append(("Pooling", "1_Pooling"))
        flags = {flag: pooling == contract.pooling for pooling, flag in _FLAGS.items()}
        values = {"word_embedding_dimension": width, **flags, "include_prompt": True}
        write_json(folder / "1_Pooling" / "config.json", values)
    for place, spec in zip(dense_names(contract), contract.modules, strict=True):
        activation = getattr(torch.nn, spec.activation)
        config = {
            "in_features": spec.in_features,
            "out_features": spec.out_features,
            "bias": spec.bias,
            "activation_function": f"{activation.__module__}.{activation.__name__}",
        }
        write_json(folder / place / "config.json", config)
        modules.append(("Dense", place))
    if contract.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    write_settings(folder, contract)


def dense_names(contract: EmbeddingContract) -> list[str]:
    """Folders of the Dense heads, numbered by their place among the modules."""
    first = 1 if contract.pooling == "multi_vector" else 2
    return [f"{first + i}_Dense" for i in range(len(contract.modules))]


def write_settings(folder: Path, contract: EmbeddingContract) -> None:
    """config_sentence_transformers.json: prompts for both roles (an empty one too), and the similarity."""
    prompts = {role: contract.prompt_for(role) for role in ROLES} | dict(contract.prompts)
    settings = {
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine" if contract.normalize else "dot",
    }
    write_json(folder / "config_sentence_transformers.json", settings)


def write_router(folder: Path, contracts: dict[str, EmbeddingContract]) -> None:
    """The files that make `query/` and `document/` under `folder` one model with a route for each role."""
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    for role, contract in contracts.items():
        modules = json.loads((folder / role / "modules.json").read_text(encoding="utf-8"))
        paths = [f"{role}/{module['path']}".rstrip("/") for module in modules]
        types |= {path: module["type"] for path, module in zip(paths, modules, strict=True)}
        structure[role] = paths
        if contract.pooling == "multi_vector":
            return
    parameters = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    write_json(folder / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    router = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}
    write_json(folder / "modules.json", [router])
    write_settings(folder, contracts["document"])


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
