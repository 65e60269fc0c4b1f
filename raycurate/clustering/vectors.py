"""A column of vectors, however it is spelled, as unit vectors in a float32 matrix; what is none is named.

Vectors come as lists of a fixed or any length, with 32 or 64 bit offsets, of half, float, double, integers or decimals;
as Arrow's and Ray's tensor types (which `ray.data` makes of numpy batches), known to this process or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core.errors import InputError

NULL, NON_FINITE, ZERO, WRONG_DIMENSION = "null_vector", "non_finite_vector", "zero_vector", "wrong_dimension"
_TENSOR_FIELDS = ("data", "shape")  # of Ray's tensors of several shapes


@dataclass
class Vectors:
    """Unit vectors of a piece, and what was left out.

    rows_ND: float32, unit length. index_N: row of each in the piece. rejects: (row in the piece, reason).
    """

    rows_ND: np.ndarray
    index_N: np.ndarray
    rejects: list[tuple[int, str]] = field(default_factory=list)


def holds_vectors(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold vectors; one that is null throughout can."""
    kind = _stored(kind)
    if pa.types.is_null(kind):
        return True
    if not _is_list(kind):
        return False
    inner = kind.value_type
    return pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_decimal(inner) or inner == pa.null()


def fixed_dimension(kind: pa.DataType) -> int | None:
    """The dimension that the type itself says; None where each vector may have its own."""
    kind = _stored(kind)
    return kind.list_size if pa.types.is_fixed_size_list(kind) else None


def lengths_of(column: pa.Array) -> np.ndarray:
    """How many numbers each row has, int64 [n]; -1 for a null."""
    column = _as_lists(column)
    return pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)


def unit_vectors(column: pa.Array, dimension: int | None, *, where: str) -> Vectors:
    """A column of vectors as unit vectors [n, dimension]; `dimension` None: the commonest length there is.

    Raises:
        InputError: the column holds something else.
    """
    if not holds_vectors(column.type):
        raise InputError(f"the embedding column holds {column.type}, not vectors", where=where)
    column = _as_lists(column)
    lengths = lengths_of(column)
    if dimension is None:
        dimension = commonest(lengths) or 0
    reasons = np.full(len(column), "", object)
    reasons[(lengths != dimension) | (lengths == 0)] = WRONG_DIMENSION
    reasons[lengths < 0] = NULL
    index = np.flatnonzero(reasons == "")
    numbers = _numbers(column.take(pa.array(index)) if len(index) < len(column) else column)
    rows = numbers.reshape(len(index), dimension)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    finite, whole = np.isfinite(norms), norms > 0
    reasons[index[~finite]] = NON_FINITE
    reasons[index[finite & ~whole]] = ZERO
    good = finite & whole
    unit = rows[good] / norms[good, None].astype(rows.dtype)
    rejects = [(int(row), str(reasons[row])) for row in np.flatnonzero(reasons != "")]
    return Vectors(np.ascontiguousarray(unit, np.float32), index[good], rejects)


def commonest(lengths: np.ndarray) -> int | None:
    """The length that most rows have, of equals the first to come; None where no row has any number."""
    values, first, counts = np.unique(lengths[lengths > 0], return_index=True, return_counts=True)
    return int(values[np.lexsort((first, -counts))[0]]) if len(values) else None


def _numbers(column: pa.Array) -> np.ndarray:
    """All numbers of lists without nulls, one after the other: float32, or float64 where they are wider or integers.

    Rows whose squares would be infinite or nothing are scaled, for a unit vector is the same. A null number is NaN.
    """
    values = column.flatten()
    narrow = pa.types.is_float16(values.type) or pa.types.is_float32(values.type)
    flat = values.cast(pa.float32() if narrow else pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if narrow or not len(flat):
        return flat
    rows = flat.reshape(len(column), -1)
    with np.errstate(invalid="ignore"):
        peaks = np.abs(rows).max(1)
    extreme = np.isfinite(peaks) & (peaks > 0) & ((peaks > 1e140) | (peaks < 1e-140))
    if extreme.any():
        rows = rows.copy()
        rows[extreme] /= peaks[extreme, None]
    return rows.reshape(-1)


def _stored(kind: pa.DataType) -> pa.DataType:
    """The lists behind a tensor type."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_struct(kind) and {child.name for child in kind} == set(_TENSOR_FIELDS):
        return kind.field("data").type
    return kind


def _as_lists(column: pa.Array) -> pa.Array:
    """The same rows as lists of numbers, in a type that every function of Arrow knows."""
    while isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_struct(column.type):
        nulls, column = column.is_null(), pc.struct_field(column, "data")
        column = pc.if_else(nulls, pa.scalar(None, column.type), column)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.list_(pa.float32()))
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))  # Arrow's own cast gets them wrong
        column = pa.LargeListArray.from_arrays(offsets, column.flatten(), mask=column.is_null())
    return column


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_fixed_size_list(kind)
        or pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )
