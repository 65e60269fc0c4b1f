"""Token vectors of numbered texts on disk or in a bucket, for late interaction: several vectors a text.

A shard is two .npy files that any numpy can read: the vectors of all its texts, one text after the other, and where
each text starts. Shards are cut by tokens, not by texts, since what a worker holds is tokens.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.search.shards import Piece, VectorShards, pieces_of, write_npy

SHARD_TOKENS = 1 << 18


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token vectors of n texts, ragged: those of text i are vectors_TD[offsets[i]:offsets[i + 1]].

    vectors_TD: float32 [T, D]. offsets: int64 [n + 1], from 0 to T.
    """

    vectors_TD: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[np.ndarray]) -> Tokens:
        """From one array [tokens, D] a text.

        Raises:
            InputError: arrays that differ in dimension, or none.
        """
        shapes = {np.shape(text)[1:] for text in texts}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise InputError(f"token vectors of shapes {sorted(shapes)} where [tokens, dimension] is wanted")
        offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return cls(np.concatenate(texts).astype(np.float32, copy=False), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, texts: slice) -> Tokens:
        """Those of some texts that follow each other."""
        first, stop, _ = texts.indices(len(self))
        offsets = self.offsets[first : stop + 1]
        return Tokens(self.vectors_TD[offsets[0] : offsets[-1]], offsets - offsets[0])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class TokenShards:
    """Token vectors of numbered texts: the first text of the first shard is text 0, and so on without gaps.

    paths: float32 .npy files [tokens, dimension], each with its `offsets_path` beside it. rows: texts of each.
    """

    paths: tuple[str, ...]
    rows: tuple[int, ...]
    dimension: int

    def __len__(self) -> int:
        """Texts in all."""
        return sum(self.rows)

    @classmethod
    def write(cls, folder: str, texts: Iterable[np.ndarray], *, shard_tokens: int = SHARD_TOKENS) -> TokenShards:
        """Write texts' token vectors [tokens, dimension] as shards of at most about `shard_tokens`; one is held in
        memory.

        Raises:
            InputError: no texts, a text without tokens, or vectors that differ in dimension.
        """
        paths, rows, dimension = list[str](), list[int](), 0
        held, tokens = list[np.ndarray](), 0
        storage.make_dir(folder)

        def put_down() -> None:
            paths.append(storage.join(folder, f"tokens-{len(paths):05d}.npy"))
            rows.append(len(held))
            write_tokens(paths[-1], held)

        for number, text in enumerate(texts):
            text_JD = np.asarray(text, np.float32)
            if text_JD.ndim != 2 or not text_JD.size or text_JD.shape[1] != (dimension or text_JD.shape[1]):
                wanted = f"[tokens, {dimension or 'dimension'}]"
                raise InputError(
                    f"token vectors of shape {text_JD.shape} where {wanted} are wanted",
                    where=f"{folder}, text {number}",
                )
            dimension = text_JD.shape[1]
            if held and tokens + len(text_JD) > shard_tokens:
                put_down()
                held, tokens = [], 0
            held.append(text_JD)
            tokens += len(text_JD)
        if not held:
            raise InputError("there are no token vectors to write", where=folder)
        put_down()
        return cls(tuple(paths), tuple(rows), dimension)

    def pieces(self, start: int, stop: int, *, most: int | None = None) -> list[Piece]:
        """Texts start .. stop as parts of shards, of at most `most` texts each."""
        return pieces_of(self.rows, start, stop, most=most)

    def read(self, piece: Piece) -> Tokens:
        """Those of a piece, in the file's own memory where it is local (do not write to it).

        Raises:
            InputError: a file is not there, is cut off, or is not of this form.
        """
        path, rows = self.paths[piece.shard], self.rows[piece.shard]
        starts = offsets_path(path)
        try:
            offsets = np.load(io.BytesIO(storage.read_bytes(starts)), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"it cannot be read ({error})", where=starts) from error
        if offsets.shape != (rows + 1,) or offsets.dtype != np.int64 or offsets[0] or np.any(np.diff(offsets) < 0):
            raise InputError(f"it does not hold where {rows:,} texts start", where=starts)
        lo, hi = int(offsets[piece.lo]), int(offsets[piece.hi])
        whole = VectorShards((path,), (int(offsets[-1]),), self.dimension)
        return Tokens(whole.read(Piece(0, lo, hi, 0)), offsets[piece.lo : piece.hi + 1] - lo)


def offsets_path(path: str) -> str:
    """Where the starts of a shard's texts are."""
    return f"{path.removesuffix('.npy')}.offsets.npy"


def write_tokens(path: str, texts: Sequence[np.ndarray]) -> None:
    """Write one shard: its vectors, and where each text starts."""
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    with storage.open_output(offsets_path(path)) as stream:
        np.save(stream, offsets)
    write_npy(path, texts, int(offsets[-1]))
