"""An index in parts, each in a Dask worker: searched side by side, merged exactly, made again when a worker is lost.

Which part a document is in is MongoDB's own hash of its ``_id``. Each part follows the collection by itself, as an
index in one piece does, so nothing has to be sent to it but searches: a part that is made again loads what is its own,
and a replica is one more of the same.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from bson import Timestamp

from superduper_nb.cluster.dask import DaskPool, WorkerLostError
from superduper_nb.errors import DeadlineError
from superduper_nb.search.hits import Hits
from superduper_nb.search.ids import sort_key
from superduper_nb.search.measures import Floats, Measure
from superduper_nb.search.parts import ASK_S, Part, Replica, Waiting
from superduper_nb.search.shard import Moment
from superduper_nb.search.spec import IndexSpec
from superduper_nb.search.subset import Subset

__all__ = ["ShardedIndex", "merged"]

log = logging.getLogger(__name__)

_GRACE_S: Final = 5.0
"""A worker that has not answered so long after it had to is lost."""


class ShardedIndex:
    """An index in parts; to the rest of search it is what a `LiveIndex` is.

    Parameters
    ----------
    pool : DaskPool
        Whose workers hold it.
    spec : IndexSpec
        Of the whole.
    """

    nbytes = 0
    """In this process."""

    def __init__(self, pool: DaskPool, spec: IndexSpec) -> None:
        self.version, self.measure, self._patient = spec.version, spec.measure, spec.options.lost == "wait"
        shards, copies = spec.options.shards, spec.options.replicas
        self._parts = [
            Part([Replica(pool, spec.part(i, shards), i + copy, keeps=not copy) for copy in range(copies)])
            for i in range(shards)
        ]
        self.extents: list[tuple[int, int | None]] = [(0, None)] * shards
        """Of each part, what it said last: vectors, and numbers a vector."""

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have all parts begin to load."""
        for part in self._parts:
            for replica in part.replicas:
                replica.begin()

    def close(self, *, keep: bool = False) -> None:
        """End all parts."""
        for part in self._parts:
            for replica in part.replicas:
                replica.close(keep=keep)

    def discard_snapshot(self) -> None:
        """Have the next one loaded from MongoDB."""
        self._everywhere("discard_snapshot")

    @property
    def ready(self) -> bool:
        """Every part has a copy that is loaded."""
        return _complete(self._described())

    @property
    def size(self) -> int:
        """Vectors, as far as is known."""
        return sum(size for size, _ in self.extents)

    def moment(self) -> object | None:
        """Return None: each part is at a moment of its own."""
        return None

    def older_left(self) -> bool:
        """Say whether there are documents that only an older version has computed."""
        return any(self._everywhere("older_left"))

    def describe(self) -> dict[str, Any]:
        """Say how it is, and how each part is."""
        parts = self._described()
        known = [each for part in parts for each in part if "size" in each]
        whole = dict(known[0]) if known else {"state": "loading", "measure": self.measure.name}
        first = [part[0] for part in parts if "size" in part[0]]
        whole |= {name: sum(each[name] for each in first) for name in ("size", "skipped")}
        whole |= {"bytes": sum(each["bytes"] for each in known)}
        if known:
            whole |= {"memory": _summed([each["memory"] for each in known])}
            whole |= {"cluster_time": min(each["cluster_time"] for each in known)}
            whole |= {"lag_s": max(each["lag_s"] for each in known)}
        whole["state"] = "ready" if _complete(parts) else "loading"
        brief = ("worker", "state", "size", "bytes")
        return whole | {"shards": [[{n: each[n] for n in brief if n in each} for each in part] for part in parts]}

    def _described(self) -> list[list[dict[str, Any]]]:
        found = iter(self._everywhere("describe"))
        return [[next(found) or {"state": "lost"} for _ in part.replicas] for part in self._parts]

    def _everywhere(self, method: str) -> list[Any]:
        """Call a method of every replica of every part; None stands for one that is lost, or still to be made."""
        replicas = [replica for part in self._parts for replica in part.replicas]
        return [_or_none(waiting) for waiting in [replica.call(method) for replica in replicas]]

    # --- search ------------------------------------------------------------------------------------------------------

    def seeing(self, after: Timestamp | None, timeout: float) -> _Look:
        """Return what one search sees; the parts wait for the writes up to `after` themselves."""
        if self.dimension is None:
            self.ask(after, timeout, "extent")
        return _Look(self, after, timeout)

    @property
    def dimension(self) -> int | None:
        """Numbers a vector, as far as is known."""
        return next((dimension for _, dimension in self.extents if dimension is not None), None)

    def ask(self, after: Timestamp | None, timeout: float, method: str, *args: Any) -> list[Any]:
        """Call a method of every part; None stands for one that was lost and is not waited for.

        Raises
        ------
        DeadlineError
            A part did not answer in time.
        """
        end = time.monotonic() + timeout
        waiting = [
            part.ask(method, Moment(after, timeout, self._patient or not part.was_lost), *args) for part in self._parts
        ]
        try:
            answers = [each(max(0.0, end - time.monotonic()) + _GRACE_S) for each in waiting]
        except WorkerLostError as error:
            raise DeadlineError(f"A shard was lost twice: {error} It is loaded again: try again.") from None
        self.extents = [
            old if answer is None else answer.extent for answer, old in zip(answers, self.extents, strict=True)
        ]
        return [answer and answer.value for answer in answers]


