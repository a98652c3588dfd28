"""Waiting for the end of processes that somebody else has started."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import psutil

__all__ = ["wait_for_end"]

_LOOK_EVERY_S: Final = 0.01


def wait_for_end(processes: Iterable[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait until all of them have ended, at most `timeout` seconds; return those that have not.

    One that ended counts as such though its entry in the table of processes is still there, for which psutil waits:
    in a container whose first process is no init, nobody ever takes it away.
    """
    deadline = time.monotonic() + timeout
    while (left := [process for process in processes if not _ended(process)]) and time.monotonic() < deadline:
        processes = left
        time.sleep(_LOOK_EVERY_S)
    return left


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
