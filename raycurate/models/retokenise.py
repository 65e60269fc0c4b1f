"""A model with another tokenizer, or with one that puts other special tokens: as a folder that every reader takes.

The folder lies in the cache and holds links to the model's files and the tokenizer's own files in place of its own, so
that contract, tokens, training and export follow without being told.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from raycurate.core.cache import cache_folder
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError
from raycurate.core.once import once
from raycurate.models.checkpoint import TOKENIZER_FILES, body_folder


def retokenised(
    model: str, tokenizer: str | None, *, add_bos: bool | None, add_eos: bool | None, cache_dir: str | None
) -> str:
    """The folder of `model` with another tokenizer.

    Args:
        model: the model's folder.
        tokenizer: the folder whose tokenizer is taken; None for the model's own.
        add_bos, add_eos: whether a text begins and ends with the tokenizer's tokens for that; None as it does.

    Raises:
        ConfigError: there are no such tokens, or the tokenizer cannot be told to put them.
    """
    source = Path(body_folder(tokenizer or model))
    name = f"tokenizer-{_fingerprint(Path(model), source, add_bos, add_eos)}"
    folder = cache_folder(cache_dir, shared=True) / "models" / name
    with once(folder) as temporary:
        if temporary is not None:
            body = temporary / Path(body_folder(model)).relative_to(model)
            _link_all(Path(model), temporary)
            for name in TOKENIZER_FILES:
                (body / name).unlink(missing_ok=True)
                if (source / name).is_file():
                    shutil.copy(source / name, body / name)
            if add_bos is not None or add_eos is not None:
                _put(body, add_bos, add_eos, where=str(source))
    return str(folder)


def _fingerprint(model: Path, source: Path, add_bos: bool | None, add_eos: bool | None) -> str:
    files = [path for path in sorted(model.rglob("*")) if path.is_file()]
    files += [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    listing = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return fingerprint([listing, add_bos, add_eos])


def _link_all(model: Path, target: Path) -> None:
    for path in sorted(model.rglob("*")):
        place = target / path.relative_to(model)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        else:
            place.symlink_to(path.resolve())


def _put(folder: Path, add_bos: bool | None, add_eos: bool | None, *, where: str) -> None:
    """Make the tokenizer in `folder` put the tokens at both ends of a text, or leave them out."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    if not tokenizer.is_fast:
        raise ConfigError("this tokenizer cannot be told which special tokens to put", where=where)
    ends = (
        ("add_bos", tokenizer.bos_token, tokenizer.bos_token_id, add_bos),
        ("add_eos", tokenizer.eos_token, tokenizer.eos_token_id, add_eos),
    )
    now = tokenizer("a")["input_ids"]
    puts = []
    for at, (name, token, number, asked) in zip((0, -1), ends, strict=True):
        if asked and token is None:
            what = "begin" if name == "add_bos" else "end"
            raise ConfigError(f"this tokenizer has no token for the {what} of a text", where=f"{name}=true, {where}")
        puts.append(asked if asked is not None else number is not None and now[at] == number)
    used = [(token, number) for (_, token, number, _), put in zip(ends, puts, strict=True) if put]
    template = " ".join([*([ends[0][1]] if puts[0] else []), "$A", *([ends[1][1]] if puts[1] else [])])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    for name, put in zip(("add_bos_token", "add_eos_token"), puts, strict=True):
        tokenizer.init_kwargs[name] = put
        if hasattr(tokenizer, f"_{name}"):
            setattr(tokenizer, f"_{name}", put)
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    wanted = [*([ends[0][2]] if puts[0] else []), *bare, *([ends[1][2]] if puts[1] else [])]
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(str(folder))
    if AutoTokenizer.from_pretrained(str(folder))("a")["input_ids"] != wanted:
        raise ConfigError("this tokenizer does not keep which special tokens it is told to put", where=where)
