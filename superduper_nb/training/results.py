"""What a training tells, to whom, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["CANCELLED", "INTERRUPTED", "Onlooker", "Recorder", "Result"]

INTERRUPTED: Final = "interrupted"
CANCELLED: Final = "cancelled"


class Onlooker(Protocol):
    """How whoever asked for the training looks in on it."""

    def turn(self) -> AbstractContextManager[None]:
        """Wait until it may compute."""

    def aside(self) -> AbstractContextManager[None]:
        """Let somebody else compute, within a turn, while one waits for other processes."""

    def stopped(self) -> bool:
        """Say whether to stop."""

    def tell(self, done: int) -> None:
        """Hear how many steps are done."""


class Recorder(Protocol):
    """Where a run leaves what it finds."""

    def point(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Keep values of a step; those of the same step replace them."""

    def flush(self) -> None:
        """Write what is not written yet."""

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep the state from which the run goes on should it be killed; it replaces the one before."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended.

    Attributes
    ----------
    step, epoch : int
        Where.
    best_step : int
        When the weights were those that it leaves in the modules.
    best : float
        What was monitored, then.
    monitor : str
        What that is.
    values : dict
        The last values of the loss and of each metric.
    stopped : str or None
        Why, before its steps were done.
    """

    step: int
    epoch: int
    best_step: int
    best: float
    monitor: str
    values: dict[str, float]
    stopped: str | None
