"""How many inputs a batch has, and whether it is cut in halves: found while the model runs, and kept with it."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from statistics import median
from typing import Final

__all__ = ["BatchSize", "Halving", "out_of_memory"]

_START: Final = 32
_MOST: Final = 4096
_TRIES: Final = 3
"""A size is judged by the best of so many batches: what disturbs only slows."""
_HALVINGS: Final = 5
"""A way is judged by the middle of so many batches: one that happens to need little padding is quick, too."""
_GAIN: Final = 1.1
"""So many times as fast must twice the size be, or the smaller one stays: it answers sooner and takes less memory."""
_LONG_S: Final = 0.25
"""A batch that takes as long is not doubled: what a call costs beside the work is nothing by then."""


class BatchSize:
    """A size that doubles while that makes the model faster, and halves when it runs out of memory.

    Parameters
    ----------
    given : int, optional
        The size that a user chose: it does not grow. Default: found, from 32 on.

    Attributes
    ----------
    value : int
        The size for the next batch.
    """

    def __init__(self, given: int | None = None) -> None:
        self.value = given or _START
        self._settled = given is not None
        self._took: list[tuple[float, float]] = []  # rate and seconds of each full batch of this size
        self._rate_before = 0.0  # of half this size
        self._guard = threading.Lock()

    def note(self, count: int, work: float, seconds: float) -> None:
        """Hear of a batch that ran: its inputs, the elements they had in all, and how long it took."""
        with self._guard:
            if self._settled or count != self.value:
                return
            self._took.append((work / max(seconds, 1e-9), seconds))
            if len(self._took) == _TRIES:
                self._judge(max(rate for rate, _ in self._took), min(took for _, took in self._took))

    def _judge(self, rate: float, seconds: float) -> None:
        if rate < _GAIN * self._rate_before:
            self.value //= 2
            self._settled = True
        elif seconds > _LONG_S or self.value * 2 > _MOST:
            self._settled = True
        else:
            self.value *= 2
            self._rate_before, self._took = rate, []

    def halve(self, count: int) -> None:
        """Hear that memory did not suffice for a batch of so many: from now on at most half of them."""
        with self._guard:
            self.value = max(1, min(self.value, count // 2))
            self._settled = True


class Halving:
    """Whether batches of inputs that differ much in length run in two halves: both are tried, the faster one stays.

    In halves less is padded, but what a call costs beside the work is paid twice. So it depends on the size of the
    batch, and each doubling of it is judged by itself.
    """

    def __init__(self) -> None:
        self._rates: defaultdict[tuple[int, bool], list[float]] = defaultdict(list)

    def wanted(self, count: int) -> bool:
        """Whether the next such batch of so many inputs runs in halves."""
        whole, halved = self._tried(count, False), self._tried(count, True)
        if len(halved) < _HALVINGS or len(whole) < _HALVINGS:
            return len(halved) < len(whole)
        return median(halved) > median(whole)

    def note(self, count: int, halved: bool, work: float, seconds: float) -> None:
        """Hear of a batch that ran: its inputs, in which way, the elements that these had, and how long it took."""
        if len(tried := self._tried(count, halved)) < _HALVINGS:
            tried.append(work / max(seconds, 1e-9))

    def _tried(self, count: int, halved: bool) -> list[float]:
        return self._rates[count.bit_length(), halved]


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a smaller batch may do."""
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules or not isinstance(error, RuntimeError):
        return False
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
