import datetime
import decimal
import enum
import re
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import bson
import numpy as np
import pytest
import torch
from bson import raw_bson
from bson.codec_options import CodecOptions
from bson.son import SON
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from superduper_nb.documents import AudioClip, Codec, EncodeError, Failed, builtin_types
from superduper_nb.documents.plain import WRITE_LEAVES, has_nothing_to_decode
from superduper_nb.errors import InvalidInputError

OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    uuid_representation=bson.binary.UuidRepresentation.STANDARD,
    datetime_conversion=bson.codec_options.DatetimeConversion.DATETIME_AUTO,
    tz_aware=True,
    unicode_decode_error_handler="replace",
)


@pytest.fixture
def codec() -> Codec:
    return Codec(builtin_types())


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


class Pixel(Point):
    pass


class PointType:
    types = (Point,)

    def encode(self, point: Point) -> bytes:
        return str(point.x).encode()

    def decode(self, data: bytes) -> Point:
        return Point(int(data))


# Every BSON type, odd values among them (SAFETY B11, rows 85-88).
ODD: dict[str, Any] = {
    "": "empty key",
    "a.b": 1,
    "$where": "1",
    "k" * 10_000: None,
    "ｋｅｙ": True,
    "null": None,
    "double": float("nan"),
    "string": "x\x00y",
    "array": [1, [2, {"x": []}]],
    "binary": b"\x00",
    **{f"binary {n}": bson.Binary(b"\x27\x00" + bytes(3), n) for n in (0, 1, 2, 5, 6, 7, 8, 9, 128)},
    "uuid": uuid.UUID(int=5),
    "old uuid": bson.Binary(bytes(16), 3),
    "id": bson.ObjectId(),
    "date": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    "extreme date": bson.DatetimeMS(2**62),
    "regex": bson.Regex("(?<n>a)", "i"),
    "pattern": re.compile("a"),
    "code": bson.Code("f()"),
    "scope": bson.Code("f()", {"x": 1}),
    "dbref": bson.DBRef("c", 5),
    "long": bson.Int64(2**62),
    "timestamp": bson.Timestamp(1, 2),
    "decimal": bson.Decimal128("NaN"),
    "min": bson.MinKey(),
    "max": bson.MaxKey(),
}


def nested(depth: int) -> Any:
    return {"x": [nested(depth - 1)]} if depth else 1


@pytest.mark.parametrize("key", ODD, ids=[key[:20] or "empty" for key in ODD])
def test_b11_odd_bson_goes_through_untouched(codec: Codec, key: str) -> None:
    document = {key: ODD[key], "list": [ODD[key]]}
    assert codec.encode(document) is document
    raw = bson.encode(document, codec_options=OPTIONS)
    stored = bson.decode(raw, codec_options=OPTIONS)
    read = codec.decode(stored, strict=True)
    assert read is stored
    assert bson.encode(codec.encode(read), codec_options=OPTIONS) == raw


def test_b11_duplicate_keys_and_broken_text_do_not_stop_a_read(codec: Codec) -> None:
    broken = bytearray(bson.encode({"a": "xx", "b": 1}))
    at = broken.index(b"xx")
    broken[at : at + 2] = b"\xff\xfe"
    broken[broken.index(b"b\x00") : broken.index(b"b\x00") + 1] = b"a"
    stored = bson.decode(bytes(broken), codec_options=OPTIONS)
    assert codec.decode(stored) is stored


def test_every_class_that_pymongo_writes_is_known(codec: Codec) -> None:
    containers = {dict, list, tuple, SON, Mapping}
    assert set(bson._ENCODERS) - containers <= set(WRITE_LEAVES)


@pytest.mark.parametrize("depth", [1, 45, 90])
def test_nested_documents(codec: Codec, depth: int) -> None:
    document = nested(depth)
    assert codec.encode(document) is document
    assert codec.decode(document) is document


def test_a_document_that_contains_itself_is_refused(codec: Codec) -> None:
    document: dict[str, Any] = {"array": np.eye(2)}
    document["self"] = [document]
    with pytest.raises(EncodeError, match="contains itself"):
        codec.encode(document)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(),
    st.binary(),
    hnp.arrays(st.sampled_from([np.float32, np.int64, np.float64]), hnp.array_shapes(max_dims=2, max_side=3)),
    st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    st.lists(st.integers(-9, 9), min_size=1, max_size=3).map(lambda x: AudioClip(np.array(x, np.int16), 8000)),
)
KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).filter(
    lambda key: key not in {"_content", "_id"}
)
DOCUMENTS = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, AudioClip):
        return a.rate == b.rate and same(a.samples, b.samples)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and same(a.numpy(), b.numpy())
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return type(a) is type(b) and bool(a == b or a != a)  # the second for NaN


