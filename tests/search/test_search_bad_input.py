"""Bad input: a clear error of ours, and the engine unharmed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from superduper_nb.errors import InvalidInputError, ModelError, NotFoundError
from superduper_nb.models import ItemError
from superduper_nb.search import SearchRequest

DEEP: dict[str, Any] = {"a": 1}
for _ in range(300):
    DEEP = {"$and": [DEEP]}


@pytest.fixture
def made(corpus: Any) -> Any:
    made = corpus("cosine")
    made.insert([[1.0, 0.0], [0.0, 1.0]], t=["aaaa", "b"])
    return made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector": [1.0]}, "1 numbers.* 2"),
        ({"vector": [1.0, 2.0, 3.0]}, "3 numbers.* 2"),
        ({"vector": []}, "one row"),
        ({"vector": [[[1.0, 2.0]]]}, "one row"),
        ({"vector": [[1.0, 2.0], []]}, "one row"),
        ({"vector": 3.0}, "one row"),
        ({"vector": [1.0, float("nan")]}, "NaN"),
        ({"vector": [1.0, float("-inf")]}, "infinity"),
        ({"vector": [1.0, 1e300]}, "too large"),
        ({"vector": [0.0, 0.0]}, "zero"),
        ({"vector": ["1", "2"]}, "real numbers"),
        ({"vector": [1.0, None]}, "real numbers"),
        ({"vector": [1j, 1.0]}, "real numbers"),
        ({"vector": [True, False]}, "real numbers"),
        ({"vector": [[1.0], [1.0, 2.0]]}, "1 numbers"),
        ({"vector": {"a": 1}}, "real numbers|one row"),
        ({"like": {"y": 1}}, "like= must hold a key of the index 'near'.*'x'"),
        ({"like": {"x": [1.0, 2.0, 3.0]}}, "3 numbers"),
        ({"like": {"x": "text"}}, "real numbers"),
        ({"vector": [1.0, 1.0], "filter": {"$where": "true"}}, "runs code"),
        ({"vector": [1.0, 1.0], "filter": {"$or": [{"a": {"$not": {"$elemMatch": {"$where": "1"}}}}]}}, "runs code"),
        (
            {"vector": [1.0, 1.0], "filter": {"$expr": {"$function": {"body": "x", "args": [], "lang": "js"}}}},
            "runs code",
        ),
        ({"vector": [1.0, 1.0], "filter": {"$expr": {"$eq": [1, {"$accumulator": {}}]}}}, "runs code"),
        ({"vector": [1.0, 1.0], "filter": DEEP}, "nested"),
        ({"vector": [1.0, 1.0], "filter": {"a": {"$nope": 1}}}, "MongoDB refuses the filter.*nope"),
        ({"vector": [1.0, 1.0], "filter": {"$nope": 1}}, "MongoDB refuses the filter.*nope"),
        ({"vector": [1.0, 1.0], "filter": {"a": {"$in": 3}}}, "MongoDB refuses the filter"),
        ({"vector": [1.0, 1.0], "filter": {"a": {"$regex": "("}}}, "MongoDB refuses the filter"),
        ({"vector": [1.0, 1.0], "filter": {"$and": []}}, "MongoDB refuses the filter"),
        ({"vector": [1.0, 1.0], "filter": {"a": object()}}, "can't be sent"),
        ({"vector": [1.0, 1.0], "filter": {"a": 2**70}}, "can't be sent"),
        ({"vector": [1.0, 1.0], "filter": {"a": "x" * (17 * 2**20)}}, "can't be sent"),
        ({"vector": [1.0, 1.0], "n": 0}, "n=0"),
        ({"vector": [1.0, 1.0], "n": -1}, "n=-1"),
        ({"vector": [1.0, 1.0], "n": 10**9}, "n=1000000000.* 10000"),
        ({"vector": [1.0, 1.0], "n": 1.5}, "whole number"),
        ({"vector": [1.0, 1.0], "n": True}, "whole number"),
        ({}, "Say near to what"),
        ({"vector": [1.0, 1.0], "id": 1}, "exactly one"),
    ],
)
def test_invalid(made: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.compile(message, re.DOTALL)):
        made.ask(**options)
    made.check([1.0, 0.5])


def test_a_filter_of_ten_megabytes(made: Any) -> None:
    assert made.ask([1.0, 0.5], filter={"_id": {"$in": [0, *map(str, range(600_000))]}}).ids == [0]


@pytest.mark.parametrize("name", ["nope", "", "a$b", ".", "system.users", "x\0y"])
def test_unknown_or_impossible_collections_and_databases(made: Any, name: str) -> None:
    for where in ({"collection": name}, {"database": name}):
        if where.get("database") in ("system.users", "."):
            continue
        request = SearchRequest(
            **{"database": made.database.name, "collection": "docs", **where}, vector=[1.0, 1.0], filter={"a": 1}
        )
        with pytest.raises((NotFoundError, InvalidInputError)):
            made.engine.search(request)
    made.check([1.0, 0.5])


def test_unknown_index(made: Any) -> None:
    with pytest.raises(NotFoundError, match="near"):
        made.ask([1.0, 1.0], semantic_index="neer")
    with pytest.raises(NotFoundError):
        made.engine.describe(made.database.name, "docs", "neer")
    with pytest.raises(NotFoundError):
        made.engine.refresh(made.database.name, "docs", "neer")


def test_several_indexes_must_be_told_apart(made: Any) -> None:
    definition = {"models": ["m"], "keys": ["x"], "measure": "l2", "filter": {}}
    made.store.put("semantic_index", "far", definition, collection="docs")
    with pytest.raises(InvalidInputError, match=r"'far', 'near'|'near', 'far'"):
        made.ask([1.0, 1.0])
    assert made.ask([1.0, 1.0], semantic_index="far").index == "far"


def test_no_outputs_yet(corpus: Any) -> None:
    made = corpus("cosine")
    made.docs.insert_one({"_id": 0, "x": 1})
    made.pending = 1
    for options in ({}, {"filter": {"x": 1}}):
        reply = made.ask([1.0, 2.0], **options)
        assert (reply.ids, reply.pending) == ([], 1)
    with pytest.raises(NotFoundError, match="still to come"):
        made.ask(id=0)
    made.compute({0: [1.0, 2.0]})
    made.check([1.0, 2.0])


def test_unknown_document(made: Any) -> None:
    for options in ({"id": "nobody"}, {"like": {"_id": "nobody"}}):
        with pytest.raises(NotFoundError, match="nobody"):
            made.ask(**options)


def test_like_a_document(made: Any) -> None:
    assert made.ask(like={"_id": 1}).ids == made.ask(id=1).ids == [1, 0]


def test_a_model_that_fails_on_the_query(made: Any) -> None:
    made.engine._encode = lambda *_: [ItemError("ValueError", "too long")]
    with pytest.raises(ModelError, match="'m' failed on the query: ValueError: too long"):
        made.ask(like={"x": "a"})


def test_n_beyond_the_matches(made: Any) -> None:
    made.check([1.0, 0.2], 10_000)
    made.check([1.0, 0.2], 10_000, {"t": "b"})


def wrong_shape(queries: Any, vectors: Any) -> Any:
    return np.zeros(len(vectors))


def raises(queries: Any, vectors: Any) -> Any:
    raise ZeroDivisionError("by zero")


def not_numbers(queries: Any, vectors: Any) -> Any:
    return [["a"] * len(vectors)]


@pytest.mark.parametrize(("function", "message"), [(wrong_shape, "shape"), (raises, "by zero"), (not_numbers, "float")])
def test_a_measure_that_fails_says_so(corpus: Any, function: Any, message: str) -> None:
    made = corpus("own", function=function)
    made.insert([[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ModelError, match=f"'own'.*{message}"):
        made.ask([1.0, 1.0])


def some_nan(queries: Any, vectors: Any) -> Any:
    return np.where(vectors[None, :, 0] > 0, vectors[None, :, 0], np.nan)


def test_a_measure_that_answers_nan_puts_those_last(corpus: Any) -> None:
    made = corpus("own", function=some_nan)
    made.insert([[-1.0], [3.0], [2.0]])
    assert made.ask([1.0]).ids == [1, 2, 0]
