"""What is registered is asked for ten times a second at most, and seen at once by whoever may expect that."""

from __future__ import annotations

from typing import Any

import pytest

from superduper_nb.components import lately
from superduper_nb.components.store import ComponentStore
from superduper_nb.errors import NotFoundError
from tests.search.conftest import Corpus
from tests.waiting import until


@pytest.fixture
def made(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Return vectors whose index was searched just now; by itself nothing is asked for again."""
    monkeypatch.setattr(lately, "_LATELY_S", 3600.0)
    made: Corpus = corpus("dot")
    made.insert([[1.0], [2.0]])
    assert made.ask([1.0]).ids == [1, 0]
    assert made.ask([1.0], after=None).ids == [1, 0]
    return made


@pytest.fixture
def looks(made: Corpus, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Count how often MongoDB is asked whether something new is registered."""
    looks: list[None] = []
    stamp = ComponentStore.stamp

    def counted(store: ComponentStore) -> int:
        looks.append(None)
        return stamp(store)

    monkeypatch.setattr(ComponentStore, "stamp", counted)
    return looks


def delete(made: Corpus) -> None:
    """Delete the index, unseen by the engine."""
    made.store.delete("semantic_index", "near", collection=made.docs.name)


def test_it_is_not_asked_for_with_each_search(made: Corpus, looks: list[None]) -> None:
    for _ in range(20):
        made.ask([1.0], after=None)
    assert not looks


def test_who_asks_after_another_time_sees_what_was_registered_by_then(made: Corpus) -> None:
    delete(made)
    assert made.ask([1.0], after=None).ids == [1, 0]
    with pytest.raises(NotFoundError):
        made.ask([1.0])


def test_what_the_engine_is_told_of_is_seen_at_once(made: Corpus, looks: list[None]) -> None:
    delete(made)
    made.engine.registered(made.database.name)
    with pytest.raises(NotFoundError):
        made.ask([1.0], after=None)
    assert looks


def test_an_index_that_was_registered_elsewhere_just_now_is_found(made: Corpus) -> None:
    definition = {"models": ["m"], "keys": ["x"], "measure": "l2", "filter": {}}
    made.store.put("semantic_index", "other", definition, collection=made.docs.name)
    assert made.ask([1.0], semantic_index="other", after=None).ids == [0, 1]


def test_anything_else_that_happens_elsewhere_is_seen_soon(made: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    delete(made)

    def gone() -> bool:
        try:
            made.ask([1.0], after=None)
        except NotFoundError:
            return True
        return False

    until(gone)
