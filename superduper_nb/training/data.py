"""Documents as batches: streamed from MongoDB, shuffled by buffers, the same for the same seed.

The collection is never in memory as a whole. One look at the identifiers cuts it into blocks; an epoch draws the blocks
in a random order and shuffles a buffer of them at a time. A batch is cut from that order; documents of it that can't be
prepared are left out of it. One buffer is read ahead, and a few batches are prepared ahead. What was prepared stays, up
to a bound, for the next epoch; where that is everything, whole batches are picked from it without a thread.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from toolz import partition_all

from superduper_nb.errors import SuperduperError
from superduper_nb.training.documents import BLOCK, Documents
from superduper_nb.training.seeds import seed_all
from superduper_nb.training.stack import Stack, memory

__all__ = ["Batch", "Samples", "Skipped", "filled"]

_BUFFER_BYTES: Final = 64 * 2**20
_BUFFER_DOCUMENTS: Final = 4096
_AHEAD: Final = 4
"""So many batches each preparing thread may be ahead of the training."""
_FIRST: Final = 20
_SKIPPED: Final = object()
_MISSING: Final = object()
_NOWHERE: Final = -1
_In = TypeVar("_In")
_Out = TypeVar("_Out")
Row = tuple[int, int, Any]
"""A block's number, a place in it, and the document there; None instead of it where its sample is kept."""


@dataclass(slots=True)
class Skipped:
    """Documents that could not be learnt from.

    Attributes
    ----------
    reasons : Counter
        How many for which reason.
    first : list of dict
        The first of them: ``{"_id", "error"}``.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, Any]] = field(default_factory=list)
    _seen: dict[bytes, str] = field(default_factory=dict)

    def add(self, id: Any, error: Exception) -> None:
        """Count one; once, though each epoch meets it again."""
        import bson

        why = str(error) if isinstance(error, SuperduperError) else f"{type(error).__name__}: {error}"
        if self._count(bson.encode({"": id}), why) and len(self.first) < _FIRST:
            self.first.append({"_id": id, "error": why[:1000]})

    def _count(self, key: bytes, why: str) -> bool:
        if key in self._seen:
            return False
        self._seen[key] = why
        self.reasons[why[:200] if len(self.reasons) < _FIRST else "other reasons"] += 1
        return True

    def merge(self, other: Skipped) -> None:
        """Count what another process skipped, too."""
        new = [each for each in other.first if self._count(*other.known(each["_id"]))]
        self.first = [*self.first, *new][:_FIRST]
        for key, why in other._seen.items():
            self._count(key, why)

    def known(self, id: Any) -> tuple[bytes, str]:
        """Return under which key, and why, one was counted."""
        import bson

        key = bson.encode({"": id})
        return key, self._seen[key]

    def __len__(self) -> int:
        return len(self._seen)


class Batch(NamedTuple):
    """What is made of some samples, and of how many."""

    data: Any
    size: int


def filled(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches of which something is left."""
    return (batch for batch in batches if batch.size)


