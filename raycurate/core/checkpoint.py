"""A model folder's own files -> what its contract says.

JSON is read and files are hashed, no model is loaded. What a checkpoint asks for and this project cannot
reproduce exactly (a module, a pooling, a flag) is an error that names it, never a silent approximation.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from raycurate.core.contract import pooling_name
from raycurate.core.errors import ConfigError, ContractError, InputError

# sentence-transformers' pooling modes that are ours under another name.
_ST_POOLING = {"cls": "cls", "mean": "mean", "weightedmean": "weighted_mean", "lasttoken": "last"}
_ST_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
# Position ids that start after the padding id, so that the table holds fewer positions than it has rows.
OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "esm",
    "data2vec-text",
}
_ABSOLUTE_POSITIONS = OFFSET_POSITIONS | {"bert", "distilbert", "electra", "albert", "gpt2", "deberta", "ernie"}
_ENCODERS = OFFSET_POSITIONS | {
    "bert", "distilbert", "electra", "albert", "deberta", "deberta-v2", "ernie", "modernbert", "nomic_bert", "t5",
    "mt5", "eurobert", "jina_embeddings_v3",
}  # fmt: skip
_DECODERS = {
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox", "opt",
    "bloom", "olmo2", "falcon", "smollm3",
}  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""The files that a tokenizer may consist of: the contract hashes those that are there, an export copies them."""
ADAPTER_CONFIG = "adapter_config.json"
ROLES = ("query", "document")
"""Whose encoders a checkpoint may keep apart, each in the folder of its name."""
_NO_LIMIT = 1_000_000  # tokenizers write 1e30 for "no limit"


_hashes: dict[tuple[str, int, int], str] = {}


def read_checkpoint(path: str, *, pooling: str | None, max_length: int | None) -> dict[str, Any]:
    """The identity fields of the model in folder `path`; see EmbeddingContract.from_checkpoint."""
    root = Path(path)
    modules = _modules(root)
    body = root / modules["Transformer"] if modules["Transformer"] else root
    config = read_config(str(body))
    attention = attention_of(config)
    heads = [_dense(root, name) for name in modules["Dense"]]
    if pooling is not None:
        try:
            chosen = pooling_name(pooling)
        except ValueError as error:
            raise ContractError(str(error), where=f"pooling={pooling}") from None
    elif modules["Pooling"] is not None:
        chosen = _pooling(root / modules["Pooling"])
    else:
        chosen = (
            pooling_name(config["pooling"])
            if config.get("pooling")
            else ("mean" if attention == "bidirectional" else "last")
        )
    width = _hidden_size(config, path)
    if heads and heads[0]["in_features"] != width:
        raise ContractError(
            f"the first Dense takes {heads[0]['in_features']} values, the model gives {width}", where=path
        )
    return {
        "weights": _weights_hash(root, body, [root / name for name in modules["Dense"]]),
        "tokenizer": _tokenizer_hash(root, body, lowercases(path)),
        "pooling": chosen,
        "modules": heads,
        "normalize": modules["Normalize"],
        "attention": attention,
        "prompts": _prompts(root),
        "max_length": _max_length(body, config, max_length, path),
        "dimension": heads[-1]["out_features"] if heads else width,
        "matryoshka_dims": config.get("matryoshka_dimensions") or (),
    }


def named_pooling(path: str) -> str | None:
    """The pooling that a model's own files name: one that they name none for is no embedding model yet."""
    root = Path(path)
    modules = _modules(root)
    if modules["Pooling"] is not None:
        return _pooling(root / modules["Pooling"])
    named = read_config(body_folder(path)).get("pooling")
    return pooling_name(named) if named else None


def separate_folders(path: str) -> dict[str, str]:
    """The folders of a checkpoint's encoders by role, where it has one for queries and one for documents; else none."""
    folders = {role: str(Path(path) / role) for role in ROLES}
    there = all((Path(folder) / "config.json").is_file() for folder in folders.values())
    return folders if there and not (Path(path) / "config.json").is_file() else {}


def role_folder(path: str, role: str) -> str:
    """The folder of the model that encodes `role`: one of two where queries and documents have one each, else `path`.

    Raises:
        ConfigError: there are two, and the role is neither's.
    """
    folders = separate_folders(path)
    if not folders or role in folders:
        return folders.get(role, path)
    raise ConfigError(
        f"this model has one encoder for queries and one for documents, and role={role} is neither",
        where=path,
        fix=f"Set role=query or role=document, or name one of the two: {' or '.join(folders.values())}",
    )


