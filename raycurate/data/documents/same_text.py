"""When two texts are the same: but for case and white space, as people read them."""

from __future__ import annotations

import pyarrow as pa


def folded(text: str) -> str:
    """`text` as texts are compared."""
    return " ".join(text.casefold().split())


def folded_column(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each of these texts, folded."""
    chunks = [pa.array((folded(text.as_py()) for text in chunk), pa.large_string()) for chunk in texts.chunks]
    return pa.chunked_array(chunks, pa.large_string())
