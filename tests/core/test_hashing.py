"""Keys of strings: the values that outputs and caches of before hold."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from raycurate.core.config import fingerprint
from raycurate.core.hashing import hash_column, hash_strings, hex_digest, keyed_hashes
from raycurate.data.documents.rows import generated_id
from raycurate.data.training.inline import document_id

TEXTS = ["", "a", "Rain falls.", "é\0ß"]


def test_digests_are_the_start_of_the_sha256() -> None:
    assert hex_digest("é") == hex_digest("é".encode()) == hashlib.sha256("é".encode()).hexdigest()
    assert hex_digest("é", 8) == hex_digest("é")[:8]
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2d"
    assert document_id(TEXTS[3]) == "d_b7ddb23426fbbe6b"
    assert generated_id("x\udcff", 7) == "a1a301b221ace631fcc8"


def test_hashes_of_strings_are_what_they_were() -> None:
    expected = [0, 0x919AE2D88CE9ADD6, 0xAB1FD0B6DE5971CE, 0x533CED96D66FC4A7, 0]
    assert hash_strings(pa.array([*TEXTS, None])).tolist() == expected
    chunks = pa.chunked_array([TEXTS[:1], [], [*TEXTS[1:], None]], pa.large_string())
    assert hash_column(chunks).tolist() == expected
    assert hash_column(pa.chunked_array([], pa.string())).tolist() == []


def test_a_column_hashes_the_same_whole_and_in_pieces() -> None:
    texts = pa.array([f"text {i}" * (i % 7) for i in range(2000)])
    np.testing.assert_array_equal(hash_column(pa.chunked_array([texts[3:1800]])), hash_strings(texts)[3:1800])


def test_keyed_hashes_are_what_they_were() -> None:
    column = np.array(TEXTS, object)
    assert keyed_hashes(column, "raycurate-key-00").tolist() == [
        0x4B41B97940223686, 0xED09EC19F40D1A39, 0xE12CAFE3B4049810, 0xC6F5C0E7C1FA573A
    ]  # fmt: skip
    assert keyed_hashes(column, "raycurate-second")[0] == 0xBFAAFCB20B391E33
