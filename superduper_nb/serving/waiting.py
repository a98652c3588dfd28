"""How an event loop waits for a model server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

__all__ = ["answer_of", "running_loop", "when_answered"]

T = TypeVar("T")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop of this thread, if one runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def when_answered(asked: Future[T], call: Callable[[Future[T]], None]) -> None:
    """Have a future that ended given to `call`, in this event loop: at once where it ends in the loop's own thread.

    Not as `asyncio.wrap_future`, which always wakes the loop through a socket, as if another thread had answered: with
    the model server in this very loop that is a tenth of a request.
    """
    loop = asyncio.get_running_loop()

    def answered(_: object) -> None:
        if running_loop() is loop:
            call(asked)
            return
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(call, asked)

    asked.add_done_callback(answered)


async def answer_of(asked: Future[T]) -> T:
    """Wait for a future; cancelled where this is."""
    waiter = asyncio.get_running_loop().create_future()

    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    when_answered(asked, wake)
    try:
        await waiter
    except asyncio.CancelledError:
        asked.cancel()
        raise
    return asked.result()
