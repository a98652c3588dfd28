"""A claimed job on its way: which chunks are out, what is done, and up to where all is done."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.jobs.outputs import Outcome
from superduper_nb.jobs.records import JobStore, Progress

__all__ = ["Part", "RunningJob", "error_record"]

_REPORT_EVERY_S: Final = 0.1
_FIRST: Final = 20
_TRACEBACK_CHARS: Final = 16_000


@dataclass(eq=False, slots=True)
class Part:
    """A chunk, or a half of one that had to be split.

    Attributes
    ----------
    cursor : object
        What the job's cursor becomes when this and all before it is done.
    attempts : int
        How often an executor was lost with it.
    open : int
        Its pieces that are not done yet: itself, or its halves.
    done, failed : int
        Documents, of the whole chunk.
    """

    ids: list[Any]
    cursor: Any
    whole: Part | None = None
    attempts: int = 0
    open: int = 1
    done: int = 0
    failed: int = 0

    def split(self) -> list[Part]:
        """Halve it; the chunk is done when all its pieces are."""
        whole, middle = self.whole or self, len(self.ids) // 2
        whole.open += 1
        return [Part(ids, self.cursor, whole) for ids in (self.ids[:middle], self.ids[middle:])]


class RunningJob:
    """A job that this process has claimed.

    Parameters
    ----------
    store : JobStore
        Where its record is.
    record : dict
        As `JobStore.claim` returned it.
    owner : str
        This process's name in leases.
    """

    def __init__(self, store: JobStore, record: dict[str, Any], owner: str) -> None:
        self.store, self.record, self.owner = store, record, owner
        self.id = str(record["_id"])
        self.again: deque[Part] = deque()
        self.out = 0
        self._parts: Iterator[Part] = (Part(ids, cursor) for cursor, ids in store.chunks(record))
        self._exhausted = False
        self._order: deque[Part] = deque()
        self._resume = dict(record["resume"])
        self._done, self._failed = self._resume["done"], self._resume["failed"]
        self._first = list(record["failures"]["first"])
        self._reported = 0.0

    def next_part(self) -> Part | None:
        """Return what to do next; None when nothing is left to start."""
        if self.again:
            return self.again.popleft()
        part = next(self._parts, None)
        if part is None:
            self._exhausted = True
        else:
            self._order.append(part)
        return part

    @property
    def ended(self) -> bool:
        """All work was started and came back."""
        return self._exhausted and not self.out and not self.again

    def count(self, part: Part, outcome: Outcome) -> None:
        """Add what became of some documents of a part."""
        whole = part.whole or part
        whole.done += outcome.done
        whole.failed += outcome.failed
        self._done += outcome.done
        self._failed += outcome.failed
        self._first = [*self._first, *outcome.failures][:_FIRST]

    def close(self, part: Part) -> None:
        """Note that a part is done, and move the cursor over all that is done without a gap."""
        (part.whole or part).open -= 1
        while self._order and not self._order[0].open:
            chunk, resume = self._order.popleft(), self._resume
            done, failed = resume["done"] + chunk.done, resume["failed"] + chunk.failed
            self._resume = {"cursor": chunk.cursor, "done": done, "failed": failed}

    def report(self, *, at_most_every: float = _REPORT_EVERY_S) -> bool:
        """Write progress and renew the lease, at most ten times a second; False when the job was taken away."""
        now = time.monotonic()
        if now - self._reported < at_most_every:
            return True
        self._reported = now
        progress = Progress(self._resume, self._done, self._failed, tuple(self._first))
        return self.store.report(self.id, self.owner, progress)

    def finish(self, error: BaseException | None = None) -> None:
        """Write the last progress and the end."""
        self.report(at_most_every=0)
        state = "succeeded" if error is None else "failed"
        self.store.finish(self.id, self.owner, state, None if error is None else error_record(error))


def error_record(error: BaseException) -> dict[str, Any]:
    """Describe an exception for a record, within bounds."""
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error)[:4000], "traceback": text[-_TRACEBACK_CHARS:]}
