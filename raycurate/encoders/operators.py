"""The two operators of the embed stage: tokenise (CPU tasks) and encode (actor pool).

Both take and give Arrow tables, one block at a time, and keep every row: a row that cannot be embedded
keeps a `reject_reason` and a null vector. What a block cost travels with it in working columns (its first
row carries the seconds), so that the summary of a run adds up over attempts from the committed files.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.data.documents.ids import is_string_like
from raycurate.data.documents.rows import TEXT_CUT
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.streams.staging import MADE_AT, REJECT_REASON

if TYPE_CHECKING:
    import ray

TOKENS = "_tokens"
INPUT_TEXT = "_input_text"
NUM_TOKENS = "_num_tokens"
TRUNCATED = "_truncated"
SECONDS_READ = "_seconds_read"
SECONDS_TOKENISE = "_seconds_tokenise"
SECONDS_ENCODE = "_seconds_encode"
WORKING_SUMS = [NUM_TOKENS, TRUNCATED, TEXT_CUT, SECONDS_READ, SECONDS_TOKENISE, SECONDS_ENCODE]
REJECT_DETAIL = "reject_detail"
NON_FINITE = "non_finite_vector"

_tokenizers: dict[str, Any] = {}


def put(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """`table` with `column` under `name`, replacing one that is there."""
    at = table.schema.get_field_index(name)
    return table.append_column(name, column) if at < 0 else table.set_column(at, name, column)


def on_first_row(seconds: float, rows: int) -> pa.Array:
    values = np.zeros(rows, np.float32)
    values[:1] = seconds
    return pa.array(values)


class Tokenise:
    """Text -> model input, for one block.

    Token engines get `_tokens` (list<int32>, ragged, special tokens in, truncated to max_length); text
    engines get `_input_text` (the template applied; they put the prefix themselves). Rows without a text
    become rejects here, so that the operator can stand behind any data set, not only behind our reader.

    Args:
        tokenizer: what `serialised_tokenizer` gave, so that the tasks need not import transformers (seconds
            and hundreds of MiB in every worker process); None: each process loads its own.
    """

    def __init__(
        self,
        options: EmbedConfig,
        contract_json: str,
        *,
        accepts: str,
        text_field: str,
        title_field: str,
        keep_text: bool,
        tokenizer: ray.ObjectRef | None = None,
    ) -> None:
        self.options = options
        self.contract_json = contract_json
        self.accepts = accepts
        self.text_field = text_field
        self.title_field = title_field
        self.keep_text = keep_text
        self.tokenizer = tokenizer

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
        table = mark_over_long(ensure_reject_columns(table, self.text_field), self.text_field, self.options)
        good = table[REJECT_REASON].is_null().to_numpy()
        texts = self._inputs(table, good)
        rows = table.num_rows
        lengths, truncated = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        if self.accepts == "tokens":
            batch, cut = self._tokenizer()(texts)
            lengths[good], truncated[good] = batch.lengths, cut
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            tokens = pa.ListArray.from_arrays(offsets, pa.array(batch.ids, pa.int32()), mask=pa.array(~good))
            table = put(table, TOKENS, tokens)
        else:
            column = np.full(rows, None, object)
            column[good] = texts
            table = put(table, INPUT_TEXT, pa.array(column, pa.string()))
        if not self.keep_text:
            table = table.drop_columns([self.text_field])
        table = put(table, NUM_TOKENS, pa.array(lengths))
        table = put(table, TRUNCATED, pa.array(truncated))
        return put(table, SECONDS_TOKENISE, on_first_row(time.perf_counter() - started, rows))

    def _inputs(self, table: pa.Table, good: np.ndarray) -> list[str]:
        """What the model is to read, for the rows that are not rejects: the contract's template filled in."""
        from raycurate.models.contract import EmbeddingContract

        kept = table.filter(pa.array(good))
        texts = cast(list[str], kept[self.text_field].to_pylist())
        texts = [text[: self.options.max_chars] for text in texts]
        if self.title_field not in table.column_names or self.options.role == "query":
            return texts
        template = EmbeddingContract.from_json(self.contract_json).document_template
        titles = kept[self.title_field].cast(pa.string()).to_pylist()
        return [fill_template(template, title, text) for title, text in zip(titles, texts, strict=True)]

    def _tokenizer(self) -> Any:
        """One tokenizer a worker process; tasks of the same run find it ready."""
        from raycurate.core.config import fingerprint
        from raycurate.models.contract import EmbeddingContract
        from raycurate.models.tokenize import Tokenizer

        key = fingerprint([self.options.model_dump(mode="json"), self.contract_json])
        if key not in _tokenizers:
            import ray

            contract = EmbeddingContract.from_json(self.contract_json)
            serialised = ray.get(self.tokenizer) if self.tokenizer is not None else None
            _tokenizers.clear()
            _tokenizers[key] = Tokenizer(self.options, contract, serialised=serialised)
        return _tokenizers[key]


