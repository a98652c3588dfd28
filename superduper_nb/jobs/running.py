"""A claimed job on its way: which chunks are out, what is done, and up to where all is done."""

from __future__ import annotations

import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.errors import brief
from superduper_nb.jobs.chunks import CHUNK_SIZE
from superduper_nb.jobs.kinds import WHOLE
from superduper_nb.jobs.outputs import Outcome
from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.values import Progress

__all__ = ["REPORT_EVERY_S", "Part", "RunningJob", "error_record"]

REPORT_EVERY_S: Final = 0.1
_RATE_OVER_S: Final = 5.0
_FIRST: Final = 20
_TRACEBACK_CHARS: Final = 16_000
_SMALLEST: Final = 64


@dataclass(eq=False, slots=True)
class Part:
    """A chunk, or a piece of one that was split.

    Attributes
    ----------
    cursor : object
        What the job's cursor becomes when this and all before it is done.
    attempts : int
        How often a worker was lost with it.
    tries : int
        How often it was tried in vain for any other reason.
    not_before : float
        Time (monotonic) of the next try.
    open : int
        Its pieces that are not done yet: itself, or those it was split into.
    done, failed : int
        Documents, of the whole chunk.
    partial : int
        Documents that its executor says it has done so far.
    stuck : bool
        Its executor said that a batch does not end, and that the worker will be ended.
    hangs : int
        How often that was so.
    """

    ids: list[Any]
    cursor: Any
    whole: Part | None = None
    attempts: int = 0
    tries: int = 0
    not_before: float = 0.0
    open: int = 1
    done: int = 0
    failed: int = 0
    partial: int = 0
    stuck: bool = False
    hangs: int = 0

    def split(self, pieces: int) -> list[Part]:
        """Cut it up; the chunk is done when all its pieces are."""
        whole, size = self.whole or self, -(-len(self.ids) // pieces)
        cut = [self.ids[at : at + size] for at in range(0, len(self.ids), size)]
        whole.open += len(cut) - 1
        return [Part(ids, self.cursor, whole, self.attempts) for ids in cut]


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
    slots : int, default 1
        Threads that compute: a small job is cut so that all of them have some of it.
    """

    def __init__(self, store: JobStore, record: dict[str, Any], owner: str, *, slots: int = 1) -> None:
        self.store, self.record, self.owner, self._slots = store, record, owner, slots
        self.id = str(record["_id"])
        self.again: deque[Part] = deque()
        self.out: set[Part] = set()
        self.resources: dict[str, float] = {}
        self.error: BaseException | dict[str, Any] | None = None
        self.worker: str | None = None
        self.lost: set[str] = set()
        """Workers that died with a part of it since one came to its end."""
        self._read = record["resume"]["cursor"]
        self._exhausted = False
        self._order: deque[Part] = deque()
        self._begun: int = record["resume"]["done"]
        self._resume = dict(record["resume"])
        self._done: int = self._resume["done"]
        self._failed: int = self._resume["failed"]
        self._first = list(record["failures"]["first"]) if self._failed else []
        self.reported = 0.0
        self._pace: deque[tuple[float, int]] = deque([(time.monotonic(), self._done)])

    def next_part(self) -> Part | None:
        """Return what to do next; None when there is nothing to start now."""
        if self.again and self.again[0].not_before <= time.monotonic():
            return self.again.popleft()
        if self._exhausted:
            return None
        chunk = self.store.chunks.after(self.record, self._read)
        if chunk is None:
            self._exhausted = True
            return None
        part = Part(chunk[1], chunk[0])
        self._read = part.cursor
        self._order.append(part)
        first, *rest = part.split(self._pieces(len(part.ids)))
        self._begun += len(part.ids)
        self.again.extend(rest)
        return first

    def _pieces(self, size: int) -> int:
        """Return how many parts to make of a chunk: more towards the end, so that all threads come to it together."""
        total: int | None = self.record["progress"]["total"]
        if total is None or total - self._begun >= CHUNK_SIZE * self._slots:
            return 1
        return max(1, min(self._slots, size // _SMALLEST, round(self._slots * size / max(1, total - self._begun))))

    @property
    def ended(self) -> bool:
        """All work was started and came back, or nothing more may be started."""
        return not self.out and (self.error is not None or (self._exhausted and not self.again))

    def count(self, part: Part, outcome: Outcome) -> None:
        """Add what became of some documents of a part."""
        whole = part.whole or part
        part.partial = 0
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

    @property
    def done(self) -> int:
        """Documents done so far, those in unfinished parts included."""
        return self._done + sum(part.partial for part in self.out)

    @property
    def whole(self) -> bool:
        """Its work is one piece that lasts."""
        return self.record["kind"] in WHOLE

    @property
    def short(self) -> bool:
        """It is a matter of a moment: a few documents that somebody has just written."""
        return "ids" in self.record["work"] and not self.whole

    @property
    def failed(self) -> int:
        """Documents that failed so far."""
        return self._failed

    @property
    def untold(self) -> bool:
        """There is progress that no report has told yet."""
        return self.done != self._pace[-1][1]

    def report(self, *, at_most_every: float = REPORT_EVERY_S) -> bool:
        """Write progress and renew the lease, at most ten times a second; False when the job was taken away."""
        now = time.monotonic()
        if now - self.reported < at_most_every:
            return True
        self.reported = now
        rate, eta = self._speed(now)
        progress = Progress(self._resume, self.done, self._failed, tuple(self._first), rate, eta, self.worker)
        return self.store.report(self.id, self.owner, progress)

    def _speed(self, now: float) -> tuple[float | None, float | None]:
        self._pace.append((now, self.done))
        while len(self._pace) > 2 and now - self._pace[1][0] > _RATE_OVER_S:
            self._pace.popleft()
        (then, before), total = self._pace[0], self.record["progress"]["total"]
        rate = (self.done - before) / (now - then) if now - then > REPORT_EVERY_S else 0.0
        if rate <= 0:
            return None, None
        return round(rate, 1), None if total is None else round(max(0, total - self.done) / rate, 1)

    def finish(self) -> bool:
        """Write the last progress and the end; False when the job was taken away."""
        if not self.report(at_most_every=0):
            return False
        error = self.error
        if isinstance(error, BaseException):
            error = error_record(error)
        if not self.store.finish(self.id, self.owner, "failed" if error else "succeeded", error):
            return False
        self.store.chunks.forget(self.record)
        return True


def error_record(error: BaseException) -> dict[str, Any]:
    """Describe an exception for a record, within bounds."""
    text = "".join(traceback.format_exception(error))
    try:
        message = brief(error)[:4000]
    except Exception:  # an exception whose text can't be made must not hide what happened
        message = "(its text can't be shown)"
    return {"type": type(error).__name__, "message": message, "traceback": text[-_TRACEBACK_CHARS:]}
