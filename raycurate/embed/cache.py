"""Vectors of texts, from a cache where they are there already: what mining and evaluation embed with.

The cache is a folder of Parquet files (text key, vector), one folder a way of making vectors: the contract's
identity, the prompt, and what computes it. A text's key is a hash of its bytes, so that a text that is the same
in another corpus, place or run is not embedded again, and one that changed is. Files appear whole or not at all,
one a block: what a killed run had embedded is found by the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError
from raycurate.core.manifest import package_versions
from raycurate.core.observe import get_logger
from raycurate.core.staging import REJECT_REASON, ROW_KEY, StagingSink
from raycurate.embed.config import EmbedConfig

if TYPE_CHECKING:
    from raycurate.embed.plan import EmbedPlan
    from raycurate.search.shards import VectorShards

log = get_logger(__name__)

SHARD_ROWS = 65_536
_VECTOR = "embeddings"
_FILE_ROWS = 50_000  # texts of a file that waits to be embedded
_NAMED = 5  # texts named in an error


@dataclass(frozen=True)
class Texts:
    """Texts to embed in one role ("query" or "document").

    name: of the folder their vectors are laid out in. order: int64 [n], the text that each vector laid out is of;
    the texts' own order by default. prefix: literal text before each instead of the model's prompt for the role.
    """

    name: str
    texts: pa.ChunkedArray
    role: str
    order: np.ndarray | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class Embedded:
    """Vectors of `Texts`. keys: string array [n] in the vectors' order, equal where texts are. fresh: texts that the
    cache did not have."""

    vectors: VectorShards
    keys: pa.Array
    fresh: int


def text_keys(texts: pa.ChunkedArray) -> pa.Array:
    """32 hex digits of each text's sha256, a string array [n]."""
    digests = (hashlib.sha256(text.as_py().encode()).hexdigest()[:32] for chunk in texts.chunks for text in chunk)
    return pa.array(digests, pa.string(), size=len(texts))


def embed_texts(
    inputs: Sequence[Texts], model: str, options: dict[str, Any], *, cache: str, folder: str, unit: bool = True
) -> list[Embedded]:
    """Embed what the cache does not have, and lay out the vectors in `folder`; needs a running Ray.

    Args:
        model, options: as `raycurate embed` takes them.
        cache: folder or URI that is kept from run to run.
        folder: where the vectors are laid out for a search; written anew.
        unit: scale them to length one, so that inner products are cosines.

    Raises:
        ConfigError: options that embed does not have, or a multi-vector model.
        InputError: texts that have no vector (blank, too long, or the model gives NaN).
    """
    plans = [_plan(model, options, given) for given in inputs]
    keys = [text_keys(given.texts) for given in inputs]
    fresh = [0] * len(inputs)
    stores = [storage.join(cache, _store_name(plan)) for plan in plans]
    for store in dict.fromkeys(stores):
        # Roles with the same prompt (or none) share their vectors, and one stream of actors makes them.
        members = [i for i, name in enumerate(stores) if name == store]
        rows = _missing([keys[i] for i in members], store)
        for i, absent in zip(members, rows, strict=True):
            fresh[i] = len(absent)
        if sum(map(len, rows)):
            log.info("embedding %s texts that %s does not have", f"{sum(map(len, rows)):,}", store)
            waiting = storage.join(folder, "waiting")
            _put_down(waiting, [(keys[i], inputs[i].texts, absent) for i, absent in zip(members, rows, strict=True)])
            _stream(plans[members[0]], waiting, store)
            storage.delete(waiting)
    made = list[Embedded]()
    for given, key, store, count in zip(inputs, keys, stores, fresh, strict=True):
        ordered = key if given.order is None else key.take(pa.array(given.order))
        made.append(Embedded(_lay_out(given, ordered, store, storage.join(folder, given.name), unit), ordered, count))
    return made


