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

__all__ = ["Block", "blocks_of", "ids_of", "stored_vector"]

Block = tuple[list[Any], Floats]
"""Identifiers, and vectors of shape (n, d)."""

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
_INTS: Final[dict[int, tuple[str, Callable[[int], Any] | None]]] = {0x10: ("<i4", None), 0x12: ("<i8", Int64)}
_OBJECT_ID: Final = 0x07
_STRING: Final = 0x02


def blocks_of(batch: bytes, path: str) -> tuple[list[Block], list[bytes]]:
    """Read documents that hold an identifier and a vector, many of one layout at a time.

    Parameters
    ----------
    batch : bytes
        BSON documents one behind the other, as a projection to `path` gives them.
    path : str
        Where in them the vector is.

    Returns
    -------
    blocks : list of (list, array of shape (n, d))
        Identifiers (ObjectIds, whole numbers or strings) as `superduper_nb.search.ids.packed_ids` keeps them, and
        vectors.
    rest : list of bytes
        The documents that are of no such layout.
    """
    blocks, rest = [], []
    for rows in _by_size(batch):
        block = _block(rows, path)
        if block is None:
            rest += [row.tobytes() for row in rows]
        else:
            blocks.append(block)
    return blocks, rest


def ids_of(batch: bytes) -> tuple[list[Any], list[bytes]]:
    """Read documents that hold nothing but an identifier.

    Returns
    -------
    ids : list
        Those that are ObjectIds, whole numbers or strings, as `superduper_nb.search.ids.packed_ids` keeps them.
    rest : list of bytes
        The other documents.
    """
    ids: list[Any] = []
    rest: list[bytes] = []
    for rows in _by_size(batch):
        kind, width = int(rows[0, 4]), _width(int(rows[0, 4]), rows[0])
        same = np.r_[0:_ID_AT, _ID_AT + width : rows.shape[1]]
        if width and len(same) == _ID_AT + 1 and (rows[:, same] == rows[0, same]).all():
            ids += _ids(kind, np.ascontiguousarray(rows[:, _ID_AT : _ID_AT + width]))
        else:
            rest += [row.tobytes() for row in rows]
    return ids, rest


def _by_size(batch: bytes) -> list[NDArray[np.uint8]]:
    """Return the documents of each size as the rows of an array."""
    data = np.frombuffer(batch, dtype=np.uint8)
    size = int.from_bytes(batch[:4], "little")
    if size and len(batch) % size == 0:
        rows = data.reshape(-1, size)
        if (rows[:, :4] == rows[0, :4]).all():  # where one ends the next begins, and is as long
            return [rows]
    starts: dict[int, list[int]] = {}
    start = 0
    while start < len(batch):
        size = int.from_bytes(batch[start : start + 4], "little")
        starts.setdefault(size, []).append(start)
        start += size
    return [data[np.add.outer(at, np.arange(size))] for size, at in starts.items()]


def _block(rows: NDArray[np.uint8], path: str) -> Block | None:
    """Read documents of one size; None unless all are of the one layout."""
    size, kind = rows.shape[1], int(rows[0, 4])
    width = _width(kind, rows[0])
    begin, tail = _ID_AT + width + len(_frame(path, 0)), path.count(".") + 1
    count, odd = divmod(size - begin - tail, 4)
    if not width or odd or count < 1:
        return None
    # All but the identifier and the numbers is the same everywhere.
    frame = np.r_[0:_ID_AT, _ID_AT + width : begin, size - tail : size]
    wanted = rows[0, :_ID_AT].tobytes() + _frame(path, count) + bytes(tail)
    if rows[0, frame].tobytes() != wanted or (rows[:, frame] != rows[0, frame]).any():
        return None
    vectors = np.ascontiguousarray(rows[:, begin : size - tail]).view("<f4")
    return _ids(kind, np.ascontiguousarray(rows[:, _ID_AT : _ID_AT + width])), vectors


def _width(kind: int, document: NDArray[np.uint8]) -> int:
    """Return how many bytes an identifier takes; 0 where it is of another kind."""
    if kind == _STRING:
        return 4 + int.from_bytes(document[_ID_AT : _ID_AT + 4].tobytes(), "little")
    return 12 if kind == _OBJECT_ID else np.dtype(_INTS[kind][0]).itemsize if kind in _INTS else 0


def _frame(path: str, count: int) -> bytes:
    """Return what is between an identifier and the numbers of a vector: the heads of the documents around it."""
    *outer, name = path.split(".")
    size = len(_HEADER) + 4 * count
    head = b"\x05" + name.encode() + b"\0" + size.to_bytes(4, "little") + bytes([VECTOR_SUBTYPE]) + _HEADER
    size = len(head) + 4 * count
    for name in reversed(outer):
        size += 5  # its own length, and the zero at its end
        head = b"\x03" + name.encode() + b"\0" + size.to_bytes(4, "little") + head
        size += len(name.encode()) + 2
    return head


def _ids(kind: int, column: NDArray[np.uint8]) -> list[Any]:
    if kind == _OBJECT_ID:
        return list(column.view("V12").ravel().tolist())
    if kind == _STRING:
        return [row.tobytes().decode() for row in column[:, 4:-1]]
    dtype, make = _INTS[kind]
    numbers: list[int] = column.view(dtype).ravel().tolist()
    return numbers if make is None else list(map(make, numbers))
