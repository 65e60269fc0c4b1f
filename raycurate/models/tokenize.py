"""Texts to token ids, as the contract says, without the model.

Tokens are made once, by CPU tasks, and kept ragged: no padding, so nothing to agree on about it. The prefix
is put before the text literally, special tokens are the tokenizer's own, what is longer than the
contract's length is cut (at the end, unless the tokenizer cuts at the start) and reported.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers

from raycurate.core.errors import InputError
from raycurate.models.checkpoint import TOKENIZER_FILES, adapter_base, body_folder, lowercases, truncation_side
from raycurate.models.contract import EmbeddingContract
from raycurate.models.fetch import fetch_encoder
from raycurate.models.options import EncoderOptions

# A text is first cut to this many characters a token kept, and must then be cut by so many tokens; see _encode_long.
_CHARS_PER_TOKEN = 32
_MARGIN = 64


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of n rows, ragged: row i is ids[offsets[i]:offsets[i + 1]].

    ids: int32 [total]; offsets: int64 [n + 1], from 0 to total.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> TokenBatch:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(r) for r in rows], out=offsets[1:])
        flat = (i for row in rows for i in row)
        return cls(np.fromiter(flat, np.int32, count=int(offsets[-1])), offsets)

    @classmethod
    def from_arrow(cls, column: pa.Array | pa.ChunkedArray) -> TokenBatch:
        """From a list<int32> column without nulls; the ids are not copied (unless it has several chunks)."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if column.null_count:
            raise ValueError(f"{column.null_count} rows of the token column are null")
        offsets = column.offsets.to_numpy().astype(np.int64)
        ids = column.values.to_numpy(zero_copy_only=True)[offsets[0] : offsets[-1]]
        return cls(ids, offsets - offsets[0])

    def to_arrow(self) -> pa.ListArray | pa.LargeListArray:
        """As list<int32> over the same ids; large_list where the offsets need 64 bits."""
        if self.offsets[-1] < 2**31:
            return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.ids))
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.ids))


def serialised_tokenizer(options: EncoderOptions) -> str | None:
    """The model's tokenizer as JSON of the `tokenizers` library; None for one that is written in Python.

    It is the loaded one, not the file tokenizer.json: transformers alters some after reading the file.
    """
    loaded = _load(options)
    return loaded.backend_tokenizer.to_str() if loaded.is_fast else None


def _load(options: EncoderOptions) -> Any:
    from transformers import AutoTokenizer

    folder = body_folder(fetch_encoder(options))
    base = adapter_base(folder)
    if base and not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        folder = base
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # what a broken file raises depends on the file and the tokenizer
        raise _unreadable(folder, error) from error


def _unreadable(where: str, error: Exception) -> InputError:
    return InputError(
        f"the tokenizer cannot be read ({type(error).__name__}: {error})", where=where, fix="Download the model again"
    )


def check_tokenizer(folder: str) -> None:
    """Refuse a broken tokenizer.json before any process loads it.

    Raises:
        InputError: the tokenizers library cannot read it.
    """
    for place in (Path(body_folder(folder)), Path(folder)):
        file = place / "tokenizer.json"
        if file.is_file():
            try:
                tokenizers.Tokenizer.from_file(str(file))
            except Exception as error:  # the library raises no other
                raise _unreadable(str(file), error) from None
            return


class Tokenizer:
    """Callable: texts -> (TokenBatch, which texts were truncated).

    Args:
        serialised: what `serialised_tokenizer` gave for these options; None: load the tokenizer here.

    Raises (when made):
        InputError: the model or its tokenizer is not there.
    """

    def __init__(self, options: EncoderOptions, contract: EmbeddingContract, *, serialised: str | None = None) -> None:
        folder = fetch_encoder(options)
        self.contract = contract
        self.prefix = contract.prompt_for(options.role) if options.prefix is None else options.prefix
        self._lower = lowercases(folder)
        self._side = truncation_side(folder)
        self._slow_one: Any = None
        self._fast: Any = None
        if serialised is not None:
            self._fast = tokenizers.Tokenizer.from_str(serialised)
        else:
            loaded = _load(options)
            if loaded.is_fast:
                # A copy: truncation is state of the Rust object, and the loaded one may be used elsewhere.
                self._fast = copy.deepcopy(loaded.backend_tokenizer)
            else:
                self._slow_one = loaded
                self._slow_one.truncation_side = self._side
        if self._fast is not None:
            if self._lower:  # all but special tokens that a text spells out, as sentence-transformers does
                first = tokenizers.normalizers.Lowercase()
                own = [self._fast.normalizer] if self._fast.normalizer else []
                self._fast.normalizer = tokenizers.normalizers.Sequence([first, *own])
            self._fast.no_padding()
            self._fast.enable_truncation(contract.max_length, direction=self._side)

    def __call__(self, texts: list[str]) -> tuple[TokenBatch, np.ndarray]:
        """Tokens of each text, and a bool array [n], True where the text was longer than the contract allows."""
        whole = [self.prefix + text for text in texts]
        if self._fast is None:
            return self._slow([text.lower() for text in whole] if self._lower else whole)
        limit = _CHARS_PER_TOKEN * self.contract.max_length
        if self._side == "left":
            limit = max(map(len, whole), default=0)  # the end is what counts, and the cut of _encode_long is a head
        encodings = self._fast.encode_batch_fast([t if len(t) <= limit else "" for t in whole])
        for row, text in enumerate(whole):
            if len(text) > limit:
                encodings[row] = self._encode_long(text, limit)
        truncated = np.fromiter((bool(e.overflowing) for e in encodings), bool, count=len(encodings))
        return TokenBatch.from_lists([e.ids for e in encodings]), truncated

    def _encode_long(self, text: str, limit: int) -> Any:
        """The encoding of a very long text without reading all of it, where that is the same.

        A head cut at a space gives the same first tokens as the whole, as long as many more tokens follow
        the last one kept: a cut changes the tokens near it, not those far before it. Where the head is too
        poor in tokens (a megabyte of spaces, one endless word) it is doubled, at last to the whole text.
        """
        while limit < len(text):
            head = text[: text.rfind(" ", limit // 2, limit) if " " in text[limit // 2 : limit] else limit]
            encoding = self._fast.encode_batch_fast([head])[0]
            if sum(len(e.ids) for e in encoding.overflowing) >= _MARGIN:
                return encoding
            limit *= 2
        return self._fast.encode_batch_fast([text])[0]

    def _slow(self, whole: list[str]) -> tuple[TokenBatch, np.ndarray]:
        """For tokenizers written in Python, which do not tell what they cut: tokenize with one token more."""
        length = self.contract.max_length
        quiet = {"padding": False, "return_attention_mask": False, "return_token_type_ids": False}
        longer = self._slow_one(whole, truncation=True, max_length=length + 1, **quiet)["input_ids"]
        kept = self._slow_one(whole, truncation=True, max_length=length, **quiet)["input_ids"]
        return TokenBatch.from_lists(kept), np.array([len(row) > length for row in longer], bool)