def _plan(model: str, options: dict[str, Any], given: Texts) -> EmbedPlan:
    from raycurate.core.cluster import capacity
    from raycurate.embed.model import read_contract, weights_bytes
    from raycurate.embed.plan import make_plan

    values = {**options, "model": model, "role": given.role, "input": "(texts)", "output": "(cache)"}
    if given.prefix is not None:
        values["prefix"] = given.prefix
    config = EmbedConfig.parse(values, where=f"options of the encoder {model}")
    contract = read_contract(config)
    if contract.pooling == "multi_vector":
        raise ConfigError("a multi-vector model has no single vector to search by", where=model)
    plan = make_plan(config, contract, capacity(), weights_bytes(config))
    plan.check(capacity())
    return plan


def _store_name(plan: EmbedPlan) -> str:
    """What the vectors under one name have in common."""
    config, contract = plan.config, plan.contract
    identity = {
        name: value for name, value in contract.identity().items() if name not in ("prompts", "document_template")
    }
    prompt = config.prefix if config.prefix is not None else contract.prompt_for(config.role)
    made_by = [plan.engine, plan.device, config.dtype, config.engine_kwargs, config.output_dtype]
    return fingerprint([identity, prompt, made_by, package_versions("torch", "transformers", "vllm")])


def _missing(keys: list[pa.Array], store: str) -> list[np.ndarray]:
    """The rows of each input whose texts the store does not have, a text that is there several times once."""
    known = pa.concat_arrays([_index(store).keys, *keys])
    first = pc.index_in(known, value_set=known).to_numpy()  # where each key is for the first time
    fresh = np.flatnonzero(first == np.arange(len(known)))
    starts = np.cumsum([len(known) - sum(map(len, keys)), *map(len, keys)])
    return [fresh[(fresh >= lo) & (fresh < hi)] - lo for lo, hi in pairwise(starts)]


def _put_down(folder: str, given: list[tuple[pa.Array, pa.ChunkedArray, np.ndarray]]) -> None:
    """Write (key, text) of the given rows as files for the stream to read, a part of them in memory at a time."""
    storage.delete(folder)
    number = 0
    for keys, texts, rows in given:
        for at in range(0, len(rows), _FILE_ROWS):
            part = pa.array(rows[at : at + _FILE_ROWS])
            table = pa.table({"id": keys.take(part), "text": texts.take(part).cast(pa.large_string())})
            with storage.open_output(storage.join(folder, f"texts-{number:05d}.parquet")) as stream:
                pq.write_table(table, stream, compression="zstd", row_group_size=4096)
            number += 1


@dataclass(frozen=True)
class _Index:
    """What a store holds: keys [n], and the file and row each key's vector is at."""

    keys: pa.Array
    files: list[str]
    file_N: np.ndarray
    row_N: np.ndarray


def _index(store: str) -> _Index:
    from concurrent.futures import ThreadPoolExecutor

    listed = storage.list_files(store) if storage.exists(store) else []
    files = [entry.path for entry in listed if entry.path.endswith(".parquet")]

    def read(path: str) -> tuple[pa.Array, np.ndarray]:
        filesystem, inner = storage.filesystem(path)
        table = pq.read_table(inner, columns=["id", REJECT_REASON], filesystem=filesystem)
        rows = np.flatnonzero(table[REJECT_REASON].is_null().to_numpy())
        return table["id"].combine_chunks().take(rows), rows

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(read, files))
    counts = [len(rows) for _, rows in found]
    return _Index(
        pa.concat_arrays([keys.cast(pa.string()) for keys, _ in found]) if found else pa.array([], pa.string()),
        files,
        np.repeat(np.arange(len(files)), counts),
        np.concatenate([rows for _, rows in found]) if found else np.empty(0, np.int64),
    )