def body_folder(path: str) -> str:
    """The folder inside a checkpoint that holds config.json and the transformer's weights."""
    sub = _modules(Path(path))["Transformer"]
    return str(Path(path) / sub) if sub else path


def lowercases(path: str) -> bool:
    """Whether sentence-transformers lower-cases the text of this checkpoint before tokenizing."""
    return bool(_json(Path(body_folder(path)) / "sentence_bert_config.json").get("do_lower_case"))


def dense_folders(path: str) -> list[str]:
    """Folders of the Dense heads, in order."""
    return [str(Path(path) / name) for name in _modules(Path(path))["Dense"]]


def read_config(folder: str) -> dict[str, Any]:
    """config.json of a folder; of a PEFT adapter, that of its base model with the direction of attention it was
    trained with.

    Raises:
        InputError: there is no config.json.
        ContractError: an adapter whose base model is not here.
    """
    base = adapter_base(folder)
    found = Path(base or folder) / "config.json"
    if not found.is_file():
        raise InputError(
            "this is not a model: it has no config.json", where=folder, fix="Name a Hugging Face model folder"
        )
    config = _json(found)
    needed = _json(Path(folder) / ADAPTER_CONFIG).get("is_causal") if base else None
    if needed is not None:
        config.get("text_config", config)["is_causal"] = needed
    return config


def adapter_base(folder: str) -> str | None:
    """The base model's folder when `folder` holds a bare PEFT adapter, else None; a hub id stands for what of it is in
    the cache.

    Raises:
        ContractError: the base is not here.
    """
    adapter = Path(folder) / ADAPTER_CONFIG
    if not adapter.is_file() or (Path(folder) / "config.json").is_file():
        return None
    values = _json(adapter)
    base = str(values.get("base_model_name_or_path") or "")
    here = base if Path(base).is_dir() else _cached(base, values.get("revision"))
    if here is None:
        raise ContractError(
            f"this adapter's base model '{base}' is not a folder here, nor in the Hugging Face cache",
            where=folder,
            fix="Download the base model, or merge the adapter into it",
        )
    return here


