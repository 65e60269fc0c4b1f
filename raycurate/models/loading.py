"""Loading a checkpoint's transformer and its Dense heads with stock transformers classes.

A checkpoint that lacks a weight its model needs would be filled with random numbers by transformers,
with a warning; here it is an error, except for BERT's pooler, which no embedding uses.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raycurate.core.errors import ContractError, RaycurateError
from raycurate.models.checkpoint import adapter_base, attention_of, body_folder, dense_folders, read_config
from raycurate.models.contract import EmbeddingContract

TEXT_ENCODERS = {"t5", "mt5", "umt5"}
"""Kinds of model of which only the encoder half is used."""
LANGUAGE_MODELS = {"mistral3"}
"""Kinds of model for images and text of which only the language model is used."""
_OF_LANGUAGE_MODEL = {r"^(?:model\.)?language_model\.(?:model\.)?": ""}
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
    try:
        stock = stock_model(body, trust_remote_code=trust_remote_code)
        model, report = stock.auto.from_pretrained(
            body,
            config=stock.config,
            key_mapping=stock.renamed or None,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except RaycurateError:
        raise
    except Exception as error:  # what a broken file raises depends on the file and the model
        raise ContractError(f"transformers cannot load it ({type(error).__name__}: {error})", where=body) from error
    require_weights(report["missing_keys"], where=body)
    return _attending(model, contract)


def empty_model(
    folder: str, contract: EmbeddingContract, *, dtype: torch.dtype, attention: str | None
) -> torch.nn.Module:
    """As `load_model`, but its parameters have shapes and no memory (torch's meta device); its buffers are whole, as
    the model's own class computes them.

    Raises:
        ContractError: transformers cannot build it.
    """
    from transformers.initialization import no_init_weights

    body = body_folder(folder)
    stock = stock_model(body)
    chosen = {} if attention is None else {"attn_implementation": attention}
    try:
        with parameters_without_memory(), no_init_weights():
            model = stock.auto.from_config(stock.config, dtype=dtype, **chosen)
            model.tie_weights()
    except (ValueError, ImportError) as error:
        raise ContractError(f"transformers cannot build it ({error})", where=body) from error
    return _attending(model, contract)


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Parameters that modules are given inside the block go to the meta device, one at a time, buffers stay.

    Building all of a model on that device would lose its buffers, of which some (rotary frequencies) are in no file.
    """
    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.data.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def require_weights(missing: Iterable[str], *, where: str) -> None:
    """Raises ContractError where a model's files lack weights, except for BERT's pooler."""
    needed = sorted(name for name in missing if "pooler" not in name)
    if needed:
        raise ContractError(f"its files lack {len(needed)} weights: {', '.join(needed[:5])} ...", where=where)


@dataclass(frozen=True)
class StockModel:
    """What a folder is loaded as: a configuration, transformers' class that builds from it, and how tensors of the
    files are to be renamed for it (pattern -> replacement)."""

    config: Any
    auto: Any
    renamed: dict[str, str]


def stock_model(body: str, *, trust_remote_code: bool = False) -> StockModel:
    """The stock model that the folder's config.json names, or the part of it that encodes text.

    Raises:
        ContractError: the weights of that part cannot be read, as they are quantised.
        ValueError: transformers does not know such a model.
    """
    import transformers

    values = read_config(body)
    kind = str(values.get("model_type", ""))
    if kind.endswith(BIDIREC):
        kept = {k: v for k, v in values.items() if k not in _NOT_STOCK} | _stock_names(kind)
        config = transformers.AutoConfig.for_model(kept.pop("model_type"), **kept)
    else:
        source = adapter_base(body) or body
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if source != body and attention_of(values) == "bidirectional":  # what the adapter was trained with
            config.get_text_config().is_causal = False
    if config.model_type in TEXT_ENCODERS:
        return StockModel(config, transformers.AutoModelForTextEncoding, {})
    if config.model_type not in LANGUAGE_MODELS:
        return StockModel(config, transformers.AutoModel, {})
    if values.get("quantization_config"):
        raise ContractError(
            f"the weights of this {config.model_type} are quantised, and its language model cannot be taken out of it",
            where=body,
            fix="Name the checkpoint of the same model in bfloat16",
        )
    return StockModel(config.get_text_config(), transformers.AutoModel, _OF_LANGUAGE_MODEL)


def _attending(model: Any, contract: EmbeddingContract) -> torch.nn.Module:
    """The model in evaluation mode, its attention as the contract says."""
    model.config.use_cache = False
    if contract.attention == "bidirectional" and getattr(model.config, "is_causal", None) is False:
        # config.is_causal decides the mask; where no mask is needed, SDPA asks the module itself.
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False
    evaluating: torch.nn.Module = model.eval()
    return evaluating


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
