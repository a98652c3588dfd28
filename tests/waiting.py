"""Waiting for a condition, instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["until"]

T = TypeVar("T")


def until(look: Callable[[], T], what: str = "what was waited for", timeout: float = 60.0) -> T:
    """Return the first true thing that `look` sees; fail where it sees none within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < deadline, f"still not so after {timeout} s: {what}"
        time.sleep(0.01)
    return seen
