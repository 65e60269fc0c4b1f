"""Vectors of texts, from a cache where they are there already: what mining and evaluation embed with.

The cache is a folder of Parquet files (text key, vector), one folder a way of making vectors: the contract's
identity, the prompt, and what computes it. A text's key is a hash of its bytes, so that a text that is the same
in another corpus, place or run is not embedded again, and one that changed is. Files appear whole or not at all,
one a block: what a killed run had embedded is found by the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError
from raycurate.core.hashing import hex_digest
from raycurate.core.manifest import package_versions
from raycurate.core.observe import get_logger
from raycurate.encoders.declared import for_role
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.streams.staging import REJECT_REASON, ROW_KEY, StagingSink

if TYPE_CHECKING:
    from raycurate.encoders.plan import EmbedPlan
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
    the texts' own order by default.
    """

    name: str
    texts: pa.ChunkedArray
    role: str
    order: np.ndarray | None = None


@dataclass(frozen=True)
class Embedded:
    """Vectors of `Texts`. keys: string array [n] in the vectors' order, equal where texts are. fresh: texts that the
    cache did not have."""

    vectors: VectorShards
    keys: pa.Array
    fresh: int


def text_keys(texts: pa.ChunkedArray) -> pa.Array:
    """32 hex digits of each text's sha256, a string array [n]."""
    digests = (hex_digest(text.as_py(), 32) for chunk in texts.chunks for text in chunk)
    return pa.array(digests, pa.string(), size=len(texts))


def embed_texts(
    inputs: Sequence[Texts],
    model: str,
    options: dict[str, Any],
    *,
    cache: str,
    folder: str,
    unit: bool | None = True,
    dimensions: int | None = None,
) -> list[Embedded]:
    """Embed what the cache does not have, and lay out the vectors in `folder`; needs a running Ray.

    Args:
        model, options: as `raycurate embed` takes them, and what differs by role (encoders/declared.py).
        cache: folder or URI that is kept from run to run.
        folder: where the vectors are laid out for a search; written anew.
        unit: scale them to length one, so that inner products are cosines; None: where the model compares by cosine.
        dimensions: lay out the first so many only (search/shards.py, `truncated`); the cache keeps all.

    Raises:
        ConfigError: options that embed does not have, a multi-vector model, or one with fewer dimensions.
        InputError: texts that have no vector (blank, too long, or the model gives NaN).
    """
    from raycurate.search.shards import check_dimensions

    plans = [plan_for(given, model, options) for given in inputs]
    for plan in plans:
        if plan.contract.pooling == "multi_vector":
            raise ConfigError("a multi-vector model has no single vector to search by", where=model)
        if dimensions is not None:
            check_dimensions(dimensions, plan.contract.dimension)
    made = list[Embedded]()
    filled_inputs = fill_cache(inputs, plans, cache=cache, folder=folder)
    for given, plan, filled in zip(inputs, plans, filled_inputs, strict=True):
        scaled = plan.contract.by_cosine if unit is None else unit
        vectors = _lay_out(given, filled, storage.join(folder, given.name), scaled, dimensions)
        made.append(Embedded(vectors, filled.keys, filled.fresh))
    return made


@dataclass(frozen=True)
class Filled:
    """Texts whose vectors the cache has. keys: as of `Embedded`. store: the folder their vectors are in."""

    keys: pa.Array
    store: str
    fresh: int


def fill_cache(inputs: Sequence[Texts], plans: Sequence[EmbedPlan], *, cache: str, folder: str) -> list[Filled]:
    """Embed what the cache does not have; texts wait in `folder` for that. A text without a vector is not an error
    yet: see `find`."""
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
    return [
        Filled(key if given.order is None else key.take(pa.array(given.order)), store, count)
        for given, key, store, count in zip(inputs, keys, stores, fresh, strict=True)
    ]


def plan_for(given: Texts, model: str, options: dict[str, Any]) -> EmbedPlan:
    """How these texts are embedded.

    Raises:
        ConfigError, ContractError, CapacityError: options, or a model, that cannot be used.
    """
    from raycurate.encoders.inspect import read_contract, settle_dtype, weights_bytes
    from raycurate.encoders.plan import make_plan
    from raycurate.ray_runtime.cluster import capacity

    config = config_for(model, options, given.role)
    plan = make_plan(config, read_contract(config), capacity(), weights_bytes(config))
    plan.check(capacity())
    return settle_dtype(plan)


