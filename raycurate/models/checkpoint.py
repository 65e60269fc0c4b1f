"""A model folder's own files -> what its contract says.

JSON is read and files are hashed, no model is loaded. What a checkpoint asks for and this project cannot
reproduce exactly (a module, a pooling, a flag) is an error that names it, never a silent approximation.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from raycurate.core.errors import ConfigError, ContractError, InputError
from raycurate.core.hashing import hex_digest
from raycurate.models.contract import pooling_name
from raycurate.models.modules import Modules, read_dense, read_json, read_modules
from raycurate.models.weights import Shapes, check_head, check_shapes, position_rows, read_shapes, weight_files

# Position ids that start after the padding id, so that the table holds fewer positions than it has rows.
OFFSET_POSITIONS = {
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "mpnet", "longformer",
    "esm", "data2vec-text", "ibert", "lilt", "luke", "markuplm",
}  # fmt: skip
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
    modules = read_modules(root)
    body = root / modules.body
    config = read_config(str(body))
    attention = attention_of(config, where=str(body))
    width = _hidden_size(config, path)
    heads = _heads(root, modules, width)
    shapes = _checked_weights(body, config)
    return {
        "weights": _weights_hash(body, [root / folder for folder in modules.heads]),
        "tokenizer": _tokenizer_hash(root, body, modules),
        "pooling": _pooling(pooling, modules, config, attention, path),
        "modules": heads,
        "normalize": modules.normalize,
        "attention": attention,
        "prompts": modules.prompts,
        "max_length": _max_length(body, modules, max_length, _positions(config, shapes), path),
        "dimension": heads[-1]["out_features"] if heads else width,
        "matryoshka_dims": config.get("matryoshka_dimensions") or (),
        "similarity": _similarity(root),
    }


def named_pooling(path: str) -> str | None:
    """The pooling that a model's own files name: one that they name none for is no embedding model yet."""
    modules = read_modules(Path(path))
    named = modules.pooling() or read_config(body_folder(path)).get("pooling")
    return pooling_name(named) if named else None


def _similarity(root: Path) -> str | None:
    """How the vectors are compared, where sentence-transformers' file says so."""
    name = read_json(root / "config_sentence_transformers.json").get("similarity_fn_name")
    return None if name is None else str(name)


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
    sub = read_modules(Path(path)).body
    return str(Path(path) / sub) if sub else path


def lowercases(path: str) -> bool:
    """Whether sentence-transformers lower-cases the text of this checkpoint before tokenizing."""
    return read_modules(Path(path)).lowercase


def truncation_side(path: str) -> str:
    """Where this checkpoint's texts are cut when they are too long: "right", at the end, or "left"."""
    modules = read_modules(Path(path))
    own = _tokenizer_config(Path(path), modules).get("truncation_side")
    side = modules.truncation_side or own or "right"
    if side not in ("left", "right"):
        raise ContractError(f"its tokenizer cuts texts at the side {side!r}", where=path)
    return str(side)


def counts_padding(path: str) -> bool:
    """Whether the model numbers padding along with the tokens unless it is told positions.

    With padding on the left such a model (BERT and its kin) gives a text vectors that depend on its neighbours.
    """
    body = body_folder(path)
    config = read_config(body)
    kind = str((config.get("text_config") or config).get("model_type", ""))
    return _positions(config, read_shapes(Path(body))) is not None and kind not in OFFSET_POSITIONS


def dense_folders(path: str) -> list[str]:
    """Folders of the Dense heads, in order."""
    return [str(Path(path) / name) for name in read_modules(Path(path)).heads]


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
    config: dict[str, Any] = read_json(found)
    if not isinstance(config.get("text_config") or {}, dict) or not isinstance(config.get("model_type", ""), str):
        raise InputError("text_config is no mapping, or model_type no text", where=str(found))
    needed = read_json(Path(folder) / ADAPTER_CONFIG).get("is_causal") if base else None
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
    values = read_json(adapter)
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


def attention_of(config: dict[str, Any], *, where: str = "") -> str:
    """`bidirectional` or `causal`, as config.json says: its own flags first, then the kind of model.

    Raises:
        ContractError: a kind of model that neither this project nor transformers knows, or that is neither of both.
    """
    file = str(Path(where) / "config.json")
    text = config.get("text_config") or config
    kind = text.get("model_type", "")
    if text.get("is_causal") is False or text.get("use_bidirectional_attention") or kind.endswith("_bidirec"):
        return "bidirectional"
    if text.get("is_causal") is True or text.get("is_decoder") is True or kind in _DECODERS:
        return "causal"
    if kind in _ENCODERS:
        return "bidirectional"
    if kind in ("", "xlnet"):  # XLNet permutes its texts, and pads and marks them in ways of its own
        raise ContractError(f"model_type '{kind}' is not one that this project can run", where=file)
    from transformers.models.auto import modeling_auto as auto

    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind in auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return "bidirectional"
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ContractError(
        f"whether model_type '{kind}' attends both ways or only back is unknown",
        where=file,
        fix='Add "is_causal": true or false to the model\'s config.json',
    )