def fill_template(template: str, title: str | None, text: str) -> str:
    """The document template with title and text; without a title, the text alone."""
    if not title:
        return text
    return re.sub(r"\{(title|text)\}", lambda m: title if m.group(1) == "title" else text, template)


def require_text_field(text_field: str, kinds: Mapping[str, Any]) -> None:
    """Raises ConfigError when a table of columns of these types has no such column of text."""
    from raycurate.core.errors import ConfigError, nearest

    if text_field not in kinds:
        close = nearest(text_field, kinds)
        raise ConfigError(
            f"there is no column '{text_field}'; the columns are {', '.join(kinds)}",
            where="text_field",
            fix=f"Did you mean '{close}'?" if close else None,
        )
    kind = kinds[text_field]
    if isinstance(kind, pa.DataType) and not (is_string_like(kind) or pa.types.is_null(kind)):
        raise ConfigError(
            f"column '{text_field}' holds {kind}, not text", where="text_field", fix="Name a column of strings"
        )


def ensure_reject_columns(table: pa.Table, text_field: str) -> pa.Table:
    """`table` with `reject_reason` and `reject_detail`; null and blank texts, and what is no text, are marked where
    nobody has.

    Raises:
        ConfigError: there is no such column.
    """
    rows, columns = table.num_rows, dict(zip(table.schema.names, table.schema.types, strict=True))
    require_text_field(text_field, {text_field: None} if text_field in columns else columns)
    for name in (REJECT_REASON, REJECT_DETAIL):
        if name not in columns:
            table = table.append_column(name, pa.nulls(rows, pa.string()))
    kind = columns[text_field]
    if not (is_string_like(kind) or pa.types.is_null(kind)):
        table = put(table, text_field, pa.nulls(rows, pa.string()))
        table = put(table, REJECT_DETAIL, pa.array([f"column '{text_field}' holds {kind}, not text"] * rows))
        return put(table, REJECT_REASON, pc.coalesce(table[REJECT_REASON].cast(pa.string()), "wrong_type"))
    text = table[text_field].cast(pa.string())
    table = put(table, text_field, text)
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)
    reason = pc.if_else(pc.is_null(text), "null_text", pc.if_else(blank, "empty_text", pa.scalar(None, pa.string())))
    return put(table, REJECT_REASON, pc.coalesce(table[REJECT_REASON].cast(pa.string()), reason))


def mark_over_long(table: pa.Table, text_field: str, options: EmbedConfig) -> pa.Table:
    """`table` with the column `text_cut`, true where the model sees the beginning of a text only; or, with
    over_long=reject, such rows as rejects. Our own reader has done either already."""
    longer = pc.fill_null(pc.greater(pc.utf8_length(table[text_field]), options.max_chars), False)
    cut = longer
    if options.over_long == "reject":
        detail = f"more than {options.max_chars} characters"
        table = put(table, REJECT_DETAIL, pc.if_else(longer, detail, table[REJECT_DETAIL].cast(pa.string())))
        table = put(table, REJECT_REASON, pc.coalesce(table[REJECT_REASON], pc.if_else(longer, "too_long", None)))
        cut = pa.array(np.zeros(table.num_rows, bool))
    if TEXT_CUT in table.column_names:
        cut = pc.or_(cut, pc.fill_null(table[TEXT_CUT], False))
    return put(table, TEXT_CUT, cut)