def config_for(model: str, options: dict[str, Any], role: str) -> EmbedConfig:
    """How `raycurate embed` would embed texts in one role.

    Raises:
        ConfigError: options that it does not have.
    """
    values = {**for_role(options, role), "role": role, "model": model, "input": "(texts)", "output": "(cache)"}
    return EmbedConfig.parse(values, where=f"options of the encoder {model}")


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
    from raycurate.data.documents.counting import count_documents
    from raycurate.data.documents.documents import list_documents, read_documents
    from raycurate.encoders.transform import add_operators, fetch_on_every_node
    from raycurate.ray_runtime.cluster import data_context
    from raycurate.streams.watch import write_staged

    config = plan.config.model_copy(
        update={"input": folder, "id_field": "id", "block_bytes": plan.block_bytes, "metadata_fields": []}
    )
    plan = replace(plan, config=config)
    fetch_on_every_node(plan)
    dataset = add_operators(read_documents(config, num_cpus=plan.task_cpus), plan)
    data_context(dataset, block_bytes=2 * plan.block_bytes)
    columns = [ROW_KEY, "id", REJECT_REASON, "reject_detail", _VECTOR]
    sink = StagingSink(store, name="Vectors", columns=columns)
    total = count_documents(list_documents(config))
    write_staged(dataset, sink, label="embed", unit="text", num_cpus=plan.task_cpus, total=total, resumes=False)


@dataclass(frozen=True)
class Places:
    """Where in a store the vectors of some texts are: text i's is row row_N[i] of files[file_N[i]]."""

    files: list[str]
    file_N: np.ndarray
    row_N: np.ndarray

    def part(self, start: int, stop: int) -> Places:
        """Those of texts start .. stop, with the files that they are in."""
        used, file_B = np.unique(self.file_N[start:stop], return_inverse=True)
        return Places([self.files[i] for i in used], file_B, self.row_N[start:stop])


def find(given: Texts, filled: Filled) -> Places:
    """Where the vectors of texts are, in their order.

    Raises:
        InputError: texts that have none, with their names and why.
    """
    index = _index(filled.store)
    at = pc.index_in(filled.keys, value_set=index.keys)
    if at.null_count:
        _refuse(given, at, filled)
    at_N = at.to_numpy()
    return Places(index.files, index.file_N[at_N], index.row_N[at_N])


def _lay_out(given: Texts, filled: Filled, folder: str, unit: bool, dimensions: int | None) -> VectorShards:
    """The vectors of these texts in files that a search reads, one task a file."""
    import ray

    from raycurate.ray_runtime.cluster import remote_task
    from raycurate.search.shards import VectorShards

    found = find(given, filled)
    storage.delete(folder)
    storage.make_dir(folder)
    task = remote_task(_write_shard, name="LayOutVectors", num_cpus=0.5)
    calls, paths, rows = [], [], []
    for number, start in enumerate(range(0, len(found.row_N), SHARD_ROWS)):
        part = found.part(start, start + SHARD_ROWS)
        paths.append(storage.join(folder, f"shard-{number:05d}.npy"))
        rows.append(len(part.row_N))
        calls.append(task.remote(paths[-1], part, dimensions, unit))
    laid_out = ray.get(calls)
    return VectorShards(tuple(paths), tuple(rows), laid_out[0] if laid_out else 0)


def _write_shard(path: str, places: Places, dimensions: int | None, unit: bool) -> int:
    """Write one file of vectors, [rows, D] float32; returns D."""
    from raycurate.search.shards import to_unit

    out_BD = np.empty((0, 0), np.float32)
    for number, name in enumerate(places.files):
        column = read_vectors(name)
        width = column.type.list_size
        if not len(out_BD):
            out_BD = np.empty((len(places.row_N), dimensions or width), np.float32)
        here = places.file_N == number
        vectors_ND = column.values.to_numpy().reshape(-1, width)
        out_BD[here] = vectors_ND[places.row_N[here] + column.offset, : out_BD.shape[1]]
    if unit:
        to_unit(out_BD)
    with storage.open_output(path) as stream:
        np.save(stream, out_BD)
    return int(out_BD.shape[1])


def read_vectors(path: str) -> pa.Array:
    """The column of vectors in a file of a store."""
    filesystem, inner = storage.filesystem(path)
    return pq.read_table(inner, columns=[_VECTOR], filesystem=filesystem)[_VECTOR].combine_chunks()


def _refuse(given: Texts, at: pa.Array, filled: Filled) -> NoReturn:
    """Say which texts have no vector, and why."""
    lacking = np.flatnonzero(at.is_null().to_numpy(zero_copy_only=False))
    order = np.arange(len(at)) if given.order is None else given.order
    reasons: dict[str, str] = {}
    for entry in storage.list_files(filled.store):
        filesystem, inner = storage.filesystem(entry.path)
        columns = ["id", REJECT_REASON, "reject_detail"]
        table = pq.read_table(inner, columns=columns, filesystem=filesystem)
        rejected = table.filter(pc.is_in(table["id"], value_set=filled.keys.take(lacking[:_NAMED])))
        reasons |= {row["id"]: row["reject_detail"] or row[REJECT_REASON] for row in rejected.to_pylist()}
    named = [
        f"{given.texts[int(order[row])].as_py()[:60]!r} ({reasons.get(filled.keys[int(row)].as_py(), 'not embedded')})"
        for row in lacking[:_NAMED]
    ]
    raise InputError(
        f"{len(lacking):,} texts have no vector: {'; '.join(named)}",
        where=given.name,
        fix="Leave these texts out or mend them; dtype=float32 where the model gives NaN",
    )
