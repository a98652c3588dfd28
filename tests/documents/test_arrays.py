from typing import Any

import bson
import numpy as np
import pytest
import torch
from bson.binary import Binary, BinaryVectorDtype
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from superduper_nb.documents import Array, Codec, Failed, Tensor, Vector, builtin_types
from superduper_nb.errors import InvalidInputError

NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="=", sizes=(64, 128)),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
TENSOR_DTYPES = [
    *(
        torch.bool,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]


def same_bits(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def through_bson(value: Any) -> Any:
    codec = Codec(builtin_types())
    return codec.decode(bson.decode(bson.encode(codec.encode({"x": value}))))["x"]


@given(hnp.arrays(NUMBERS, SHAPES))
def test_arrays_come_back_bit_by_bit_and_writable(x: np.ndarray) -> None:
    back = through_bson(x)
    assert same_bits(back, x)
    assert back.flags.writeable


@pytest.mark.parametrize(
    "x",
    [
        np.arange(12).reshape(3, 4).T,
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24).reshape(2, 3, 4)[:, ::2, 1:],
        np.array(3.5),
        np.broadcast_to(np.float32(1), (2, 2)),
    ],
    ids=["transposed", "fortran", "strided", "scalar", "broadcast"],
)
def test_arrays_of_any_layout(x: np.ndarray) -> None:
    back = through_bson(x)
    np.testing.assert_array_equal(back, x)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)


def test_big_endian_numbers_keep_their_values() -> None:
    back = through_bson(np.arange(3, dtype=">i4"))
    np.testing.assert_array_equal(back, [0, 1, 2])
    assert back.dtype == np.int32


@pytest.mark.parametrize(
    "x",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.zeros(2, dtype=[("a", "i4")]),
        np.zeros(2, dtype=np.longdouble),
        np.ma.masked_array([1, 2], [True, False]),
    ],
    ids=lambda x: f"{type(x).__name__}-{x.dtype}",
)
def test_arrays_that_would_lose_something_are_refused(x: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=r"not stored|lose its mask"):
        Array().encode(x)


@given(st.data())
def test_tensors_come_back_bit_by_bit(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(TENSOR_DTYPES))
    shape = data.draw(SHAPES)
    count = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    raw = data.draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        raw = bytes(byte % 2 for byte in raw)
    x = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    back = through_bson(x)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    assert Tensor().encode(x).endswith(b"\n" + raw)
    assert Tensor().encode(back) == Tensor().encode(x)


def test_w11_tensors_need_no_preparation_and_come_back_writable() -> None:
    x = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4)).T
    back = through_bson(x)
    assert back.shape == (4, 3)
    torch.testing.assert_close(back, x.detach())
    assert not back.requires_grad
    back[0, 0] = 5
    assert back[0, 0] == 5
    assert x[0, 0] == 0


def test_conjugated_tensors_keep_their_values() -> None:
    x = torch.tensor([1 + 2j, 3 - 4j])
    torch.testing.assert_close(through_bson(x.conj()), torch.tensor([1 - 2j, 3 + 4j]))
    torch.testing.assert_close(through_bson(x.conj().imag), torch.tensor([-2.0, 4.0]))


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="to_dense"):
        Tensor().encode(torch.eye(2).to_sparse())


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_vectors_are_what_every_driver_reads(x: np.ndarray) -> None:
    stored = Codec(builtin_types()).encode(x)
    assert stored == Binary.from_vector(x.tolist(), BinaryVectorDtype.FLOAT32)
    assert stored.subtype == 9
    back = through_bson(x)
    assert same_bits(back, x)
    assert back.flags.writeable


def test_a_row_with_gaps_is_an_array_not_a_vector() -> None:
    x = np.array([1, np.nan], dtype=np.float32)
    assert Codec(builtin_types()).encode(x)["_content"]["type"] == "array"
    assert same_bits(through_bson(x), x)