def _stream(plan: EmbedPlan, folder: str, store: str) -> None:
    """Embed the texts that were put down in `folder` into the store."""
    from raycurate.core.cluster import data_context, user_error
    from raycurate.data.documents import read_documents
    from raycurate.embed.transform import add_operators, fetch_on_every_node

    config = plan.config.model_copy(
        update={"input": folder, "id_field": "id", "block_bytes": plan.block_bytes, "metadata_fields": []}
    )
    plan = replace(plan, config=config)
    fetch_on_every_node(plan)
    dataset = add_operators(read_documents(config, num_cpus=plan.task_cpus), plan)
    data_context(dataset, block_bytes=2 * plan.block_bytes)
    storage.make_dir(store)
    columns = [ROW_KEY, "id", REJECT_REASON, "reject_detail", _VECTOR]
    sink = StagingSink(store, name="Vectors", columns=columns)
    try:
        dataset.write_datasink(sink, ray_remote_args={"num_cpus": plan.task_cpus})
    except Exception as error:
        found = user_error(error)
        raise found if found is not None else error from error


def _lay_out(given: Texts, keys: pa.Array, store: str, folder: str, unit: bool) -> VectorShards:
    """The vectors of these keys in files that a search reads, one task a file."""
    import ray

    from raycurate.core.cluster import remote_task
    from raycurate.search.shards import VectorShards

    index = _index(store)
    at = pc.index_in(keys, value_set=index.keys)
    if at.null_count:
        _refuse(given, at, keys, store)
    at_N = at.to_numpy()
    storage.delete(folder)
    storage.make_dir(folder)
    task = remote_task(_write_shard, name="LayOutVectors", num_cpus=0.5)
    calls, paths, rows = [], [], []
    for number, start in enumerate(range(0, len(at_N), SHARD_ROWS)):
        part_B = at_N[start : start + SHARD_ROWS]
        used, file_B = np.unique(index.file_N[part_B], return_inverse=True)
        paths.append(storage.join(folder, f"shard-{number:05d}.npy"))
        rows.append(len(part_B))
        calls.append(task.remote(paths[-1], [index.files[i] for i in used], file_B, index.row_N[part_B], unit))
    dimensions = ray.get(calls)
    return VectorShards(tuple(paths), tuple(rows), dimensions[0] if dimensions else 0)


def _write_shard(path: str, files: list[str], file_B: np.ndarray, row_B: np.ndarray, unit: bool) -> int:
    """Write one file of vectors, [rows, D] float32; returns D."""
    out_BD = np.empty((0, 0), np.float32)
    for number, name in enumerate(files):
        filesystem, inner = storage.filesystem(name)
        column = pq.read_table(inner, columns=[_VECTOR], filesystem=filesystem)[_VECTOR].combine_chunks()
        dimension = column.type.list_size
        if not len(out_BD):
            out_BD = np.empty((len(row_B), dimension), np.float32)
        here = file_B == number
        out_BD[here] = column.values.to_numpy().reshape(-1, dimension)[row_B[here] + column.offset]
    if unit:
        out_BD /= np.maximum(np.linalg.norm(out_BD, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    with storage.open_output(path) as stream:
        np.save(stream, out_BD)
    return int(out_BD.shape[1])


def _refuse(given: Texts, at: pa.Array, keys: pa.Array, store: str) -> None:
    """Say which texts have no vector, and why."""
    lacking = np.flatnonzero(at.is_null().to_numpy(zero_copy_only=False))
    order = np.arange(len(at)) if given.order is None else given.order
    reasons: dict[str, str] = {}
    for entry in storage.list_files(store):
        filesystem, inner = storage.filesystem(entry.path)
        columns = ["id", REJECT_REASON, "reject_detail"]
        table = pq.read_table(inner, columns=columns, filesystem=filesystem)
        rejected = table.filter(pc.is_in(table["id"], value_set=keys.take(lacking[:_NAMED])))
        reasons |= {row["id"]: row["reject_detail"] or row[REJECT_REASON] for row in rejected.to_pylist()}
    named = [
        f"{given.texts[int(order[row])].as_py()[:60]!r} ({reasons.get(keys[int(row)].as_py(), 'not embedded')})"
        for row in lacking[:_NAMED]
    ]
    raise InputError(
        f"{len(lacking):,} texts have no vector: {'; '.join(named)}",
        where=given.name,
        fix="Leave these texts out or mend them; dtype=float32 where the model gives NaN",
    )
