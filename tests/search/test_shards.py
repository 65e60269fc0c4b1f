"""Vectors on disk and in a bucket: what is written is read, and what is unfinished or damaged is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycurate.core import storage
from raycurate.core.errors import InputError, OutputExistsError
from raycurate.search import VectorShards


def rows(n: int, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)


def whole(vectors: VectorShards) -> np.ndarray:
    return np.concatenate([vectors.read(piece) for piece in vectors.pieces(0, len(vectors))])


@pytest.mark.parametrize("blocks", [[17], [3, 0, 9, 5], [1] * 17])
@pytest.mark.parametrize("shard_rows", [1, 4, 17, 100])
def test_blocks_of_any_size_become_shards_of_one(tmp_path: Path, blocks: list[int], shard_rows: int) -> None:
    vectors = rows(17)
    parts = np.split(vectors, np.cumsum(blocks)[:-1])
    written = VectorShards.write(str(tmp_path), parts, shard_rows=shard_rows)
    assert written == VectorShards.open(str(tmp_path))
    assert (len(written), written.dimension) == (17, 5)
    assert set(written.rows[:-1]) <= {shard_rows} and len(written.paths) == -(-17 // shard_rows)
    np.testing.assert_array_equal(whole(written), vectors)
    np.testing.assert_array_equal(np.concatenate([np.load(path) for path in written.paths]), vectors)


def test_pieces_cover_a_range_once(tmp_path: Path) -> None:
    vectors = rows(23)
    written = VectorShards.write(str(tmp_path), [vectors], shard_rows=6)
    for start, stop, most in [(0, 23, None), (5, 20, None), (5, 20, 4), (7, 7, None), (22, 23, 1)]:
        pieces = written.pieces(start, stop, most=most)
        parts = [np.arange(p.first, p.first + len(p)) for p in pieces]
        np.testing.assert_array_equal(np.concatenate([*parts, np.empty(0, int)]), np.arange(start, stop))
        assert all(len(piece) <= (most or 6) for piece in pieces)
        for piece in pieces:
            np.testing.assert_array_equal(written.read(piece), vectors[piece.first : piece.first + len(piece)])


def test_a_writer_may_use_its_block_again(tmp_path: Path) -> None:
    def blocks():
        block = np.empty((2, 3), np.float32)
        for value in range(4):
            block[:] = value
            yield block

    written = VectorShards.write(str(tmp_path), blocks(), shard_rows=100)
    assert whole(written)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_in_a_bucket_only_the_rows_asked_for_are_fetched(s3: str) -> None:
    vectors = rows(40, 300)
    written = VectorShards.write(f"{s3}/vectors", [vectors], shard_rows=30)
    np.testing.assert_array_equal(whole(VectorShards.open(f"{s3}/vectors")), vectors)
    [piece] = written.pieces(11, 14)
    np.testing.assert_array_equal(written.read(piece), vectors[11:14])
    storage.write_bytes(written.paths[0], storage.read_bytes(written.paths[0])[:-1])
    [_, last] = written.pieces(28, 31)
    np.testing.assert_array_equal(written.read(last), vectors[30:31])
    with pytest.raises(InputError, match="it ends within row 29"):
        written.read(written.pieces(28, 30)[0])


def test_unfinished_vectors_are_not_opened_and_whole_ones_not_overwritten(tmp_path: Path) -> None:
    def stopped():
        yield rows(7)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        VectorShards.write(str(tmp_path), stopped(), shard_rows=3)
    with pytest.raises(InputError, match=r"shards\.json"):
        VectorShards.open(str(tmp_path))
    VectorShards.write(str(tmp_path), [rows(7)], shard_rows=3)
    with pytest.raises(OutputExistsError):
        VectorShards.write(str(tmp_path), [rows(7)], shard_rows=3)


def test_bad_blocks_are_refused(tmp_path: Path) -> None:
    for blocks, said in [([], "no vectors"), ([rows(3, 5), rows(2, 6)], "from document 3"), ([np.ones(3)], "shape")]:
        with pytest.raises(InputError, match=said):
            VectorShards.write(str(tmp_path), blocks, shard_rows=10)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    written = VectorShards.write(str(tmp_path), [rows(9)], shard_rows=9)
    [piece] = written.pieces(0, 9)
    path = Path(written.paths[0])
    whole_file = path.read_bytes()
    for damaged, said in [(whole_file[:-4], "cannot be read"), (b"", "cannot be read"), (b"junk" * 99, "cannot be")]:
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=said):
            written.read(piece)
    np.save(path, rows(9).astype(np.float64))
    with pytest.raises(InputError, match="float64"):
        written.read(piece)
    np.save(path, np.asfortranarray(rows(9)))
    with pytest.raises(InputError, match="one after the other"):
        written.read(piece)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        written.read(piece)
    (tmp_path / "shards.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="not an index"):
        VectorShards.open(str(tmp_path))