@pytest.mark.parametrize(
    "x",
    [
        [1, 2.5],
        (1.0, 2.5),
        np.array([1, 2.5]),
        torch.tensor([1, 2.5], dtype=torch.bfloat16),
        np.array([1, 2.5], np.float16),
    ],
    ids=lambda x: type(x).__name__,
)
def test_any_row_of_numbers_is_encoded_as_a_vector(x: Any) -> None:
    codec = Codec(builtin_types())
    back = codec.decode(codec.encode_as("vector", x))
    np.testing.assert_array_equal(back, np.array([1, 2.5], dtype=np.float32))
    assert back.dtype == np.float32


def test_a_tensor_on_the_tape_is_encoded_as_a_vector() -> None:
    assert Vector().encode(torch.ones(2, requires_grad=True)) == Vector().encode([1, 1])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0, float("nan")], "finite"),
        ([float("inf")], "finite"),
        ([1e300], "finite"),
        ([[1.0, 2.0]], "one-dimensional"),
        (3.0, "one-dimensional"),
        ("text", "one-dimensional"),
        ([True], "real numbers"),
        ([1j], "real numbers"),
        ([None], "real numbers"),
        ([[1], [2, 3]], "not a row of numbers"),
    ],
)
def test_row_81_what_is_no_vector_is_refused(x: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Codec(builtin_types()).encode_as("vector", x)


@pytest.mark.parametrize("data", [b"", b"\x27", b"\x27\x00abc", b"\x03\x00ab", b"\x10\x04a"])
def test_bson_vectors_of_another_kind_are_left_to_the_driver(data: bytes) -> None:
    codec, value = Codec(builtin_types()), Binary(data, 9)
    assert codec.decode(value) is value
    with pytest.raises(InvalidInputError, match="not a BSON vector"):
        Vector().decode(data)


BAD = {
    "too short": b"nd1 float32 1\nabc",
    "too long": b"nd1 int8 1\nab",
    "object": b"nd1 object 1\n" + bytes(8),
    "dtype code": b"nd1 O 1\n" + bytes(8),
    "big-endian": b"nd1 >f4 1\n" + bytes(4),
    "negative": b"nd1 int8 -1\n",
    "overflow": b"nd1 int8 4294967296,4294967296\n",
    "huge overflow": b"nd1 int8 " + b",".join([b"9999999999999999999"] * 20) + b"\n",
    "endless header": b"nd1 int8 " + b"1," * 10_000,
    "later format": b"nd2 int8 1\na",
    "impossible side": b"nd1 int8 0,9999999999999999999\n",
    "no header": b"\x80\x04N.",
    "empty": b"",
    "too many dimensions": b"nd1 int8 " + b",".join([b"1"] * 100) + b"\na",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("type_id", ["array", "tensor"])
def test_row_80_bytes_that_do_not_fit_are_refused(type_id: str, data: bytes) -> None:
    codec = Codec(builtin_types())
    document = {"good": 1, "bad": {"_content": {"type": type_id, "bytes": data}}}
    with pytest.raises(InvalidInputError):
        builtin_types()[type_id].decode(data)
    with pytest.raises(InvalidInputError):
        codec.decode(document, strict=True)
    read = codec.decode(document)
    assert read["good"] == 1
    assert isinstance(read["bad"], Failed)
    assert codec.encode(read) == document


@given(st.binary(max_size=64).map(lambda tail: b"nd1 int16 " + tail))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    try:
        x = Array().decode(data)
    except InvalidInputError:
        return
    assert Array().decode(Array().encode(x)).tobytes() == x.tobytes()


@pytest.mark.parametrize(
    ("type_id", "stored", "expected"),
    [
        ("array", "6e643120666c6f6174363420322c310a000000000000f03f0000000000000040", np.array([[1.0], [2.0]])),
        ("array", "6e643120696e743136200a0700", np.array(7, np.int16)),
        ("tensor", "6e64312062666c6f6174313620320a803f0040", torch.tensor([1, 2], dtype=torch.bfloat16)),
    ],
)
def test_row_84_bytes_of_earlier_versions_are_read(type_id: str, stored: str, expected: Any) -> None:
    x = builtin_types()[type_id].decode(bytes.fromhex(stored))
    assert (x.dtype, x.shape, x.tolist()) == (expected.dtype, expected.shape, expected.tolist())
    assert builtin_types()[type_id].encode(expected).hex() == stored
