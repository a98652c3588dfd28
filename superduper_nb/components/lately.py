"""What was asked of what is registered counts for a moment: one question ten times a second instead of one a call."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Lately"]

_LATELY_S: Final = 0.1


class Lately:
    """Says whether what was learnt of a database's components still counts.

    It does for a tenth of a second, unless this process was told since that something new is registered: the clients of
    a server tell it of what they register, others' registrations are seen so much later.
    """

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def tell(self, database: str) -> None:
        """Say, in any thread, that something was registered in a database or deleted there."""
        self._told[database] = time.monotonic()

    def counts(self, database: str, at: float) -> bool:
        """Say whether what was asked for at a time (`time.monotonic`) still counts."""
        return self._told.get(database, 0.0) < at and time.monotonic() - at < _LATELY_S
