"""Indexes within a memory budget: which of them goes, and that it comes back as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from superduper_nb.search import keeper
from superduper_nb.search.live import LiveIndex
from tests.search.conftest import Corpus
from tests.waiting import until

ROWS, DIMENSION = 400, 16


class Several:
    """Five collections with an index each, in one engine whose budget is enough for three."""

    def __init__(self, database: Any, folder: Path) -> None:
        self.corpora: dict[str, Corpus] = {}
        self.used: list[str] = []
        for name in "abcde":
            made = self.corpora[name] = Corpus(database, name=name, snapshots=folder)
            made.insert(np.random.default_rng(ord(name)).standard_normal((ROWS, DIMENSION)))
        made.ask([1.0] * DIMENSION)
        self.engine = made._started(memory=int(3.5 * made.engine.nbytes))
        for each in self.corpora.values():
            each.engine.close()
            each.engine = self.engine

    def search(self, name: str) -> None:
        """Search, and compare with brute force."""
        query = np.random.default_rng(len(self.used)).standard_normal(DIMENSION)
        self.corpora[name].check(query, 5)
        self.used = [*(each for each in self.used if each != name), name]

    def there(self) -> set[str]:
        return {index["collection"] for index in self.engine.indexes()}

    def settled(self) -> bool:
        """Say whether those are there that were used last: the oracle counts uses."""
        return self.there() == set(self.used[-3:])


@pytest.fixture
def several(database: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Several]:
    monkeypatch.setattr(keeper, "_WORTH", 1)
    several = Several(database, home / "indexes")
    yield several
    several.engine.close()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the collection of each index that is loaded from MongoDB."""
    calls: list[str] = []
    load = LiveIndex._load
    monkeypatch.setattr(LiveIndex, "_load", lambda live: (calls.append(live._source._collection.name), load(live))[1])
    return calls


def test_the_least_recently_used_goes_and_comes_back_from_its_snapshot(several: Several, loads: list[str]) -> None:
    for name in "abcdeabacdeeadcb":
        several.search(name)
        until(several.settled)
        several.corpora[name].compute({7: [float(len(several.used))] * DIMENSION})
    assert sorted(loads) == list("abcd")  # once each (e had a snapshot); later they came from their snapshots
    for name in "abcde":
        several.search(name)


def test_one_that_is_in_use_stays(several: Several) -> None:
    held, go_on, found = threading.Event(), threading.Event(), []

    def encode(*_: Any) -> list[Any]:
        held.set()
        assert go_on.wait(60)
        return [np.ones(DIMENSION)]

    several.engine._encode = encode
    searcher = threading.Thread(target=lambda: found.append(several.corpora["a"].ask(like={"x": 1}, n=5).ids))
    searcher.start()
    assert held.wait(60)
    for name in "bcdbecd":
        several.search(name)
        until(lambda: len(several.there()) <= 4)
        assert "a" in several.there()
    go_on.set()
    searcher.join()
    assert found == [[id for id, _ in several.corpora["a"].truth([1.0] * DIMENSION)[:5]]]
    several.search("b")
    until(lambda: several.there() == {"b", "c", "d"})


def test_searches_from_all_sides_find_the_same_as_ever(several: Several) -> None:
    wrong: list[BaseException] = []

    def run(seed: int) -> None:
        chance = np.random.default_rng(seed)
        try:
            for _ in range(12):
                several.corpora["abcde"[chance.integers(5)]].check(chance.standard_normal(DIMENSION), 5)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_single_one_stays_however_large(several: Several) -> None:
    several.engine._shelf._memory = 1
    several.search("a")
    several.search("a")
    assert several.there() == {"a"}
    several.search("b")
    until(lambda: several.there() == {"b"})
