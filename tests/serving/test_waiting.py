"""How a coroutine waits for the model server's answer, wherever that is given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from superduper_nb.serving.waiting import answer_of


def at_once(give: Callable[[], None]) -> None:
    give()


def in_the_loop(give: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(give)


def in_a_thread(give: Callable[[], None]) -> None:
    threading.Thread(target=give).start()


@pytest.mark.parametrize("when", [at_once, in_the_loop, in_a_thread])
def test_an_answer_arrives_wherever_it_is_given(when: Callable[[Callable[[], None]], None]) -> None:
    async def ask() -> int:
        good: Future[int] = Future()
        bad: Future[int] = Future()
        when(lambda: good.set_result(1))
        when(lambda: bad.set_exception(KeyError("no")))
        with pytest.raises(KeyError, match="no"):
            await answer_of(bad)
        return await answer_of(good)

    assert asyncio.run(asyncio.wait_for(ask(), 30)) == 1


def test_who_stops_waiting_cancels_what_was_asked() -> None:
    async def ask() -> Future[int]:
        asked: Future[int] = Future()
        waiting = asyncio.ensure_future(answer_of(asked))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return asked

    assert asyncio.run(ask()).cancelled()


def test_an_answer_after_the_loop_is_gone_harms_nobody() -> None:
    asked: Future[int] = Future()
    asked.set_running_or_notify_cancel()  # as while its batch runs: it can't be cancelled

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(answer_of(asked), 0.01)

    asyncio.run(give_up())
    asked.set_result(1)
    assert asked.result() == 1
