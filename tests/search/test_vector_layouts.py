"""Vectors are read from raw BSON as decoding each document would."""

from __future__ import annotations

from typing import Any

import bson
import numpy as np
import pytest
from bson import Int64, ObjectId
from bson.binary import Binary
from hypothesis import given
from hypothesis import strategies as st

from superduper_nb.documents.paths import get_path
from superduper_nb.search.ids import unpacked_id
from superduper_nb.search.vectors import blocks_of, ids_of, stored_vector
from tests.search.conftest import packed

PATH = "_outputs.text.m"

ids = st.one_of(
    *(st.integers(-(2**31), 2**31 - 1), st.integers(2**40, 2**50).map(Int64), st.text(max_size=4)),
    *(st.binary(min_size=12, max_size=12).map(ObjectId), st.floats(allow_nan=False), st.none()),
)
numbers = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=3)
outputs = st.one_of(numbers.map(packed), numbers, st.just("none"), st.just(Binary(b"\x03\x00\x01", 9)))


def document(id: Any, output: Any, path: str = PATH) -> dict[str, Any]:
    *outer, name = path.split(".")
    made = {name: output}
    for name in reversed(outer):
        made = {name: made}
    return {"_id": id, **made}


def read(documents: list[dict[str, Any]], path: str = PATH) -> tuple[list[Any], int]:
    """Return pairs of identifier and vector, in no order, and how many of them came in blocks."""
    blocks, rest = blocks_of(b"".join(map(bson.encode, documents)), path)
    pairs = [(unpacked_id(id), vector) for some, rows in blocks for id, vector in zip(some, rows, strict=True)]
    others = map(bson.decode, rest)
    return pairs + [(each["_id"], stored_vector(get_path(each, path, None))) for each in others], len(pairs)


def as_set(pairs: list[Any]) -> list[str]:
    return sorted(f"{type(id).__name__} {id!r} {None if v is None else list(v)!r}" for id, v in pairs)


@given(st.lists(st.builds(document, ids, outputs), min_size=1, max_size=12))
def test_documents_of_any_layouts(documents: list[dict[str, Any]]) -> None:
    found, _ = read(documents)
    assert as_set(found) == as_set([(each["_id"], stored_vector(get_path(each, PATH))) for each in documents])


@given(st.lists(ids, max_size=12))
def test_identifiers_alone(some: list[Any]) -> None:
    found, rest = ids_of(b"".join(bson.encode({"_id": id}) for id in some))
    read = [*map(unpacked_id, found), *(bson.decode(each)["_id"] for each in rest)]
    assert sorted(f"{type(id).__name__} {id!r}" for id in read) == sorted(f"{type(id).__name__} {id!r}" for id in some)
    if {*map(type, some)} in ({int}, {Int64}, {str}, {ObjectId}):
        assert not rest


@pytest.mark.parametrize("path", ["v", "_outputs._base.m", "_outputs.a.b.ü.m"])
@pytest.mark.parametrize("some", [[1, 2], [Int64(1), Int64(2)], [ObjectId(), ObjectId()], ["a", "b", "longer", "ü"]])
def test_the_common_ones_are_read_without_decoding(path: str, some: list[Any]) -> None:
    vectors = np.random.default_rng(0).standard_normal((len(some), 5)).astype(np.float32)
    documents = [document(id, packed(vector), path) for id, vector in zip(some, vectors, strict=True)]
    found, in_blocks = read(documents, path)
    assert in_blocks == len(some)
    assert as_set(found) == as_set(list(zip(some, vectors, strict=True)))