def _cached(name: str, revision: str | None) -> str | None:
    """The folder of a hub model in the Hugging Face cache, None where it is not there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return str(snapshot_download(name, revision=revision, local_files_only=True))
    except (ValueError, OSError):  # no name of the hub's, or not in the cache
        return None


def attention_of(config: dict[str, Any]) -> str:
    """`bidirectional` or `causal`, as config.json says: its own flags first, then the kind of model.

    Raises:
        ContractError: a kind of model that neither this project nor transformers knows.
    """
    text = config.get("text_config") or config
    kind = text.get("model_type", "")
    if text.get("is_causal") is False or text.get("use_bidirectional_attention") or kind.endswith("_bidirec"):
        return "bidirectional"
    if text.get("is_causal") is True or text.get("is_decoder") is True or kind in _DECODERS:
        return "causal"
    if kind in _ENCODERS:
        return "bidirectional"
    from transformers.models.auto import modeling_auto as auto

    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind in auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return "bidirectional"
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ContractError(
        f"whether model_type '{kind}' attends both ways or only back is unknown",
        where="config.json",
        fix='Add "is_causal": true or false to the model\'s config.json',
    )


def _json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"it is not valid JSON ({error})", where=str(path)) from None


def _modules(root: Path) -> dict[str, Any]:
    """modules.json sorted by kind: folders of Transformer, Pooling and Dense, and whether it normalises."""
    found: dict[str, Any] = {"Transformer": "", "Pooling": None, "Dense": [], "Normalize": False}
    listed = _json(root / "modules.json")
    for position, module in enumerate(listed):
        full, path = module["type"], module.get("path", "")
        kind = full.rpartition(".")[2] if full.startswith("sentence_transformers.") else full
        expected_first = (position == 0) == (kind == "Transformer")
        late = found["Normalize"] and kind != "Dropout"
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout") or not expected_first or late:
            raise ContractError(
                f"module {position} is '{full}', which this project cannot reproduce there",
                where=str(root / "modules.json"),
                fix="Known: one Transformer, one Pooling, any number of Dense, at most one Normalize, in this order",
            )
        if kind == "Dense":
            found["Dense"].append(path)
        elif kind == "Normalize":
            found["Normalize"] = True
        elif kind != "Dropout":  # which does nothing outside training
            found[kind] = path
    if _json(root / "config_sentence_transformers.json").get("truncate_dim"):
        raise ContractError("it asks for truncate_dim, which is not supported", where=str(root))
    return found


def _pooling(folder: Path) -> str:
    config = _json(folder / "config.json")
    mode = config.get("pooling_mode") or [m for flag, m in _ST_POOLING_FLAGS.items() if config.get(flag)] or "mean"
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in _ST_POOLING:
        raise ContractError(
            f"pooling {modes} is not supported", where=str(folder), fix=f"Supported: {', '.join(_ST_POOLING)}"
        )
    if config.get("include_prompt") is False:
        raise ContractError(
            "pooling without the prompt's tokens (include_prompt: false) is not supported", where=str(folder)
        )
    return _ST_POOLING[modes[0]]


def _dense(root: Path, path: str) -> dict[str, Any]:
    config = _json(root / path / "config.json")
    odd = {k: config[k] for k in ("use_residual",) if config.get(k)}
    if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        odd["module_input_name"] = config["module_input_name"]
    if odd or "in_features" not in config:
        raise ContractError(f"this Dense layer is not supported: {odd or 'no in_features'}", where=str(root / path))
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    return {
        "in_features": config["in_features"],
        "out_features": config["out_features"],
        "activation": activation.rpartition(".")[2],
        "bias": config.get("bias", True),
    }


def _hidden_size(config: dict[str, Any], where: str) -> int:
    text = config.get("text_config") or config
    for key in ("hidden_size", "d_model", "dim", "n_embd"):
        if isinstance(text.get(key), int):
            return text[key]
    raise ContractError("config.json does not say the width of the model (hidden_size)", where=where)


def _prompts(root: Path) -> dict[str, str]:
    config = _json(root / "config_sentence_transformers.json")
    prompts = {k: v for k, v in (config.get("prompts") or {}).items() if isinstance(v, str)}
    default = prompts.get(config.get("default_prompt_name") or "", "")
    if default:  # sentence-transformers uses it for every role without a prompt of its own
        prompts.setdefault("query", default)
        if not any(name in prompts for name in ("document", "passage", "corpus")):
            prompts["document"] = default
    return prompts


def _max_length(body: Path, config: dict[str, Any], asked: int | None, where: str) -> int:
    text = config.get("text_config") or config
    kind = text.get("model_type", "")
    table = text.get("max_position_embeddings") or text.get("n_positions")
    if table and kind in OFFSET_POSITIONS:
        table -= (text.get("pad_token_id", 1) or 0) + 1
    if asked is not None:
        if table and asked > table and kind in _ABSOLUTE_POSITIONS:
            raise ContractError(f"max_length={asked} is more than the model's {table} positions", where=where)
        return asked
    own = _json(body / "sentence_bert_config.json").get("max_seq_length")
    tokenizer = _json(body / "tokenizer_config.json").get("model_max_length")
    limits = [own] if own else [n for n in (tokenizer, table) if n and n < _NO_LIMIT]
    if not limits:
        raise ContractError("no file says how long a text may be", where=where, fix="Set max_length")
    return int(min(limits))


def _sha256(path: Path) -> str:
    """Of a file's bytes; kept in this process for as long as path, size and time of change are the same."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as stream:
            _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[key]


def _combined(files: list[tuple[str, Path]]) -> str:
    """One file: its own sha256, as sha256sum prints it. Several: of their names and hashes, sorted."""
    if len(files) == 1:
        return _sha256(files[0][1])
    lines = sorted(f"{_sha256(path)}  {name}\n" for name, path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    return found or sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("adapter_model.bin")])


def _weights_hash(root: Path, body: Path, heads: list[Path]) -> str:
    """Over the transformer's weights, the adapter's base if it has one, and the Dense heads."""
    base = adapter_base(str(body))
    files = [(f"base/{p.name}", p) for p in (_weight_files(Path(base)) if base else [])]
    files += [(p.name, p) for p in _weight_files(body)]
    files += [(f"dense{i}/{p.name}", p) for i, head in enumerate(heads) for p in _weight_files(head)]
    if not files:
        raise InputError("this model has no weights (*.safetensors or pytorch_model*.bin)", where=str(body))
    return _combined(files)


def _tokenizer_hash(root: Path, body: Path, lowercase: bool) -> str:
    base = adapter_base(str(body))
    for folder in (body, root, *([Path(base)] if base else [])):
        files = [(name, folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()]
        if files:
            digest = _combined(files)
            return hashlib.sha256(f"{digest} lowercase".encode()).hexdigest() if lowercase else digest
    raise InputError("this model has no tokenizer files", where=str(body))
