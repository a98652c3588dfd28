"""Requests that are answered in one go get what each would have got alone; an index counts what it was asked."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from pymongo.errors import AutoReconnect

from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.search import IndexOptions, SearchReply, SearchRequest

TOLD = ("ids", "scores", "distances", "strategy", "candidates", "survivors", "pending", "index", "partial")


@pytest.mark.parametrize("kind", ["exact", "scan"])
def test_requests_in_one_go_get_what_each_gets_alone(corpus: Any, kind: str) -> None:
    made = corpus("l2", index=IndexOptions(kind=kind))
    vectors = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    made.insert(vectors)
    made.ask(vectors[0])
    where = {"database": made.database.name, "collection": "docs", "n": 5}
    requests = [SearchRequest(**where, vector=row) for row in (*vectors[:7], np.ones(3), np.full(8, np.nan))]
    assert len({request.company for request in requests}) == 1
    outcomes = made.engine.search_each(requests)
    for request, outcome in zip(requests[:7], outcomes[:7], strict=True):
        assert isinstance(outcome, SearchReply)
        alone = made.engine.search(request)
        for name in (
            "ids",
            "scores",
            "distances",
            "strategy",
            "candidates",
            "survivors",
            "pending",
            "index",
            "partial",
        ):
            assert getattr(outcome, name) == getattr(alone, name), name
    assert [str(outcome)[:24] for outcome in outcomes[7:]] == ["The query vector has 3 n", "The query vector holds N"]
    together = made.engine.search_each(requests[:7])
    assert [reply.ids for reply in together] == [reply.ids for reply in outcomes[:7]]
    (figures,) = made.engine.figures()
    assert (figures["id"], figures["size"]) == ("near", 600)
    assert figures["searches"][-1] == ("+Inf", 1 + 7 + 7 + 7)  # the two bad ones are none
    assert figures["searched_s"] > 0
    assert [count for _, count in figures["searches"]] == sorted(count for _, count in figures["searches"])


def test_what_one_can_not_do_none_of_them_can(corpus: Any) -> None:
    made = corpus()
    made.insert([[1.0, 0.0]])
    request = SearchRequest(database=made.database.name, collection="docs", semantic_index="nope", vector=[1.0, 0.0])
    assert [type(outcome) for outcome in made.engine.search_each([request] * 2)] == [NotFoundError] * 2
    assert [type(outcome) for outcome in made.engine.search_each([request])] == [NotFoundError]


@pytest.mark.parametrize(
    "option",
    [
        {"filter": {"a": 1}},
        {"diversity": 0.5},
        {"group_by": "a"},
        {"text": "wool"},
        {"min_score": 0.0},
        {"max_score": 0.0},
        {"unlike": {"x": 1}},
        {"n": 101},
        {"exact": True},
        {"vector": [[1.0]]},
        {"vector": None, "id": 3},
    ],
    ids=str,
)
def test_only_plain_searches_have_company(option: dict[str, Any]) -> None:
    plain = {"database": "d", "collection": "c", "vector": [1.0]}
    assert SearchRequest(**plain).company is not None
    assert SearchRequest(**{**plain, **option}).company is None


def test_a_figure_stays_when_its_index_goes(corpus: Any) -> None:
    made = corpus()
    made.insert([[1.0, 0.0]])
    made.check([1.0, 0.0])
    made.engine._shelf.drop((made.database.name, "docs", "near"))
    (figures,) = made.engine.figures()
    assert "size" not in figures
    assert figures["searches"][-1] == ("+Inf", 1)
    with pytest.raises(InvalidInputError):
        made.ask([1.0])
    assert made.engine.figures()[0]["searches"][-1] == ("+Inf", 1)


def test_what_goes_wrong_behind_a_search_is_told_to_each_of_those_that_went_together(
    corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = corpus("dot")
    made.insert([[1.0], [2.0]])
    made.ask([1.0])
    gone = AutoReconnect("MongoDB is gone")
    monkeypatch.setattr(made.engine, "_pending_lately", Mock(side_effect=gone))
    where = {"database": made.database.name, "collection": "docs"}
    requests = [SearchRequest(**where, vector=[float(i + 1)]) for i in range(3)]
    assert made.engine.search_each(requests) == [gone] * 3
