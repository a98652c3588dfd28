"""Calls that go together: each gets its own answer, of a round that began after it came."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from superduper_nb.search.together import Together


def test_whoever_comes_meanwhile_goes_with_the_next_round() -> None:
    rounds: list[list[int]] = []
    gate, begun = threading.Event(), threading.Event()

    def answer(queries: Sequence[int]) -> list[int]:
        rounds.append(list(queries))
        begun.set()
        assert gate.wait(30)
        if 13 in queries:
            raise ValueError("unlucky")
        return [2 * query for query in queries]

    together: Together[int, int] = Together(answer, 1)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(together.ask, 0)
        assert begun.wait(30)
        others = [pool.submit(together.ask, i) for i in range(1, 6)]
        while len(together._waiting) < 5:
            threading.Event().wait(0.001)
        gate.set()
        assert [future.result(30) for future in [first, *others]] == [0, 2, 4, 6, 8, 10]
        assert [rounds[0], sorted(rounds[1])] == [[0], [1, 2, 3, 4, 5]]
        with pytest.raises(ValueError, match="unlucky"):
            pool.submit(together.ask, 13).result(30)
        assert pool.submit(together.ask, 4).result(30) == 8  # the place is free again
    assert together._free == 1
