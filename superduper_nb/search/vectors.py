"""Vectors as MongoDB stores them, into arrays, without building a Python object for each number."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from bson.binary import VECTOR_SUBTYPE, Binary

from superduper_nb.documents.arrays import Array
from superduper_nb.documents.content import CONTENT
from superduper_nb.errors import InvalidInputError
from superduper_nb.search.measures import Floats

__all__ = ["stored_vector"]

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
