"""What the files of sentence-transformers beside a transformer's own say, as its version 6.2 reads them.

Such a checkpoint is a list of modules, each with a folder and a configuration. What this project computes alike is
returned; all else (a module, an option of a module, an order) is an error that names it, before any work.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from raycurate.core.errors import ContractError, InputError
from raycurate.models.contract import POOLING_ALIASES, POOLINGS

LIST = "modules.json"
SETTINGS = "config_sentence_transformers.json"
# Of the Transformer module; the first that is there and not empty counts.
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ONE_VECTOR = re.compile(r"Transformer( Pooling)?( Dense)*( Normalize)*")
_MANY_VECTORS = re.compile(r"Transformer( Dense)*( MultiVectorMask)?( Normalize)*( MultiVectorMask)?")
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Options of the Transformer module. Its loader overwrites the first six in each group, and the others change no
# vector: the precision is chosen here, and implementations of attention agree.
_WITHOUT_EFFECT = {"subfolder", "token", "cache_dir", "revision", "local_files_only", "trust_remote_code"}
_KWARGS = {
    "model": _WITHOUT_EFFECT
    | {"dtype", "torch_dtype", "attn_implementation", "add_pooling_layer", "device_map", "low_cpu_mem_usage"},
    "processor": _WITHOUT_EFFECT | {"model_max_length", "truncation_side", "padding_side", "use_fast"},
    "config": _WITHOUT_EFFECT | {"use_cache", "dtype", "torch_dtype"},
}
_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
_READ = {"max_seq_length", "do_lower_case", "unpad_inputs", "processing_kwargs"} | {f"{k}_kwargs" for k in _KWARGS}


@dataclass(frozen=True)
class Modules:
    """The modules of a checkpoint; of a folder without modules.json, none but the transformer.

    Attributes:
        listed: whether there is a modules.json.
        body: the transformer's folder, relative to the checkpoint's.
        many: whether it gives a vector a token, as late interaction takes them.
        pooling_file: of the Pooling module, where there is one.
        heads: folders of the Dense layers, in order.
        max_length: tokens, where the Transformer module says it.
        lengths_by_role: `query_length` and `document_length`, where they are set.
        lowercase: whether text is lower-cased before it is tokenized.
        truncation_side: where the Transformer module says it.
        prompts: by name, empty ones left out.
    """

    listed: bool = False
    body: str = ""
    many: bool = False
    pooling_file: Path | None = None
    heads: tuple[str, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    lengths_by_role: dict[str, int] = field(default_factory=dict)
    lowercase: bool = False
    truncation_side: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)

    def pooling(self) -> str | None:
        """The pooling by the house's name; None where no module says it.

        Raises:
            ContractError: one that this project does not have.
        """
        if self.many:
            return "multi_vector"
        return _pooling(self.pooling_file) if self.pooling_file else None


def read_json(path: Path, kind: type = dict) -> Any:
    """What a JSON file of a model holds; an empty `kind` where there is no such file.

    Raises:
        InputError: it is not JSON, or holds something else than a `kind` (dict or list).
    """
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"it is not valid JSON ({error})", where=str(path), fix="Download the model again") from None
    if not isinstance(value, kind):
        names = {dict: "a mapping", list: "a list", str: "text", type(None): "null"}
        seen = names.get(type(value), type(value).__name__)
        raise InputError(
            f"it holds {seen} where {names[kind]} belongs", where=str(path), fix="Download the model again"
        )
    return value


def read_modules(root: Path) -> Modules:
    """The modules of the checkpoint in `root`.

    Raises:
        ContractError: what is asked for cannot be reproduced.
        InputError: a file is broken.
    """
    if not (root / LIST).is_file():
        return Modules()
    settings = read_json(root / SETTINGS)
    many = settings.get("model_type") == "MultiVectorEncoder"
    kinds, folders = _listed(root, many=many)
    by_kind = {kind: [folder for k, folder in zip(kinds, folders, strict=True) if k == kind] for kind in set(kinds)}
    body = by_kind["Transformer"][0]
    transformer, file = transformer_settings(root / body)
    lengths = {role: transformer[f"{role}_length"] for role in ("query", "document") if f"{role}_length" in transformer}
    for folder in by_kind.get("MultiVectorMask", []):
        _refuse(_set(read_json(root / folder / "config.json"), "skiplist_words", "keep_only_token_ids"), root / folder)
    processor = transformer.get("processor_kwargs") or {}
    text = (transformer.get("processing_kwargs") or {}).get("text") or {}
    pooling = by_kind.get("Pooling", [])
    limits = [text.get("max_length"), processor.get("model_max_length"), transformer.get("max_seq_length")]
    return Modules(
        listed=True,
        body=body,
        many=many,
        pooling_file=root / pooling[0] / "config.json" if pooling else None,
        heads=tuple(by_kind.get("Dense", [])),
        normalize=any(_normalizes(root / folder, many=many) for folder in by_kind.get("Normalize", [])),
        max_length=next((_length(limit, file) for limit in limits if limit is not None), None),
        lengths_by_role={role: length for role, length in lengths.items() if length is not None},
        lowercase=bool(transformer.get("do_lower_case")),
        truncation_side=processor.get("truncation_side"),
        prompts=_prompts(settings, root),
    )


def transformer_settings(body: Path) -> tuple[dict[str, Any], Path]:
    """The Transformer module's options under their present names, and the file they are from.

    Raises:
        ContractError: an option that this project cannot reproduce.
        InputError: a file is broken.
    """
    read = ((read_json(body / name), body / name) for name in TRANSFORMER_FILES)
    values, file = next(((found, file) for found, file in read if found), ({}, body / TRANSFORMER_FILES[0]))
    values = {_OLD_NAMES.get(key, key): value for key, value in values.items()}
    for name in ("processing_kwargs", "modality_config", *(f"{k}_kwargs" for k in _KWARGS)):
        if not isinstance(values.get(name, {}), dict | None):
            raise InputError(f"{name} is no mapping", where=str(file))
    odd = {key: value for key, value in values.items() if key not in _READ and value is not None}
    for key, usual in (("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")):
        if odd.get(key) == usual:
            del odd[key]
    if (odd.get("modality_config") or {}).get("text") in (_TEXT, _TEXT | {"method_output_name": ["last_hidden_state"]}):
        del odd["modality_config"]
    for role in ("query", "document"):  # for the caller, who knows whether a length was asked for
        odd.pop(f"{role}_length", None)
    for group, known in _KWARGS.items():
        unknown = {k: v for k, v in (values.get(f"{group}_kwargs") or {}).items() if k not in known}
        if unknown:
            odd[f"{group}_kwargs"] = unknown
    for modality, options in (values.get("processing_kwargs") or {}).items():
        known = {"padding", "max_length"} if modality == "text" else {"padding"}
        if modality in ("text", "common") and set(options) - known:
            odd["processing_kwargs"] = {modality: options}
    _refuse(odd, file)
    return values, file


def _listed(root: Path, *, many: bool) -> tuple[list[str], list[str]]:
    """Kinds and folders of the modules, in order; Dropout, which does nothing outside training, left out."""
    kinds: list[str] = []
    folders: list[str] = []
    where = root / LIST
    for position, module in enumerate(read_json(where, list)):
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise InputError(f"module {position} has no type", where=str(where), fix="Download the model again")
        full, folder = module["type"], str(module.get("path") or "")
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise InputError(f"module {position} lies outside the model, at '{folder}'", where=str(where))
        kind = full.rpartition(".")[2] if full.startswith("sentence_transformers.") else full
        if kind == "Dropout":
            continue
        kinds.append(kind)
        folders.append(folder)
        if not (_MANY_VECTORS if many else _ONE_VECTOR).fullmatch(" ".join(kinds)):
            known = (
                "one Transformer, any number of Dense, a MultiVectorMask, a Normalize"
                if many
                else "one Transformer, one Pooling, any number of Dense, a Normalize"
            )
            raise ContractError(
                f"module {position} is '{full}', which this project cannot reproduce there",
                where=str(where),
                fix=f"Known, in this order: {known}",
            )
    if not kinds:
        raise InputError("it lists no module", where=str(where), fix="Download the model again")
    return kinds, folders


def _pooling(file: Path) -> str:
    if not file.is_file():
        raise InputError("this file of the Pooling module is missing", where=str(file), fix="Download the model again")
    config = read_json(file)
    mode = config.get("pooling_mode") or [m for flag, m in _POOLING_FLAGS.items() if config.get(flag)] or "mean"
    modes = [mode] if isinstance(mode, str) else list(mode)
    known = {m: POOLING_ALIASES.get(m, m) for m in _POOLING_FLAGS.values()}
    if len(modes) != 1 or modes[0] not in known:
        raise ContractError(
            f"pooling {modes} is not supported", where=str(file), fix=f"Supported: one of {', '.join(known)}"
        )
    if config.get("include_prompt") is False:
        raise ContractError(
            "pooling without the prompt's tokens (include_prompt: false) is not supported", where=str(file)
        )
    assert known[modes[0]] in POOLINGS
    return known[modes[0]]


def read_dense(folder: Path, *, many: bool) -> dict[str, Any]:
    """A Dense layer's specification.

    Args:
        many: the model gives a vector a token, so the layer takes token vectors.

    Raises:
        ContractError: one that this project cannot reproduce.
    """
    file = folder / "config.json"
    config = read_json(file)
    for key in ("in_features", "out_features"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise InputError(f"{key} of the Dense layer is {config.get(key)!r}", where=str(file))
    source = config.get("module_input_name", "sentence_embedding")
    odd = _set(config, "use_residual")
    if source != ("token_embeddings" if many else "sentence_embedding"):
        odd["module_input_name"] = source
    if config.get("module_output_name") not in (None, source):
        odd["module_output_name"] = config["module_output_name"]
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not str(activation).startswith("torch.nn."):  # which the library replaces with Tanh unless code is trusted
        odd["activation_function"] = activation
    _refuse(odd, file)
    return {
        "in_features": config["in_features"],
        "out_features": config["out_features"],
        "activation": activation.rpartition(".")[2],
        "bias": bool(config.get("bias", True)),
    }


def _normalizes(folder: Path, *, many: bool) -> bool:
    """Whether a Normalize module scales the vectors that come out: token vectors where there are many."""
    config = read_json(folder / "config.json")  # old ones have no such file
    source = config.get("module_input_name", "sentence_embedding")
    target = config.get("module_output_name") or source
    wanted = "token_embeddings" if many else "sentence_embedding"
    if source == target == wanted:
        return True
    if many and source == target == "sentence_embedding":
        return False  # there is none
    raise ContractError(f"a Normalize from {source} to {target} is not supported", where=str(folder / "config.json"))


def _prompts(settings: dict[str, Any], root: Path) -> dict[str, str]:
    """Prompts by name, as `encode_query` and `encode_document` take them: without one for the role there is none, and
    `default_prompt_name`, which plain `encode` follows, is not asked.

    `passage` and `corpus` are other names of a document's prompt, unless there is one under `document`, be it empty.
    """
    where = str(root / SETTINGS)
    kind = settings.get("model_type", "SentenceTransformer")
    if kind not in ("SentenceTransformer", "MultiVectorEncoder"):
        raise ContractError(f"it is a {kind}, not a model of dense vectors", where=where)
    if settings.get("truncate_dim"):
        raise ContractError(
            f"it cuts vectors to truncate_dim={settings['truncate_dim']} values, which is not supported",
            where=where,
            fix="Take truncate_dim out of the file, and cut the vectors where they are used",
        )
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError("prompts is no mapping", where=where)
    default = settings.get("default_prompt_name")
    if default is not None and default not in {"query", "document", *prompts}:
        raise ContractError(f"default_prompt_name '{default}' is none of its prompts", where=where)
    others = () if prompts.get("document") is None else ("passage", "corpus")
    return {k: v for k, v in prompts.items() if isinstance(v, str) and v and k not in others}


def _length(value: Any, file: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"a length of {value!r} tokens is no length", where=str(file))
    return value


def _set(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: config[key] for key in keys if config.get(key)}


def _refuse(odd: dict[str, Any], where: Path) -> None:
    if odd:
        asked = ", ".join(f"{key}={value!r}" for key, value in odd.items())
        raise ContractError(f"it asks for {asked}, which this project cannot reproduce", where=str(where))