def _heads(root: Path, modules: Modules, width: int) -> list[dict[str, Any]]:
    """The Dense layers' specifications, each fitting what comes before it and its own weights."""
    heads: list[dict[str, Any]] = []
    for folder in modules.heads:
        head = read_dense(root / folder, many=modules.many)
        if head["in_features"] != width:
            raise InputError(
                f"this Dense takes {head['in_features']} values where {width} come to it", where=str(root / folder)
            )
        check_head(root / folder, head["in_features"], head["out_features"])
        width = head["out_features"]
        heads.append(head)
    return heads


def _pooling(asked: str | None, modules: Modules, config: dict[str, Any], attention: str, path: str) -> str:
    named = None if asked else modules.pooling()
    try:
        if asked or named or config.get("pooling"):
            return pooling_name(asked or named or str(config["pooling"]))
    except ValueError as error:
        raise ContractError(str(error), where=f"pooling={asked}" if asked else f"config.json of {path}") from None
    if modules.listed:
        raise ContractError("modules.json names no Pooling", where=path, fix="Set pooling")
    return "mean" if attention == "bidirectional" else "last"


def _checked_weights(body: Path, config: dict[str, Any]) -> Shapes | None:
    """The shapes of the transformer's weights, an adapter's base model's; None where they cannot be told cheaply.

    Raises:
        InputError: there are none, they are broken, or they are not of the model that config.json describes.
    """
    base = adapter_base(str(body))
    folders = [body, Path(base)] if base else [body]
    shapes = None
    for folder in folders:
        if not weight_files(folder):
            raise InputError("this model has no weights (*.safetensors or pytorch_model*.bin)", where=str(folder))
        shapes = read_shapes(folder)
    if shapes:
        check_shapes(shapes, config, folders[-1])
    return shapes


def _positions(config: dict[str, Any], shapes: Shapes | None) -> int | None:
    """Tokens that the model's table of positions has room for; None where it has no table."""
    text = config.get("text_config") or config
    kind = text.get("model_type", "")
    rows = position_rows(shapes) if shapes else None
    if shapes is None and kind not in _ABSOLUTE_POSITIONS:
        return None
    said = [n for n in (text.get("max_position_embeddings"), text.get("n_positions")) if isinstance(n, int) and n > 0]
    if shapes is not None and rows is None:
        return None
    limits = [n for n in (rows, *said) if n]
    if not limits:
        return None
    return min(limits) - ((text.get("pad_token_id", 1) or 0) + 1 if kind in OFFSET_POSITIONS else 0)


def _hidden_size(config: dict[str, Any], where: str) -> int:
    text = config.get("text_config") or config
    for key in ("hidden_size", "d_model", "dim", "n_embd"):
        if isinstance(text.get(key), int):
            return text[key]
    raise ContractError("config.json does not say the width of the model (hidden_size)", where=where)


def _tokenizer_config(root: Path, modules: Modules) -> dict[str, Any]:
    body = root / modules.body
    base = adapter_base(str(body))
    folders = (body, root, *([Path(base)] if base else []))
    return next((found for folder in folders if (found := read_json(folder / "tokenizer_config.json"))), {})


def _max_length(body: Path, modules: Modules, asked: int | None, positions: int | None, where: str) -> int:
    """Tokens kept of a text: as asked, else as the Transformer module says, else the tokenizer's own; never more than
    the model has positions for."""
    if asked is not None:
        if positions and asked > positions:
            raise ContractError(f"max_length={asked} is more than the model's {positions} positions", where=where)
        return asked
    if modules.lengths_by_role:
        said = " and ".join(f"{role}_length={length}" for role, length in modules.lengths_by_role.items())
        raise ContractError(
            f"it asks for {said}; here a length is said by the recipe", where=where, fix="Set max_length"
        )
    limits = [modules.max_length]
    if modules.max_length is None:
        text = read_config(str(body))
        text = text.get("text_config") or text
        tokenizer = _tokenizer_config(Path(where), modules).get("model_max_length")
        limits = [tokenizer, text.get("max_position_embeddings") or text.get("n_positions")]
    numbers = [n for n in (*limits, positions) if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    if not numbers:
        raise ContractError("no file says how long a text may be", where=where, fix="Set max_length")
    return int(min(numbers))


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
    return hex_digest("".join(lines))


def _weights_hash(body: Path, heads: list[Path]) -> str:
    """Over the transformer's weights, the adapter's base if it has one, and the Dense heads."""
    base = adapter_base(str(body))
    files = [(f"base/{p.name}", p) for p in (weight_files(Path(base)) if base else [])]
    files += [(p.name, p) for p in weight_files(body)]
    files += [(f"dense{i}/{p.name}", p) for i, head in enumerate(heads) for p in weight_files(head)]
    return _combined(files)


def _tokenizer_hash(root: Path, body: Path, modules: Modules) -> str:
    """Over the tokenizer's files, and what the Transformer module changes of it."""
    base = adapter_base(str(body))
    changes = " lowercase" * modules.lowercase
    changes += f" truncation_side={modules.truncation_side}" if modules.truncation_side else ""
    for folder in (body, root, *([Path(base)] if base else [])):
        files = [(name, folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()]
        if files:
            for name, file in files:
                if name.endswith(".json") and name != "tokenizer.json":  # which the tokenizer's library reads
                    read_json(file)
            digest = _combined(files)
            return hex_digest(f"{digest}{changes}") if changes else digest
    raise InputError("this model has no tokenizer files", where=str(body))
