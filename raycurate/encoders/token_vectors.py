"""Token vectors of texts, for multi-vector models, from the same cache that single vectors come from.

The encoder leaves padding out and keeps every other token that the contract has it read, special ones and prompts
included, as training scores them (training/model/multi_vector.py): what is found is what was trained. Texts differ
in length, so they are laid out in shards of like many tokens, which takes a look at their lengths first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from raycurate.core import storage
from raycurate.core.errors import ConfigError
from raycurate.encoders.cache import Filled, Places, Texts, fill_cache, find, plan_for, read_vectors
from raycurate.search.token_shards import SHARD_TOKENS, TokenShards, write_tokens

if TYPE_CHECKING:
    import pyarrow as pa

_TASK_CPUS = 0.5


def embed_token_texts(
    inputs: Sequence[Texts], model: str, options: dict[str, Any], *, cache: str, folder: str
) -> list[TokenShards]:
    """Embed what the cache does not have, and lay out the token vectors in `folder`; needs a running Ray.

    They are as long as the contract makes them: of length one where it says `normalize`.

    Args:
        model, options: as `raycurate embed` takes them.
        cache: folder or URI that is kept from run to run.
        folder: where the vectors are laid out for `search_maxsim`; written anew.

    Raises:
        ConfigError: options that embed does not have, or a model of one vector a text.
        InputError: texts that have no vectors (blank, too long, or the model gives NaN).
    """
    plans = [plan_for(given, model, options) for given in inputs]
    for plan in plans:
        if plan.contract.pooling != "multi_vector":
            raise ConfigError(
                f"its pooling is {plan.contract.pooling}, which gives one vector a text",
                where=model,
                fix="Search it as it is (embed_texts), or ask for pooling=multi_vector",
            )
    dimensions = [plan.contract.dimension for plan in plans]
    filled = fill_cache(inputs, plans, cache=cache, folder=folder)
    return [
        _lay_out(given, one, storage.join(folder, given.name), dimension)
        for given, one, dimension in zip(inputs, filled, dimensions, strict=True)
    ]


def _lay_out(given: Texts, filled: Filled, folder: str, dimension: int) -> TokenShards:
    """The token vectors of these texts in files that a search reads, one task a file."""
    import ray

    from raycurate.ray_runtime.cluster import remote_task

    found = find(given, filled)
    storage.delete(folder)
    storage.make_dir(folder)
    measure = remote_task(_lengths, name="MeasureTexts", num_cpus=_TASK_CPUS)
    write = remote_task(_write_shard, name="LayOutVectors", num_cpus=_TASK_CPUS)
    used = found.part(0, len(found.row_N))
    by_file = ray.get([measure.remote(path) for path in used.files])
    starts = np.cumsum([0, *map(len, by_file)])
    lengths_N = np.concatenate([np.empty(0, np.int64), *by_file])[starts[used.file_N] + used.row_N]
    paths, rows, calls = list[str](), list[int](), []
    for start, stop in _cut(lengths_N):
        paths.append(storage.join(folder, f"tokens-{len(paths):05d}.npy"))
        rows.append(stop - start)
        calls.append(write.remote(paths[-1], found.part(start, stop)))
    ray.get(calls)
    return TokenShards(tuple(paths), tuple(rows), dimension)


def _cut(lengths_N: np.ndarray) -> list[tuple[int, int]]:
    """Texts start .. stop of each shard: as many as have `SHARD_TOKENS` tokens together, or one."""
    ends, cuts = np.cumsum(lengths_N), [0]
    while cuts[-1] < len(lengths_N):
        before = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        stop = int(np.searchsorted(ends, before + SHARD_TOKENS, side="right"))
        cuts.append(max(stop, cuts[-1] + 1))
    return list(pairwise(cuts))


def _lengths(path: str) -> np.ndarray:
    """int64, how many token vectors each row of a file of a store has; 0 where it has none."""
    return np.diff(_starts(read_vectors(path)))


def _starts(column: pa.Array) -> np.ndarray:
    starts: np.ndarray = column.offsets.to_numpy().astype(np.int64)
    return starts


def _write_shard(path: str, places: Places) -> None:
    """Write one shard; the files of the store are read one after the other."""
    texts = np.empty(len(places.row_N), object)
    for number, name in enumerate(places.files):
        column = read_vectors(name)
        starts, inner = _starts(column), column.values
        vectors_TD = inner.flatten().to_numpy().reshape(-1, inner.type.list_size)
        for at in np.flatnonzero(places.file_N == number):
            row = places.row_N[at]
            texts[at] = vectors_TD[starts[row] : starts[row + 1]].astype(np.float32)  # a copy: the file is let go
    write_tokens(path, list(texts))
