"""Loading a checkpoint's transformer and its Dense heads with stock transformers classes.

A checkpoint that lacks a weight its model needs would be filled with random numbers by transformers,
with a warning; here it is an error, except for BERT's pooler, which no embedding uses.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from raycurate.core.checkpoint import adapter_base, body_folder, dense_folders, read_config
from raycurate.core.contract import EmbeddingContract
from raycurate.core.errors import ContractError

_TEXT_ENCODERS = {"t5", "mt5", "umt5"}  # of these only the encoder half is used
BIDIREC = "_bidirec"  # NVIDIA's llama_bidirec and kin: the stock model that attends both ways
_NOT_STOCK = ("auto_map", "pooling", "temperature")


def stock_mirror(folder: str) -> tempfile.TemporaryDirectory[str] | None:
    """A folder of links to `folder` whose config.json names the stock model, for libraries that read it themselves.

    None where config.json names one already. The caller keeps the object for as long as the folder is used.
    """
    config = Path(folder) / "config.json"
    values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    kind = str(values.get("model_type", ""))
    if not kind.endswith(BIDIREC):
        return None
    mirror = tempfile.TemporaryDirectory(prefix="raycurate-model-")
    for entry in Path(folder).iterdir():
        if entry.name != "config.json":
            (Path(mirror.name) / entry.name).symlink_to(entry.resolve())
    stock = {k: v for k, v in values.items() if k not in _NOT_STOCK} | _stock_names(kind)
    (Path(mirror.name) / "config.json").write_text(json.dumps(stock), encoding="utf-8")
    return mirror


def _stock_names(kind: str) -> dict[str, Any]:
    stock = kind.removesuffix(BIDIREC)
    return {"model_type": stock, "is_causal": False, "architectures": [f"{stock.capitalize()}Model"]}


def load_model(
    folder: str, contract: EmbeddingContract, *, dtype: torch.dtype, attention: str | None, trust_remote_code: bool
) -> torch.nn.Module:
    """The bare transformer in evaluation mode, on the CPU.

    Args:
        attention: transformers' attn_implementation; None for its own choice (sdpa where the model can).

    Raises:
        ContractError: weights are missing, or the model has no such attention.
    """
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()  # in a worker's log every step would be a line
    body = body_folder(folder)
    values = read_config(body)
    kind = str(values.get("model_type", ""))
    if kind.endswith(BIDIREC):
        kept = {k: v for k, v in values.items() if k not in _NOT_STOCK} | _stock_names(kind)
        config = transformers.AutoConfig.for_model(kept.pop("model_type"), **kept)
    else:
        source = adapter_base(body) or body
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if config.model_type in _TEXT_ENCODERS:
        auto: Any = transformers.AutoModelForTextEncoding
    else:
        auto = transformers.AutoModel
    try:
        model, report = auto.from_pretrained(
            body,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (ValueError, ImportError) as error:
        raise ContractError(f"transformers cannot load it ({error})", where=body) from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise ContractError(f"its files lack {len(missing)} weights: {', '.join(missing[:5])} ...", where=body)
    model.config.use_cache = False
    if contract.attention == "bidirectional" and getattr(model.config, "is_causal", None) is False:
        # config.is_causal decides the mask; where no mask is needed, SDPA asks the module itself.
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False
    return model.eval()


def load_heads(folder: str, contract: EmbeddingContract, device: torch.device) -> torch.nn.Module:
    """The Dense layers after pooling, in float32; the identity when there are none.

    Raises:
        ContractError: an activation that torch.nn does not have.
    """
    layers: list[torch.nn.Module] = []
    for path, spec in zip(dense_folders(folder), contract.modules, strict=True):
        linear = torch.nn.Linear(spec.in_features, spec.out_features, bias=spec.bias)
        linear.load_state_dict({k.removeprefix("linear."): v.float() for k, v in _state(Path(path)).items()})
        activation = getattr(torch.nn, spec.activation, None)
        if not (isinstance(activation, type) and issubclass(activation, torch.nn.Module)):
            raise ContractError(f"activation '{spec.activation}' is not one of torch.nn's", where=path)
        layers += [linear, activation()]
    return torch.nn.Sequential(*layers).eval().to(device)


def _state(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(folder / "model.safetensors")
    return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
