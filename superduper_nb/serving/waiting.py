"""How a coroutine waits for a model server."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

__all__ = ["answer_of", "running_loop"]

T = TypeVar("T")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop of this thread, if one runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def answer_of(asked: Future[T]) -> T:
    """Wait for a future; cancelled where this is.

    As `asyncio.wrap_future`, which always wakes the loop through a socket, as if another thread had answered: with the
    model server in this very loop that is a tenth of a request.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def answered(_: object) -> None:
        if running_loop() is loop:
            wake()
            return
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(wake)

    asked.add_done_callback(answered)
    try:
        await waiter
    except asyncio.CancelledError:
        asked.cancel()
        raise
    return asked.result()