@given(DOCUMENTS)
def test_w9_objects_anywhere_come_back_and_inputs_are_not_changed(document: dict[str, Any]) -> None:
    codec = Codec(builtin_types())
    identities = [id(value) for value in document.values()]
    stored = codec.encode(document)
    assert [id(value) for value in document.values()] == identities
    data = bson.encode(stored)
    decoded = bson.decode(data)
    read = codec.decode(decoded, strict=True)
    assert same(read, _as_bson_reads(document))
    assert read is decoded or not has_nothing_to_decode(data)
    assert codec.encode(codec.encode(document)) == stored


def test_the_bytes_of_plain_documents_say_that_there_is_nothing_to_decode() -> None:
    plain = {"_id": 1, "text": "_content", "content": {"_like": [1]}, "data": b"\t'", "fold": {"_fold": "train"}}
    assert has_nothing_to_decode(bson.encode(plain))
    for other in ({"v": np.zeros(0, np.float32)}, {"v": [np.zeros(9, np.float32)]}, {"a": {"i": np.eye(2)}}):
        assert not has_nothing_to_decode(bson.encode({**plain, **Codec(builtin_types()).encode(other)}))
    assert not has_nothing_to_decode(bson.encode({**plain, "_sddb": {"versions": 1}}))


def _as_bson_reads(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_bson_reads(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_bson_reads(item) for item in value]
    if type(value) is int and not -(2**31) <= value < 2**31:
        return bson.Int64(value)
    return value


def test_only_what_changes_is_copied(codec: Codec) -> None:
    kept = {"deep": [1, 2, {"x": "y"}]}
    document: dict[str, Any] = {"kept": kept, "new": {"t": (np.eye(2), "a")}}
    stored = codec.encode(document)
    assert stored["kept"] is kept
    assert isinstance(document["new"]["t"], tuple)
    read = codec.decode(stored)
    assert read["kept"] is kept
    assert "_content" in stored["new"]["t"][0]


def test_document_classes_are_kept(codec: Codec) -> None:
    for cls in (SON, OrderedDict):
        stored = cls([("z", 1), ("a", codec.encode(np.arange(2.0, dtype=np.float32)))])
        read = codec.decode(stored)
        assert type(read) is cls
        assert list(read) == ["z", "a"]
        assert isinstance(read["a"], np.ndarray)
    raw = raw_bson.RawBSONDocument(bson.encode({"x": 1}))
    assert codec.encode(raw) is raw
    assert codec.decode(raw) is raw


def test_subclasses_of_what_bson_writes_are_left_to_it(codec: Codec) -> None:
    class Name(str):
        pass

    class Colour(enum.StrEnum):
        RED = "red"

    document = {"n": Name("x"), "c": Colour.RED, "d": OrderedDict(a=1), "s": np.str_("y")}
    assert codec.encode(document) is document
    assert bson.decode(bson.encode(document)) == {"n": "x", "c": "red", "d": {"a": 1}, "s": "y"}


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.float64(1.5), 1.5),
        (np.float16(1.5), 1.5),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.True_, True),
        (np.datetime64("2020-02-03T04:05:06"), datetime.datetime(2020, 2, 3, 4, 5, 6)),
        (np.datetime64("2020-02-03", "ns"), datetime.datetime(2020, 2, 3)),
        (np.datetime64("2020-02-03"), datetime.datetime(2020, 2, 3)),
        (np.datetime64("NaT"), None),
    ],
    ids=repr,
)
def test_numpy_scalars_become_python_values(codec: Codec, scalar: Any, plain: Any) -> None:
    stored = codec.encode({"x": [scalar]})["x"][0]
    assert stored == plain
    assert type(stored) is type(plain)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        1j,
        np.complex64(1j),
        np.timedelta64(5),
        np.longdouble(1),
        np.datetime64("30000-01-01"),
        Point(1),
        decimal.Decimal(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_type_stores_is_named_with_its_place(codec: Codec, value: Any) -> None:
    with pytest.raises(EncodeError, match=r"Value at 'a\.1\.b': no type stores a .*Known types: 'vector'") as caught:
        codec.encode({"a": [0, {"b": value}]})
    assert isinstance(caught.value, InvalidInputError)
    assert isinstance(caught.value, bson.errors.InvalidDocument), "pymongo users catch this one"
    assert caught.value.document is value


def test_classes_that_pymongo_is_told_about_are_left_to_it() -> None:
    codec = Codec(builtin_types(), leave=lambda cls: issubclass(cls, decimal.Decimal))
    document = {"price": decimal.Decimal("1.5")}
    assert codec.encode(document) is document
    with pytest.raises(EncodeError):
        codec.encode({"p": Point(1)})


def type_of(codec: Codec, value: Any) -> str | None:
    """Return the type by which a value was written; None where MongoDB stores it itself."""
    stored = codec.encode(value)
    if isinstance(stored, bson.Binary):
        return "vector"
    return stored["_content"]["type"] if isinstance(stored, dict) else None


def test_w10_own_types_and_subclasses_by_their_base() -> None:
    codec = Codec({**builtin_types(), "point": PointType()})
    stored = codec.encode({"p": [Pixel(5)]})
    assert stored == {"p": [{"_content": {"type": "point", "bytes": b"5"}}]}
    assert codec.decode(stored)["p"][0].x == 5
    assert [type_of(codec, x) for x in (Pixel(1), 1, "a", np.eye(2), np.ones(2, np.float32), torch.ones(2))] == [
        *("point", None, None, "array", "vector", "tensor")
    ]


def test_the_nearest_base_decides_and_the_later_type_wins() -> None:
    class PixelType(PointType):
        types = (Pixel,)

    class Celsius(float):
        pass

    class CelsiusType:
        types = Celsius

        def encode(self, x: Celsius) -> bytes:
            return str(float(x)).encode()

        def decode(self, data: bytes) -> Celsius:
            return Celsius(float(data))

    codec = Codec({"point": PointType(), "pixel": PixelType(), "again": PixelType(), "celsius": CelsiusType()})
    assert [type_of(codec, x) for x in (Point(1), Pixel(1), Celsius(1))] == ["point", "again", "celsius"]
    assert type(codec.decode(codec.encode({"t": Celsius(20.5)}))["t"]) is Celsius


def test_what_was_refused_before_decides_nothing_for_its_subclasses(codec: Codec) -> None:
    class Mixin:
        pass

    class Name(Mixin, str):
        pass

    with pytest.raises(EncodeError):
        codec.encode(Mixin())
    name = Name("x")
    assert codec.encode([name])[0] is name


def test_own_types_that_misbehave_are_named(codec: Codec) -> None:
    class Wrong(PointType):
        def encode(self, point: Point) -> Any:
            return "text" if point.x else 1 / 0

        def decode(self, data: bytes) -> Point:
            raise KeyError("lost")

    codec = Codec({"wrong": Wrong()})
    with pytest.raises(EncodeError, match=r"Value at 'p': Type 'wrong' must encode to bytes; it made str"):
        codec.encode({"p": Point(1)})
    with pytest.raises(EncodeError, match=r"Value at 'p': Type 'wrong' can't encode .*ZeroDivisionError"):
        codec.encode({"p": Point(0)})
    stored = {"p": {"_content": {"type": "wrong", "bytes": b"x"}}, "q": 1}
    assert codec.decode(stored) == {"p": Failed(None, "KeyError: 'lost'"), "q": 1}
    with pytest.raises(InvalidInputError, match="'wrong' can't decode this content: KeyError"):
        codec.decode(stored, strict=True)


def test_row_82_an_unknown_type_is_said_and_its_bytes_are_kept(codec: Codec) -> None:
    stored = {"x": {"_content": {"type": "imagge", "bytes": b"data"}}}
    read = codec.decode(stored)
    assert read["x"] == Failed(None, "There is no type 'imagge'. Did you mean 'image'?")
    with pytest.raises(EncodeError, match=r"Value at 'x': There is no type 'imagge'\. Did you mean 'image'\?"):
        codec.encode(stored)
    assert codec.encode({"x": read["x"]}) == stored
    with pytest.raises(InvalidInputError, match="Did you mean 'image'"):
        codec.decode(stored, strict=True)
    with pytest.raises(InvalidInputError, match="Did you mean 'image'"):
        codec.encode_as("imagge", b"")


@pytest.mark.parametrize(
    "content",
    [{"type": "image", "url": "https://x.org/a.png"}, {"url": "https://x.org/a"}, {"type": "bytes", "bytes": b"x"}],
    ids=str,
)
def test_content_given_as_such_passes(codec: Codec, content: dict[str, Any]) -> None:
    document = {"x": [{"_content": content}]}
    assert codec.encode(document) is document


@pytest.mark.parametrize("key", ["a.b", "", "$a"])
def test_row_87_a_url_where_its_bytes_could_not_be_written_is_refused(codec: Codec, key: str) -> None:
    with pytest.raises(EncodeError, match="below a field whose name"):
        codec.encode({key: {"_content": {"url": "https://x.org", "type": "image"}}})


def test_bytes_without_a_type_are_bytes(codec: Codec) -> None:
    assert codec.decode({"x": {"_content": {"bytes": b"data", "url": "https://x.org"}}}) == {"x": b"data"}
