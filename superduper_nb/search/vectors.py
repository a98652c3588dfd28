"""Vectors as MongoDB stores them, into arrays, without building a Python object for each number."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from bson import Int64
from bson.binary import VECTOR_SUBTYPE, Binary
from numpy.typing import NDArray

from superduper_nb.documents.arrays import Array
from superduper_nb.documents.content import CONTENT
from superduper_nb.errors import InvalidInputError
from superduper_nb.search.measures import Floats

__all__ = ["block_of", "stored_vector"]

_HEADER: Final = b"\x27\x00"
"""Of a BSON binary vector: float32, no padding."""
_FLAT_KINDS: Final = "fiu"


def stored_vector(value: Any) -> Floats | None:
    """Return a model's output as a float32 vector; None where it is none, or not finite.

    Vectors are BSON binary vectors (also those of int8), lists of numbers, or arrays and tensors of one dimension.
    """
    vector = _read(value)
    if vector is None or vector.ndim != 1 or not len(vector) or vector.dtype.kind not in _FLAT_KINDS:
        return None
    with np.errstate(over="ignore"):
        row = np.asarray(vector, dtype=np.float32)
    return row if np.isfinite(row).all() else None


def _read(value: Any) -> Any:
    if isinstance(value, Binary) and value.subtype == VECTOR_SUBTYPE:
        if value[:2] == _HEADER and len(value) % 4 == 2:
            return np.frombuffer(value, dtype="<f4", offset=2)
        with contextlib.suppress(ValueError, NotImplementedError, struct.error):
            return np.asarray(value.as_vector().data)
    elif isinstance(value, list):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return np.asarray(value)
    elif isinstance(value, Mapping) and isinstance(content := value.get(CONTENT), Mapping):
        return _array(content)
    return None


def _array(content: Mapping[str, Any]) -> Any:
    data = content.get("bytes")
    if content.get("type") not in ("array", "tensor") or not isinstance(data, bytes):
        return None
    if data.startswith(b"nd1 bfloat16 "):
        return _bfloat16(data)
    with contextlib.suppress(InvalidInputError):
        return Array().decode(data)
    return None


def _bfloat16(data: bytes) -> Any:
    # numpy has no such type: they are the upper halves of float32.
    header, _, body = data.partition(b"\n")
    if b"," in header or len(body) % 2:
        return None
    return (np.frombuffer(body, dtype="<u2").astype("<u4") << 16).view("<f4")


_ID_AT: Final = 9
"""Where the value of ``_id`` begins: behind the length of the document, the type and the name of the field."""
_BEFORE: Final = 10
"""Bytes between ``_id`` and the numbers: type, name ``v``, length, subtype, header."""
_INTS: Final[dict[int, tuple[str, Callable[[int], Any]]]] = {0x10: ("<i4", int), 0x12: ("<i8", Int64)}
_OBJECT_ID: Final = 0x07


def block_of(batch: bytes) -> tuple[list[Any], Floats] | None:
    """Read a raw batch of documents ``{_id, v: vector}`` at once, where they are all of one layout; else return None.

    Parameters
    ----------
    batch : bytes
        BSON documents one behind the other.

    Returns
    -------
    tuple of list and array of shape (n, d)
        The identifiers (ObjectIds or whole numbers) as `superduper_nb.search.ids.packed_ids` keeps them, and the
        vectors.
    """
    size = int.from_bytes(batch[:4], "little")
    if size < _ID_AT + _BEFORE or len(batch) % size:
        return None
    rows = np.frombuffer(batch, dtype=np.uint8).reshape(-1, size)
    kind = batch[4]
    width = 12 if kind == _OBJECT_ID else np.dtype(_INTS[kind][0]).itemsize if kind in _INTS else 0
    begin = _ID_AT + width + _BEFORE
    count, odd = divmod(size - 1 - begin, 4)
    head = b"\x05v\0" + (4 * count + 2).to_bytes(4, "little") + bytes([VECTOR_SUBTYPE]) + _HEADER
    if not width or odd or count < 1 or batch[begin - _BEFORE : begin] != head:
        return None
    frame = np.r_[0:_ID_AT, begin - _BEFORE : begin]
    if (rows[:, frame] != rows[0, frame]).any():
        return None
    vectors = np.ascontiguousarray(rows[:, begin : size - 1]).view("<f4")
    return _ids(kind, np.ascontiguousarray(rows[:, _ID_AT : _ID_AT + width])), vectors


def _ids(kind: int, column: NDArray[np.uint8]) -> list[Any]:
    if kind == _OBJECT_ID:
        return list(column.view("V12").ravel().tolist())
    dtype, make = _INTS[kind]
    return list(map(make, column.view(dtype).ravel().tolist()))
