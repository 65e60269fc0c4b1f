"""Tokens of the training texts: made once, kept ragged in files that all processes of a machine map into memory.

The tokens are those that models/tokenize.py makes for the same contract, so that a model is trained on what it will
be asked. Tokenizing anew in every epoch and on every rank would cost more CPU than a small model's forward.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from raycurate.core.errors import ConfigError, InputError
from raycurate.models.checkpoint import OFFSET_POSITIONS, body_folder, read_config
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import TokenBatch

CHUNK = 2048
"""Texts that are tokenized together."""

# The tokenizer's own threads keep a few cores busy; more are fed by processes, whose start takes seconds.
_MANY_TEXTS = 50_000
_MANY_CORES = 4

Tokenised = tuple[np.ndarray, np.ndarray, int]
"""ids int32 [total], lengths int64 [texts], how many texts were cut."""


@dataclass(frozen=True)
class TextTokens:
    """How texts become tokens: the model whose tokenizer it is, its contract, and at most `max_length` tokens a text.

    The texts come with their prefixes: which one is put before a text may depend on its corpus.
    """

    options: EncoderOptions
    contract: EmbeddingContract
    max_length: int

    def tokenizer(self, serialised: str | None) -> Callable[[list[str]], Tokenised]:
        from raycurate.models.tokenize import Tokenizer

        options = self.options.model_copy(update={"prefix": ""})
        made = Tokenizer(
            options, self.contract.model_copy(update={"max_length": self.max_length}), serialised=serialised
        )

        def tokenise(texts: list[str]) -> Tokenised:
            batch, cut = made(texts)
            return batch.ids, batch.lengths, int(cut.sum())

        return tokenise


def model_positions(folder: str) -> int | None:
    """Tokens that the model of `folder` can tell the positions of; None when its config.json names no limit."""
    config = read_config(body_folder(folder))
    text = config.get("text_config") or config
    table = text.get("max_position_embeddings") or text.get("n_positions")
    if table and text.get("model_type") in OFFSET_POSITIONS:
        table -= (text.get("pad_token_id", 1) or 0) + 1
    return int(table) if table and table > 0 else None


def check_lengths(folder: str, **lengths: int) -> int | None:
    """Refuse lengths (option name=tokens) that the model has no positions for; the positions come back.

    Raises:
        ConfigError: names every option that is too long.
    """
    positions = model_positions(folder)
    bad = [f"{name}={n}" for name, n in lengths.items() if n < 1 or (positions is not None and n > positions)]
    if bad:
        limit = f"1 to {positions}" if positions is not None else "1 or more"
        raise ConfigError(
            f"{' and '.join(bad)}: the model has positions for {positions or 'any number of'} tokens",
            where=folder,
            fix=f"Set {'it' if len(bad) == 1 else 'them'} to {limit}",
        )
    return positions


def padding_id(options: EncoderOptions, pad_token: str | None = None) -> int:
    """The id that pads a row; any will do, as attention and pooling leave padding out, but it must be one.

    Args:
        pad_token: a token of the vocabulary, or "eos"; None for the tokenizer's own padding token.

    Raises:
        ConfigError: the tokenizer has no padding token and none was named, or the named one is not in it.
    """
    from transformers import AutoTokenizer

    from raycurate.models.fetch import fetch_encoder

    folder = body_folder(fetch_encoder(options))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    wanted = tokenizer.eos_token if pad_token == "eos" else pad_token
    if pad_token is not None:
        found = tokenizer.get_vocab().get(wanted) if wanted is not None else None
        if found is None:
            what = "has no end-of-text token" if pad_token == "eos" else f"has no token {pad_token!r}"
            raise ConfigError(f"the tokenizer {what}", where=f"{folder}: pad_token", fix="Name one of its tokens")
        return int(found)
    if tokenizer.pad_token_id is None:
        eos = f" (its {tokenizer.eos_token!r})" if tokenizer.eos_token else ""
        raise ConfigError(
            "the tokenizer has no padding token",
            where=folder,
            fix=f"Set pad_token=eos{eos}, or pad_token to another token of its vocabulary",
        )
    return int(tokenizer.pad_token_id)


def write_tokens(
    folder: Path, name: str, chunks: Iterable[list[str]], how: TextTokens, *, count: int, processes: int | None = None
) -> int:
    """Tokenize `chunks` in order into `folder`/name.ids and name.offsets.npy; how many texts were cut comes back.

    Args:
        chunks: texts with their prefixes, `CHUNK` at a time.
        count: texts in all.
        processes: that tokenize at the same time; None: one a core when there are many texts and cores, else this
            one alone.

    Raises:
        InputError: a text gives no token at all.
    """
    from raycurate.models.tokenize import serialised_tokenizer

    serialised = serialised_tokenizer(how.options.model_copy(update={"prefix": ""}))
    if processes is None:
        cores = len(os.sched_getaffinity(0))
        processes = cores if cores >= _MANY_CORES and count >= _MANY_TEXTS else 1
    cut = total = 0
    offsets = np.zeros(count + 1, np.int64)
    done = 0
    with (folder / f"{name}.ids").open("wb") as out:
        for ids, lengths, some in _tokenised(chunks, how, serialised, processes):
            if len(lengths) and not lengths.min():
                raise InputError(
                    f"text {done + int(lengths.argmin())} of the {name} gives no token, so it has no embedding",
                    fix="Remove it, or train with a prefix",
                )
            out.write(ids.astype(np.int32, copy=False).tobytes())
            np.cumsum(lengths, out=offsets[done + 1 : done + 1 + len(lengths)])
            offsets[done + 1 : done + 1 + len(lengths)] += total
            done, total, cut = done + len(lengths), total + len(ids), cut + some
    if done != count:
        raise ValueError(f"{done} texts came where {count} were promised")
    np.save(folder / f"{name}.offsets.npy", offsets)
    return cut


def open_tokens(folder: Path, name: str) -> TokenBatch:
    """What `write_tokens` wrote, mapped into memory."""
    offsets = np.load(folder / f"{name}.offsets.npy", mmap_mode="r")
    if not int(offsets[-1]):  # an empty file cannot be mapped
        return TokenBatch(np.empty(0, np.int32), offsets)
    return TokenBatch(np.memmap(folder / f"{name}.ids", np.int32, mode="r"), offsets)


def _tokenised(
    chunks: Iterable[list[str]], how: TextTokens, serialised: str | None, processes: int
) -> Iterator[Tokenised]:
    """The tokens of each chunk, in order; at most a few chunks a process are under way."""
    if processes <= 1:
        yield from map(how.tokenizer(serialised), chunks)
        return
    # spawn: a fork of a process with threads (Ray's, torch's) may hang
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (how, serialised)) as pool:
        waiting: deque[Future[Tokenised]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) >= 3 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_state: dict[str, Any] = {}


def _start_worker(how: TextTokens, serialised: str | None) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _state["tokenise"] = how.tokenizer(serialised)


def _work(texts: list[str]) -> Tokenised:
    return _state["tokenise"](texts)
