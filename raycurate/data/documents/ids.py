"""One spelling of ids, whatever type a file keeps them in: what every reader of ids calls.

An id that is the integer 7 in one file, the float 7.0 in a second (pandas makes it that beside a null) and the string
"7" in a third is the same id. Where all files agree on integers, outputs keep integers (`common_id_type`).

    strings      as they are                          integers, decimals   digits, never an exponent: 42, 0.5
    floats       whole ones as integers: 1.0 is 1     bool                 true, false
    bytes        their text where they are printable  16 bytes, fixed      as a UUID
                 UTF-8, else hex                       dates, times         ISO 8601, in UTC where there is a zone

Null, "", NaN and infinities are no ids.
"""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_UUID_BYTES = 16
Column = TypeVar("Column", pa.Array, pa.ChunkedArray)


def id_text(value: Any) -> str | None:
    """An id as text; None for what is no id (see the module), a list or an object."""
    if isinstance(value, np.generic) and not isinstance(value, np.floating):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | uuid.UUID):
        return str(value)
    if isinstance(value, str):
        return _encodable(value) or None
    if isinstance(value, float | np.floating):
        return _float_text(value)
    if isinstance(value, Decimal):
        return _without_zeros(format(value, "f")) if value.is_finite() else None
    if isinstance(value, bytes):
        return _bytes_text(value)
    if isinstance(value, datetime.datetime):
        zone = "" if value.tzinfo is None else "Z"
        value = value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
        nanoseconds = value.microsecond * 1000 + getattr(value, "nanosecond", 0)  # pandas has those
        fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
        return value.strftime("%Y-%m-%dT%H:%M:%S").zfill(19) + fraction + zone
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, datetime.time):
        return _without_zeros(value.isoformat()) if value.microsecond else value.isoformat()
    return None


def _float_text(value: Any) -> str | None:
    if not math.isfinite(value):
        return None
    return str(int(value)) if float(value).is_integer() else _plain_digits(str(value))


def _plain_digits(text: str) -> str:
    """The shortest digits of a number, written without an exponent."""
    return format(Decimal(text), "f") if "e" in text else text


def _without_zeros(digits: str) -> str:
    """Digits without the zeros that end a fraction: 2.50 is 2.5, 42.00 is 42."""
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def _bytes_text(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value.hex()
    return (text if text.isprintable() else value.hex()) or None


def _encodable(text: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can smuggle in and UTF-8 cannot carry
        return text.encode("utf-8", "replace").decode()


# --- columns ------------------------------------------------------------------------------------


def is_string_like(kind: pa.DataType) -> bool:
    """True for string, large_string, string_view and dictionaries of them."""
    kind = _stored(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_id_type(kind: pa.DataType) -> bool:
    """True for what can be an id: anything with one value a row but durations and intervals, and null."""
    kind = _stored(kind)
    return (
        is_string_like(kind)
        or _is_bytes(kind)
        or pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_date(kind)
        or pa.types.is_time(kind)
        or pa.types.is_timestamp(kind)
    )


def common_id_type(kinds: Iterable[pa.DataType]) -> pa.DataType:
    """The type that ids of these types come out as together: int64, uint64 (where all are unsigned), else string."""
    stored = {_stored(kind) for kind in kinds if not pa.types.is_null(kind)}
    if not stored or not all(pa.types.is_integer(kind) for kind in stored):
        return pa.string()
    if pa.uint64() not in stored:
        return pa.int64()
    return pa.uint64() if all(pa.types.is_unsigned_integer(kind) for kind in stored) else pa.string()


def id_strings(column: Column) -> Column:
    """A column of ids as strings, null where there is no id; each value as `id_text` spells it.

    Raises:
        TypeError: of a type that `is_id_type` refuses.
    """
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([id_strings(chunk) for chunk in column.chunks], pa.string())
    if not is_id_type(column.type):
        raise TypeError(f"{column.type} cannot be an id")
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        return id_strings(column.dictionary_decode())
    strings = _spelled(column)
    return pc.if_else(pc.equal(strings, ""), pa.scalar(None, pa.string()), strings)


def _spelled(column: pa.Array) -> pa.StringArray:
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if is_string_like(kind) or (_is_bytes(kind) and not _is_uuid(kind)):
        return _text_or_hex(column)
    if _is_uuid(kind):
        return pa.array([None if v is None else str(uuid.UUID(bytes=v)) for v in column.to_pylist()], pa.string())
    if pa.types.is_timestamp(kind):
        return _iso(column, kind)
    if pa.types.is_time(kind):
        return _trimmed(column.cast(pa.string()))
    if pa.types.is_decimal(kind):
        return pa.array([id_text(value) for value in column.to_pylist()], pa.string())
    return _floats(column)


def _floats(column: pa.Array) -> pa.StringArray:
    values = column.to_numpy(zero_copy_only=False)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    whole = np.isfinite(values) & (np.abs(values.astype(np.float64)) < 2.0**63)
    whole[whole] = values[whole] == np.trunc(values[whole])
    if (whole | ~present).all():
        integers = np.where(whole, values, 0).astype(np.int64)
        return pa.array(integers, mask=~whole).cast(pa.string())
    return pa.array([_float_text(v) if p else None for v, p in zip(values, present, strict=True)], pa.string())


def _text_or_hex(column: pa.Array) -> pa.StringArray:
    if is_string_like(column.type):
        strings = column.cast(pa.string())
        try:
            strings.validate(full=True)
            return strings
        except pa.ArrowInvalid:
            raw = strings.cast(pa.binary())
    else:
        raw = column.cast(pa.binary())
    return pa.array([None if value is None else _bytes_text(value) for value in raw.to_pylist()], pa.string())


def _iso(column: pa.Array, kind: pa.TimestampType) -> pa.StringArray:
    """Times of any unit and zone alike: 2024-01-02T10:00:00.5, with a Z where the column has a zone."""
    strings = _trimmed(column.cast(pa.timestamp(kind.unit)).cast(pa.string()))  # without a zone it is said in UTC
    strings = pc.replace_substring(strings, " ", "T", max_replacements=1)
    return pc.binary_join_element_wise(strings, "Z", "") if kind.tz is not None else strings


def _trimmed(times: pa.StringArray) -> pa.StringArray:
    """Without the zeros that end a fraction of a second."""
    times = pc.replace_substring_regex(times, r"\.0+$", "")
    return pc.replace_substring_regex(times, r"(\.\d*[1-9])0+$", r"\1")


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type of the values: of a dictionary's entries, of what an extension type stores."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_uuid(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_binary(kind) and kind.byte_width == _UUID_BYTES
