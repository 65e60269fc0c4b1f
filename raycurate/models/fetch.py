"""From a model's name to a local folder, on whatever machine the encoder runs.

Safe when many processes of a node ask at once: the hub's client takes file locks, and what is copied from
an object store appears under its name only when it is whole.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from raycurate.core import storage
from raycurate.core.cache import cache_folder
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError, MissingDependencyError, nearest
from raycurate.core.hub import MODEL, snapshot
from raycurate.core.once import once
from raycurate.models.checkpoint import role_folder
from raycurate.models.options import EncoderOptions
from raycurate.models.retokenise import retokenised

_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_OF_A_MODEL = ("config.json", "modules.json", "adapter_config.json")
_CONSOLIDATED = "model/consolidated"  # where a training's checkpoint has its model
_SNAPSHOT = re.compile(r"/models--(?P<id>[^/]+)/snapshots/(?P<commit>[^/]+)/?$")
_ELSEWHERE = ["onnx/*", "openvino/*", "original/*", "gguf/*", "coreml/*", "consolidated*.safetensors"]


def fetch_model(options: EncoderOptions) -> str:
    """The local folder of `options.model`, downloaded if need be.

    A folder is taken as it is, of a training's checkpoint (`epoch_E_step_S`) the model in it; `python:MODULE` is what
    that module's `get_model_path()` returns; a URI of an object store is copied to the cache; all else is a Hugging
    Face id. PyTorch pickles are fetched only when there are no safetensors.

    With another tokenizer, or other special tokens, it is a folder of the cache that links to the model's.

    Raises:
        InputError: there is no such model, it is gated, or it is not in the cache and the network is off.
        MissingDependencyError: the Python package that carries the model is not installed.
        ConfigError: the tokenizer has no such special tokens.
    """
    folder = _folder_of(options.model, options)
    if options.tokenizer is None and options.add_bos is None and options.add_eos is None:
        return folder
    named = options.model_copy(update={"revision": None})
    tokenizer = _folder_of(options.tokenizer, named) if options.tokenizer is not None else None
    return retokenised(folder, tokenizer, add_bos=options.add_bos, add_eos=options.add_eos, cache_dir=options.cache_dir)


def _folder_of(model: str, options: EncoderOptions) -> str:
    if model.startswith("python:"):
        return _from_package(model.removeprefix("python:"))
    if storage.is_remote(model) and storage.scheme_of(model) != "hf":
        return _from_storage(model, options.cache_dir)
    model = model.removeprefix("hf://")
    path = Path(model).expanduser()
    if path.is_dir():
        return _inside_checkpoint(path.absolute())
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/"):
        raise _no_such_folder(path)
    return _from_hub(model, options)


def fetch_encoder(options: EncoderOptions) -> str:
    """The local folder of the model that encodes `options.role`: `fetch_model`'s, or of two encoders the role's own.

    Raises:
        ConfigError: queries and documents have an encoder each, and the role is neither's.
        InputError, MissingDependencyError: as `fetch_model`.
    """
    return role_folder(fetch_model(options), options.role)


def _inside_checkpoint(folder: Path) -> str:
    """Of a training's checkpoint the model's folder; any other folder as it is."""
    inside = folder / _CONSOLIDATED
    is_model = any((folder / name).is_file() for name in _OF_A_MODEL)
    return str(inside) if inside.is_dir() and not is_model else str(folder)


def hub_name(folder: str) -> tuple[str, str] | None:
    """(id, commit) of the Hugging Face model that a folder of the hub client's cache holds; None for another folder."""
    found = _SNAPSHOT.search(Path(folder).absolute().as_posix())
    return (found["id"].replace("--", "/"), found["commit"]) if found else None


def _no_such_folder(path: Path) -> InputError:
    if path.exists():
        return InputError("this is a file; a model is a folder", where=str(path))
    parent = path.absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    beside = sorted(p.name for p in parent.iterdir() if p.is_dir())
    close = nearest(path.name, beside)
    shown = f"Did you mean '{parent / close}'?" if close else f"Folders in {parent}: {', '.join(beside[:10]) or 'none'}"
    return InputError("there is no such folder", where=str(path), fix=shown)


def _from_package(module: str) -> str:
    try:
        found = importlib.import_module(module).get_model_path()
    except ImportError as error:
        raise MissingDependencyError(
            f"the model's package cannot be imported ({error})",
            where=f"python:{module}",
            fix=f"Install it where the encoder runs: pip install {module.partition('.')[0].replace('_', '-')}",
        ) from error
    except AttributeError:
        raise ConfigError("this module has no get_model_path()", where=f"python:{module}") from None
    if not Path(found).is_dir():
        raise InputError(f"get_model_path() names '{found}', which is no folder", where=f"python:{module}")
    return str(found)


def _from_storage(uri: str, cache_dir: str | None) -> str:
    entries = storage.list_files(uri)
    inside = f"{uri.rstrip('/')}/{_CONSOLIDATED}"
    there = [entry for entry in entries if entry.path.startswith(inside + "/")]
    if there and not {f"{uri.rstrip('/')}/{name}" for name in _OF_A_MODEL} & {entry.path for entry in entries}:
        uri, entries = inside, there
    listing = [(e.path, e.size, e.mtime_ns) for e in entries]
    folder = cache_folder(cache_dir, shared=True) / "models" / fingerprint(listing)
    with once(folder) as temporary:
        if temporary is not None:
            storage.copy_folder(uri, temporary)
    return str(folder)


def _from_hub(model: str, options: EncoderOptions) -> str:
    patterns = [*_PATTERNS, "*.py"] if options.trust_remote_code else _PATTERNS

    def fetched(wanted: list[str]) -> str:
        return snapshot(
            model,
            wanted,
            kind=MODEL,
            revision=options.revision,
            cache_dir=options.cache_dir,
            token=options.token(),
            local_files_only=options.local_files_only,
            ignore_patterns=_ELSEWHERE,
        )

    folder = fetched(patterns)
    return folder if any(Path(folder).rglob("*.safetensors")) else fetched([*patterns, "*.bin"])