class _Look:
    """A `ShardedIndex` for the length of one search.

    Attributes
    ----------
    missing : int
        Parts that did not answer.
    """

    def __init__(self, shards: ShardedIndex, after: Timestamp | None, timeout: float) -> None:
        self._shards, self._after, self._timeout = shards, after, timeout
        self.measure: Measure = shards.measure
        self.missing = 0

    def __len__(self) -> int:
        return self._shards.size

    @property
    def dimension(self) -> int | None:
        """Numbers a vector; None while it is empty."""
        return self._shards.dimension

    def search(
        self, query: Floats, n: int, *, among: Subset | None = None, exact: bool = False, unusual: bool = False
    ) -> Hits:
        """Return the `n` nearest, of all or `among` some identifiers."""
        return self._searched([query], n, None if among is None else among.ids, exact=exact, unusual=unusual)[0]

    def search_many(self, queries: Sequence[Floats], n: int, *, exact: bool = False) -> list[Hits]:
        """Return the `n` nearest of each query."""
        return self._searched(queries, n, None, exact=exact)

    def _searched(
        self, queries: Sequence[Floats], n: int, among: list[Any] | None, *, exact: bool, unusual: bool = False
    ) -> list[Hits]:
        answers = self._answers("search", queries, n, among, exact, unusual)
        return [merged(parts, n) for parts in zip(*answers, strict=True)]

    def vector(self, id: Any) -> Floats | None:
        """Return the vector of an identifier, or None."""
        _, vectors = self.vectors([id])
        return vectors[0] if len(vectors) else None

    def vectors(self, ids: Sequence[Any]) -> tuple[list[int], Floats]:
        """Return the positions of the identifiers that are there, and their vectors."""
        found = [(places, vectors) for places, vectors in self._answers("vectors", ids) if places]
        if not found:
            return [], np.empty((0, 0), dtype=np.float32)
        places = np.concatenate([places for places, _ in found])
        order = np.argsort(places)
        return places[order].tolist(), np.concatenate([vectors for _, vectors in found])[order]

    def _answers(self, method: str, *args: Any) -> list[Any]:
        """Return what the parts say that are there."""
        found = self._shards.ask(self._after, self._timeout, method, *args)
        answers = [answer for answer in found if answer is not None]
        self.missing = max(self.missing, len(found) - len(answers))
        if not answers:
            raise DeadlineError("No shard of the index is there: all are being loaded again. Try again.")
        return answers


def merged(parts: Sequence[Hits], n: int) -> Hits:
    """Return the best `n` of what parts found, best first, ties by ``_id``: exactly what the whole would have found."""
    found = [
        (-score, sort_key(id), id, distance)
        for hits in parts
        for id, score, distance in zip(
            hits.ids,
            hits.scores.tolist(),
            [0.0] * len(hits.ids) if hits.distances is None else hits.distances.tolist(),
            strict=True,
        )
    ]
    best = sorted(found, key=lambda hit: hit[:2])[:n]
    exactly = all(hits.distances is None for hits in parts)
    return Hits(
        [id for _, _, id, _ in best],
        np.array([-score for score, *_ in best]),
        None if exactly else np.array([distance for *_, distance in best]),
        next((hits.kind for hits in parts if hits.kind != "exact"), "exact"),
        sum(hits.candidates for hits in parts),
    )


def _complete(parts: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    return all(any(each["state"] == "ready" for each in part) for part in parts)


def _or_none(waiting: Waiting) -> Any:
    with contextlib.suppress(WorkerLostError):
        return waiting(ASK_S)
    return None


def _summed(rows: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in rows[0]}