class Encode:
    """Encoder actor: one block of model input -> the block with its vectors.

    Two calls may be in the actor at once: while one runs the model, the other prepares its input
    (`Encoder.prepare`), which keeps a GPU fed across block borders.
    """

    def __init__(
        self,
        options: EmbedConfig,
        contract_json: str,
        *,
        threads: int,
        embedding_field: str,
        output_dtype: str,
        driver_versions: dict[str, str],
    ) -> None:
        from raycurate.core.malloc import reuse_freed_memory
        from raycurate.core.observe import StageMetrics, setup_logging
        from raycurate.encoders.base import load_encoder
        from raycurate.models.contract import SCHEMA_KEY, EmbeddingContract
        from raycurate.ray_runtime.cluster import check_environment

        reuse_freed_memory()
        setup_logging(verbose=False)
        check_environment(driver_versions, where="encoder actor")
        self.encoder = load_encoder(options, threads=threads or None)
        EmbeddingContract.from_json(contract_json).require_same(
            self.encoder.contract, here="the driver's model", there="the encoder actor's model"
        )
        self.schema_metadata = {SCHEMA_KEY: self.encoder.contract.to_json().encode()}
        self.dimension = self.encoder.contract.dimension
        self.multi_vector = self.encoder.contract.pooling == "multi_vector"
        self.embedding_field = embedding_field
        self.dtype = np.dtype(output_dtype)
        self.metrics = StageMetrics(stage="embed", engine=options.engine)
        self.engine_lock = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        from raycurate.models.tokenize import TokenBatch

        rows = table.num_rows
        good = table[REJECT_REASON].is_null().to_numpy()
        column = TOKENS if TOKENS in table.column_names else INPUT_TEXT
        kept = table[column].filter(pa.array(good)).combine_chunks()
        prepared: Any = None
        if len(kept):
            batch = TokenBatch.from_arrow(kept) if column == TOKENS else kept.to_pylist()
            prepared = self.encoder.prepare(batch)
        with self.engine_lock:
            started = time.perf_counter()
            vectors = self.encoder.run(prepared) if len(kept) else []
            seconds = time.perf_counter() - started
            fill = getattr(self.encoder, "batch_fill", None) if len(kept) else None
        table = self._with_vectors(table.drop_columns([column]), good, vectors)
        self._count(table, seconds, fill)
        table = put(table, SECONDS_ENCODE, on_first_row(seconds, rows))
        table = put(table, MADE_AT, pa.array(np.full(rows, time.time())))
        return table.replace_schema_metadata({**(table.schema.metadata or {}), **self.schema_metadata})

    def _with_vectors(self, table: pa.Table, good: np.ndarray, vectors: Any) -> pa.Table:
        finite = np.array([bool(np.isfinite(v).all()) for v in vectors], bool)
        if self.multi_vector:
            column = multi_vector_column(good, finite, vectors, self.dimension, self.dtype)
        else:
            column = vector_column(good, finite, np.asarray(vectors), self.dimension, self.dtype)
        table = put(table, self.embedding_field, column)
        if not finite.all():
            broken = good.copy()
            broken[good] = ~finite
            mask = pa.array(broken)
            table = put(table, REJECT_REASON, pc.if_else(mask, NON_FINITE, table[REJECT_REASON]))
            detail = "the model gave NaN or infinity for this text; dtype=float32 may help"
            table = put(table, REJECT_DETAIL, pc.if_else(mask, detail, table[REJECT_DETAIL]))
        return table

    def _count(self, table: pa.Table, seconds: float, fill: float | None) -> None:
        tokens = pc.sum(table[NUM_TOKENS]).as_py() or 0
        rejects = {
            counted["values"]: counted["counts"]
            for counted in table[REJECT_REASON].drop_null().value_counts().to_pylist()
        }
        documents = table[REJECT_REASON].null_count
        self.metrics.record(
            documents=documents, tokens=tokens, rejects=rejects, encode_seconds=seconds, batch_fill=fill
        )


def _present(good: np.ndarray, finite: np.ndarray) -> np.ndarray:
    present = good.copy()
    present[good] = finite
    return present


def vector_column(
    good: np.ndarray, finite: np.ndarray, vectors: np.ndarray, dimension: int, dtype: np.dtype[Any]
) -> pa.FixedSizeListArray:
    """Vectors [n, dimension] of the good rows as a fixed-size list column, null where there is no vector."""
    present = _present(good, finite)
    values = np.zeros((len(good), dimension), dtype)
    if len(vectors):
        values[present] = vectors[finite]
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dimension, mask=pa.array(~present))


def multi_vector_column(
    good: np.ndarray, finite: np.ndarray, vectors: list[np.ndarray], dimension: int, dtype: np.dtype[Any]
) -> pa.ListArray:
    """A list of vectors [tokens, dimension] a row, null where there is none."""
    present = _present(good, finite)
    lengths = np.zeros(len(good), np.int32)
    kept = [v for v, ok in zip(vectors, finite, strict=True) if ok]
    lengths[present] = [len(v) for v in kept]
    flat = np.concatenate(kept).astype(dtype) if kept else np.zeros((0, dimension), dtype)
    inner = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), dimension)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, inner, mask=pa.array(~present))
