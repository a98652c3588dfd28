"""Searches by a vector that come at the same time are answered in rounds; each gets what it would have got alone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import bson
import pytest

from superduper_nb.errors import ServiceError
from superduper_nb.server_ext.gathering import Gathering

WHERE = {"database": "shop", "collection": "products", "semantic_index": "meaning"}


class Rounds:
    """Answers numbers by their doubles, in rounds that wait at a gate."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.gate = threading.Event()

    def answer(self, queries: Sequence[int]) -> list[int | Exception]:
        self.seen.append(list(queries))
        assert self.gate.wait(30)
        return [ValueError("unlucky") if query == 13 else 2 * query for query in queries]


async def test_whoever_comes_meanwhile_goes_with_the_next_round() -> None:
    rounds = Rounds()
    with ThreadPoolExecutor(2) as pool:
        gathering: Gathering[int, int] = Gathering(pool.submit)
        first = gathering.ask("a", 0, rounds.answer)
        others = [gathering.ask("a", i, rounds.answer) for i in (1, 13, 2, 3)]
        others[2].cancel()  # who asked has gone
        elsewhere = gathering.ask("b", 7, rounds.answer)  # another kind does not wait
        rounds.gate.set()
        assert await first == 0
        assert await elsewhere == 14
        assert await others[0] == 2
        with pytest.raises(ValueError, match="unlucky"):
            await others[1]
        assert await others[3] == 6
    assert sorted(rounds.seen) == [[0], [1, 13, 3], [7]]
    assert gathering._waiting == {}


async def test_so_many_go_with_a_round_and_the_rest_with_those_after_it() -> None:
    rounds = Rounds()
    with ThreadPoolExecutor(2) as pool:
        gathering: Gathering[int, int] = Gathering(pool.submit)
        asked = [gathering.ask("a", i, rounds.answer) for i in range(13)] + [gathering.ask("a", 20, rounds.answer)]
        rounds.gate.set()
        assert [await each for each in asked if each is not asked[-1]][:3] == [0, 2, 4]
        assert await asked[-1] == 40
    assert rounds.seen == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 20]]
    assert gathering._waiting == {}


async def test_a_pool_that_is_closed_leaves_nobody_waiting() -> None:
    rounds = Rounds()
    pool = ThreadPoolExecutor(1)
    gathering: Gathering[int, int] = Gathering(pool.submit)
    running, *waiting = [gathering.ask("a", 1, rounds.answer) for _ in range(20)]
    unbegun = gathering.ask("b", 3, rounds.answer)
    pool.shutdown(wait=False, cancel_futures=True)
    rounds.gate.set()
    assert await running == 2
    for asked in (*waiting, unbegun, gathering.ask("c", 4, rounds.answer)):
        with pytest.raises(ServiceError, match="stopping"):
            await asked


async def test_each_of_a_round_gets_its_own_answer(running: Any, ask: Any, start: SimpleNamespace) -> None:
    await running.engine.services(wait=5)
    start.services.hold = threading.Event()
    good = {**WHERE, "vector": [1, 2, 3, 4]}
    bodies: list[dict[str, Any]] = [good, good, {**WHERE, "vector": [1, 2]}, {**good, "n": 1}, {**good, "exact": True}]
    asked = [asyncio.ensure_future(ask("POST", "search", body)) for body in bodies]
    as_bson = {"Content-Type": "application/bson", "Accept": "application/bson"}
    asked.append(asyncio.ensure_future(ask("POST", "search", bson.encode(good), headers=as_bson)))
    while running.lanes["search"].busy < len(asked):
        await asyncio.sleep(0.001)
    start.services.hold.set()
    answers = await asyncio.gather(*asked)
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 200, 200]
    assert [len(answer.body["ids"]) for answer in (answers[0], answers[3])] == [3, 1]
    assert "2" in answers[2].body["message"]
    assert bson.decode(answers[5].raw)["ids"] == [None, 1, "b"]
    assert running.lanes["search"].busy == 0


async def test_a_round_that_takes_too_long_is_no_reason_to_wait(running: Any, ask: Any, start: SimpleNamespace) -> None:
    await running.engine.services(wait=5)
    running.lanes["search"]._timeout = 0.05
    start.services.hold = threading.Event()
    answer = await ask("POST", "search", {**WHERE, "vector": [1, 2, 3, 4]})
    assert (answer.status, json.loads(answer.raw)["code"]) == (504, "deadline")
    start.services.hold.set()
    running.lanes["search"]._timeout = 30
    assert (await ask("POST", "search", {**WHERE, "vector": [1, 2, 3, 4]})).status == 200
