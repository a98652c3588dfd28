"""Which version of the second tower encodes queries while the index of the first changes over."""

from __future__ import annotations

from typing import Any

from pymongo.database import Database

from superduper_nb.components.store import ComponentStore
from superduper_nb.search.pairing import version_beside


def test_queries_meet_vectors_of_the_same_run(database: Database[dict[str, Any]]) -> None:
    store = ComponentStore(database)
    for n, run in enumerate([None, "a", "b", None]):
        origin = {"base": "", "by": None, "run": run} if n else None
        for tower in ("documents", "queries"):
            store.put("model", tower, {"n": n}, origin=origin)
    store.put("model", "other", {"n": 0})
    assert [version_beside(store, "documents", served, "queries") for served in (1, 2, 3)] == [4, 2, 3]
    assert version_beside(store, "documents", 4, "queries") is None  # nothing changes over: the current one
    assert version_beside(store, "documents", 2, "other") is None  # it was not trained with the first
    store.put("model", "documents", {"n": 5}, origin={"base": "", "by": None, "run": "c"})
    assert version_beside(store, "documents", 4, "queries") == 4
    assert version_beside(store, "documents", 9, "queries") is None  # deleted meanwhile
