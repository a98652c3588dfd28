r"""Numbers in bulk: vectors for search, numpy arrays, torch tensors.

Arrays and tensors are bytes that describe themselves, readable by any language::

    nd1 float32 3,4\n         format 1, data type, shape (empty for a scalar)
    …                        the numbers: C order, little-endian, nothing after them

A vector (one-dimensional float32) is MongoDB's own BSON vector, binary subtype 9: a byte for the data type, a byte of
padding, the numbers.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from superduper_nb.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

__all__ = ["Array", "Tensor", "Vector"]

_VECTOR_HEADER: Final = b"\x27\x00"  # float32, no padding bits
_LITTLE_FLOAT32: Final = np.dtype("<f4")

_MAX_HEADER: Final = 512
_HEADER: Final = re.compile(rb"nd1 ([a-z]+[0-9]*) ((?:[0-9]{1,19}(?:,[0-9]{1,19})*)?)")
_ARRAY_DTYPES: Final = frozenset(
    {"bool", "complex64", "complex128"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    | {f"float{bits}" for bits in (16, 32, 64)}
)
_TENSOR_DTYPES: Final = _ARRAY_DTYPES | {"bfloat16"}


class Vector:
    """Vectors for search: one-dimensional, float32, every number finite.

    Encodes numpy arrays, torch tensors and lists of numbers; decodes to a writable numpy array.
    """

    @staticmethod
    def fits(x: NDArray[Any]) -> bool:
        """Say whether an array is a vector as it stands, so that storing it as one loses nothing."""
        return x.ndim == 1 and x.dtype == np.float32 and type(x) is np.ndarray and bool(np.isfinite(x).all())

    def encode(self, x: Any) -> bytes:
        """Return the bytes of a BSON vector."""
        given = _as_numpy(x)
        if given.ndim != 1 or given.dtype.kind not in "fiu":
            raise InvalidInputError(
                f"A vector is a one-dimensional row of real numbers; this has shape {given.shape}, dtype {given.dtype}."
            )
        row = given if given.dtype == _LITTLE_FLOAT32 else _to_float32(given)
        if not np.isfinite(row).all():
            raise InvalidInputError(
                "A vector must be finite: this one holds NaN, infinity or numbers too large for float32."
            )
        return _VECTOR_HEADER + row.tobytes()

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """Return the vector that a BSON vector of float32 holds."""
        if data[:2] != _VECTOR_HEADER or len(data) % 4 != 2:
            raise InvalidInputError(f"These {len(data)} bytes are not a BSON vector of float32.")
        return np.frombuffer(data, _LITTLE_FLOAT32, offset=2).astype(np.float32)


class Array:
    """Numpy arrays of numbers or booleans: dtype and shape are kept; decoded arrays are writable."""

    types = (np.ndarray,)

    def encode(self, x: NDArray[Any]) -> bytes:
        """Return the array as bytes."""
        if isinstance(x, np.ma.MaskedArray):
            raise InvalidInputError("A masked array would lose its mask: store .filled(…), or .data and .mask.")
        return _pack(x.dtype.name, x.shape, x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes(), _ARRAY_DTYPES)

    def decode(self, data: bytes) -> NDArray[Any]:
        """Return the array that the bytes hold."""
        name, shape, body = _unpack(data, _ARRAY_DTYPES)
        return _numbers(body, name, shape)


class Tensor:
    """Torch tensors: dtype (bfloat16 too) and shape are kept. Decoded: writable, on the CPU, no gradient."""

    types = ("torch.Tensor",)

    def encode(self, x: torch.Tensor) -> bytes:
        """Return the tensor as bytes."""
        import torch

        if x.layout is not torch.strided or x.is_quantized:
            raise InvalidInputError(
                "Sparse and quantised tensors are not stored as they are: use .to_dense() or .dequantize()."
            )
        flat = x.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        name = str(x.dtype).removeprefix("torch.")
        body = flat.view(torch.uint8).numpy().tobytes() if x.numel() else b""  # an empty one may lack a stride of 1
        return _pack(name, tuple(x.shape), body, _TENSOR_DTYPES)

    def decode(self, data: bytes) -> torch.Tensor:
        """Return the tensor that the bytes hold."""
        import torch

        name, shape, body = _unpack(data, _TENSOR_DTYPES)
        if name == "bfloat16":  # numpy has none: the same bits as another type of two bytes
            return torch.from_numpy(_numbers(body, "int16", shape)).view(torch.bfloat16)
        return torch.from_numpy(_numbers(body, name, shape))


def _as_numpy(x: Any) -> NDArray[Any]:
    """Return anything that holds a row of numbers as an array."""
    if isinstance(x, np.ndarray):
        return x
    if callable(getattr(x, "detach", None)):  # a tensor, without importing torch
        try:
            return np.asarray(x.numpy(force=True))
        except TypeError:  # bfloat16, which numpy has not
            return np.asarray(x.float().numpy(force=True))
    try:
        return np.asarray(x)
    except ValueError as error:
        raise InvalidInputError(f"This {type(x).__name__} is not a row of numbers: {error}") from None


def _to_float32(row: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large a number becomes infinite, which is refused by name
        return row.astype(_LITTLE_FLOAT32, copy=False)


def _pack(dtype: str, shape: tuple[int, ...], body: bytes, allowed: frozenset[str]) -> bytes:
    if dtype not in allowed:
        raise InvalidInputError(f"Numbers of dtype {dtype} are not stored. Allowed: {', '.join(sorted(allowed))}.")
    return f"nd1 {dtype} {','.join(map(str, shape))}\n".encode() + body


def _unpack(data: bytes, allowed: frozenset[str]) -> tuple[str, tuple[int, ...], memoryview]:
    """Split bytes into dtype, shape and numbers, believing nothing that the header says."""
    end = data.find(b"\n", 0, _MAX_HEADER)
    header = _HEADER.fullmatch(data[:end]) if end >= 0 else None
    if header is None:
        raise InvalidInputError("These bytes are not an array: they lack a header such as 'nd1 float32 3,4'.")
    name, shape = header[1].decode(), tuple(int(n) for n in header[2].split(b",") if n)
    if name not in allowed:
        raise InvalidInputError(f"Numbers of dtype {name} are not read. Allowed: {', '.join(sorted(allowed))}.")
    body = memoryview(data)[end + 1 :]
    size = 2 if name == "bfloat16" else np.dtype(name).itemsize
    if len(body) != (wanted := math.prod(shape) * size):
        raise InvalidInputError(f"{name} of shape {shape} takes {wanted} bytes; these are {len(body)}.")
    return name, shape, body


def _numbers(body: memoryview, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a writable copy in this machine's byte order."""
    native = np.dtype(name)
    try:
        return np.frombuffer(body, native.newbyteorder("<")).reshape(shape).astype(native)
    except (ValueError, OverflowError) as error:  # sides beyond numpy's limits beside a side of 0; too many sides
        raise InvalidInputError(f"No array has the shape {shape}: {error}") from None