class Samples:
    """Prepared documents, in the order in which an epoch takes them.

    Parameters
    ----------
    documents : Documents
        What they are made of.
    prepare : callable
        ``document -> sample``; a document for which it raises is skipped, and counted.
    skipped : Skipped
        Counts them.
    collate : callable, default list
        ``samples -> batch``.
    by_rows : bool, default False
        Row for row, `collate` makes the same of a sample whatever the others are, as long as all are alike.
    seed : int
        Of the shuffling.
    buffer : int, optional
        So many documents are shuffled together; default: as many as fit into 64 MB.
    cache_bytes : int, default 0
        So much of what was prepared is kept. 0: it is prepared in the training's own thread and order, from generators
        that are seeded for each batch, for then it may draw at random.
    workers : int, default 1
        Threads that prepare batches ahead.
    share : (int, int), default (0, 1)
        Which part of each batch, of how many, is wanted.
    """

    def __init__(
        self,
        documents: Documents,
        prepare: Callable[[dict[str, Any]], Any],
        skipped: Skipped,
        *,
        collate: Callable[[list[Any]], Any] = list,
        by_rows: bool = False,
        seed: int = 0,
        buffer: int | None = None,
        cache_bytes: int = 0,
        workers: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.documents, self.skipped = documents, skipped
        self.buffer = buffer or max(BLOCK, min(_BUFFER_DOCUMENTS, _BUFFER_BYTES // documents.document_bytes))
        self._prepare, self._collate, self._by_rows = prepare, collate, by_rows
        self._seed, self._left, self._workers, self._share = seed, cache_bytes, workers, share
        self._keeps = cache_bytes > 0
        self._kept: dict[int, list[Any]] = {}
        self._lacking: dict[int, int] = {}
        self._stack: Stack | None = None
        self._places: list[Any] = []
        self._lock = threading.Lock()

    def batches(self, size: int, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, shuffled; without one, by ``_id``. Those before `start` are not prepared."""
        whole = self._whole()
        if whole and self._by_rows:
            self._pile_up()
        if self._stack is not None:
            return self._picked(self._stack, size, epoch, start)
        cuts = enumerate(partition_all(size, self._rows(epoch)))
        wanted = ((n, self._part(rows)) for n, rows in islice(cuts, start, None))
        if whole:
            return (self._batch(rows) for _, rows in wanted)
        if self._keeps:
            return ahead(lambda each: self._batch(each[1]), wanted, self._workers, _AHEAD)
        return self._drawn(epoch, wanted)

    def _drawn(self, epoch: int | None, wanted: Iterable[tuple[int, Sequence[Row]]]) -> Iterator[Batch]:
        for n, rows in wanted:
            seed_all(self._seed, "batch", epoch, n, self._share[0])
            yield self._batch(rows)

    def epoch(self, epoch: int | None) -> Iterator[Any]:
        """Yield the samples of an epoch one by one."""
        for batch in filled(self.batches(BLOCK, epoch)):
            yield from batch.data

    # --- from documents to batches ---------------------------------------------------------------------------------

    def _rows(self, epoch: int | None) -> Iterator[Row]:
        """Yield what an epoch takes, in its order; without one, by ``_id``."""
        groups, order = self._plan(epoch)
        for rows in self._groups(groups):
            for at in order(len(rows)).tolist():
                yield rows[at]

    def _plan(self, epoch: int | None) -> tuple[list[list[int]], Callable[[int], Any]]:
        """Return which blocks are taken together, and what gives the order of so many rows of them."""
        blocks = range(len(self.documents.blocks))
        if epoch is None:
            return [[number] for number in blocks], np.arange
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(blocks)).tolist()
        each = max(1, self.buffer // BLOCK)
        return [order[at : at + each] for at in range(0, len(order), each)], rng.permutation

    def _groups(self, groups: list[list[int]]) -> Iterator[list[Row]]:
        """Yield the rows of each group of blocks; the next one is read while one is worked on."""
        return map(self._read, groups) if self._whole() else ahead(self._read, groups, 1, 1)

    def _read(self, group: list[int]) -> list[Row]:
        return [row for number in group for row in self._block(number)]

    def _block(self, number: int) -> list[Row]:
        if self._complete(number):
            return [(number, at, None) for at in range(len(self._kept[number]))]
        documents = self.documents.read(self.documents.blocks[number])
        if self._keeps and len(self._kept.get(number, ())) != len(documents):
            self._kept[number], self._lacking[number] = [_MISSING] * len(documents), len(documents)
        return [(number, at, document) for at, document in enumerate(documents)]

    def _complete(self, number: int) -> bool:
        return self._lacking.get(number) == 0

    def _part(self, rows: Any) -> Any:
        part, parts = self._share
        return rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]

    def _batch(self, rows: Sequence[Row]) -> Batch:
        samples = [sample for row in rows if (sample := self._sample(*row)) is not _SKIPPED]
        if not samples:
            return Batch(None, 0)
        return Batch(self._collate(samples), len(samples))

    def _sample(self, number: int, at: int, document: Any) -> Any:
        if self._keeps and (kept := self._kept[number][at]) is not _MISSING:
            return kept
        try:
            sample = self._prepare(document)
        except Exception as error:
            with self._lock:
                self.skipped.add(document["_id"], error)
            sample = _SKIPPED
        self._keep(number, at, sample)
        return sample

    # --- what is kept ----------------------------------------------------------------------------------------------

    def _keep(self, number: int, at: int, sample: Any) -> None:
        size = memory(sample)
        with self._lock:
            if self._keeps and size <= self._left:
                self._left -= size
                self._kept[number][at] = sample
                self._lacking[number] -= 1

    def _whole(self) -> bool:
        return all(map(self._complete, range(len(self.documents.blocks))))

    def _pile_up(self) -> None:
        """Put all samples into one batch, from which the others are picked; keep only where each is in it."""
        if self._stack is not None:
            return
        kept = [self._kept[number] for number in range(len(self.documents.blocks))]
        samples = [sample for block in kept for sample in block if sample is not _SKIPPED]
        self._stack = Stack.of(samples, self._collate)
        if self._stack is None:
            self._by_rows = False
            return
        places = itertools.count()
        self._places = [np.array([_NOWHERE if each is _SKIPPED else next(places) for each in block]) for block in kept]
        self._kept = {}

    def _picked(self, stack: Stack, size: int, epoch: int | None, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, each picked with one look."""
        groups, order = self._plan(epoch)
        together = [np.concatenate([self._places[number] for number in group]) for group in groups]
        rows = torch.from_numpy(np.concatenate([places[order(len(places))] for places in together]))
        gaps = bool((rows < 0).any())
        for at in range(start * size, len(rows), size):
            wanted = self._part(rows[at : at + size])
            found = wanted[wanted >= 0] if gaps else wanted
            yield Batch(stack.take(found), len(found)) if len(found) else Batch(None, 0)


def ahead(function: Callable[[_In], _Out], items: Iterable[_In], threads: int, depth: int) -> Iterator[_Out]:
    """Yield what a function makes of each item; threads are ahead, each by so many items."""
    with ThreadPoolExecutor(threads, thread_name_prefix="superduper-training-reader") as pool:
        coming: deque[Future[_Out]] = deque()
        try:
            for item in items:
                coming.append(pool.submit(function, item))
                if len(coming) > depth * threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
