"""An index that follows its collection: loaded by one query, kept up by a change stream.

The stream is opened before the query runs, so no change falls between them. An event only says which document changed;
the document is then read again as it was at the time of that event, which either gives its vector or says that it is
out. So events may come twice or late: the index always moves from what the collection held at one moment to what it
held at another, and an answer is never a mixture of two.

An index belongs to one model version. Where a newer version has computed a document anew, the vector of the older one
stays, so that the old index is whole until the new one is; it goes when the document itself changes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Final

import bson
import numpy as np
from bson import Timestamp
from pymongo.change_stream import ChangeStream
from toolz import partition_all

from superduper_nb.errors import DeadlineError
from superduper_nb.search.ids import id_key, id_keys, unpacked_id
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.keeper import Keeper
from superduper_nb.search.measures import Floats
from superduper_nb.search.source import BATCH, Source, is_private
from superduper_nb.search.stream import CollectionGoneError, News, may_resume, time_of
from superduper_nb.search.vectors import blocks_of, stored_vector

__all__ = ["LiveIndex"]

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.5
_GONE: Final = ("drop", "rename", "dropDatabase", "invalidate")


class LiveIndex:
    """The vectors of one model version on one key of a collection, always up to date.

    Parameters
    ----------
    index : VectorIndex
        Empty; filled and kept by this.
    source : Source
        Whose outputs.
    keeper : Keeper, optional
        Of its snapshot.
    """

    def __init__(self, index: VectorIndex, source: Source, *, keeper: Keeper | None = None) -> None:
        self.index, self.version, self._source, self._keeper = index, source.version, source, keeper
        self._skipped: dict[Any, Any] = {}
        self._seen = Timestamp(0, 0)
        self._resume: Mapping[str, Any] | None = None
        self._ready_at: Timestamp | None = None
        self._gone: Timestamp | None = None
        self._ahead = self._behind = False
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._ready = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name=f"index {self._source.path}", daemon=True)

    # --- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load, in a thread of its own."""
        self._thread.start()

    def close(self, *, keep: bool = False) -> None:
        """Stop following; leave a snapshot if it is to be kept."""
        with self._moved:
            self._stop.set()
            self._moved.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        if keep and self._keeper is not None and self.ready and self._resume and not self._thread.is_alive():
            self._keeper.close(self.index, self._resume, self._skipped.values())

    def discard_snapshot(self) -> None:
        """Remove the file, so that the next one is loaded from MongoDB."""
        if self._keeper is not None:
            self._keeper.discard()

    @property
    def ready(self) -> bool:
        """It is loaded and follows its collection."""
        return self._ready and self._error is None

    @property
    def size(self) -> int:
        """Vectors in it."""
        return len(self.index)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.index.nbytes

    def seeing(self, after: Timestamp | None, timeout: float) -> VectorIndex:
        """Return what to search in, once it has seen the writes up to `after`; raises as `wait` does."""
        self.wait(after, timeout)
        return self.index

    def wait(self, after: Timestamp | None, timeout: float) -> None:
        """Wait until it is loaded, follows its collection, and has seen the writes up to `after`.

        Raises
        ------
        DeadlineError
            It took longer than `timeout` seconds: rather no answer than a stale one.
        """
        with self._moved:
            if self._moved.wait_for(lambda: self._stop.is_set() or self._fresh(after), timeout):
                return
            why = f" ({type(self._error).__name__}: {self._error})" if self._error else ""
            state = "behind its collection" if self._ready else "still loading"
        raise DeadlineError(f"The index is {state} after {timeout:g} s{why}. It goes on by itself: try again.")

    def _fresh(self, after: Timestamp | None) -> bool:
        return self.ready and (after is None or self._seen >= after)

    def older_left(self) -> bool:
        """Say whether there are documents that only an older version has computed."""
        return self._source.older_left()

    def describe(self) -> dict[str, Any]:
        """Say how large, how fresh and in what state it is."""
        loading = "loading" if self._error is None else "rebuilding"
        return {
            "state": ("ready" if self._error is None else "behind") if self._ready else loading,
            "size": len(self.index),
            "dimension": self.index.dimension,
            "kind": self.index.kind,
            "measure": self.index.measure.name,
            "bytes": self.index.nbytes,
            "memory": self.index.memory,
            "skipped": len(self._skipped),
            "snapshot": "none" if self._keeper is None else self._keeper.state,
            "model_version": self.version,
            "cluster_time": self._seen,
            "lag_s": max(0.0, time.time() - self._seen.time) if self._error or self._behind else 0.0,
        }

    # --- the thread ----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        restored = False
        while not self._stop.is_set():
            try:
                if not restored:
                    self._restore()
                    restored = True
                with self._watch(self._resume) as stream:
                    if self._resume is None:
                        self._load()
                    for news in self._events(stream):
                        self._apply(news)
                        self._resume = news.token
                        self._advance(news)
            except CollectionGoneError as error:
                self._resume = None
                self.discard_snapshot()
                self._lost(error, ready=False)
            except Exception as error:  # whatever it is, the index must come back
                if not may_resume(error):
                    self._resume = None
                self._lost(error, ready=self._ready and self._resume is not None)
                log.warning(
                    "Index %s lost its change stream (%s); it comes back.", self._source.path, type(error).__name__
                )
                self._stop.wait(_PAUSE_S)

    def _restore(self) -> None:
        """Begin from the snapshot, where there is one; it is ready when it has seen all that is there by now."""
        if self._keeper is None or (saved := self._keeper.restore()) is None:
            return
        now = self._source.now()
        self.index = self.index.anew(saved.rows)
        self._skipped = {id_key(id): id for id in saved.skipped}
        self._resume, self._ready_at = saved.token, now

    def _lost(self, error: Exception, *, ready: bool) -> None:
        with self._moved:
            self._error, self._ready = error, ready

    def _watch(self, resume: Mapping[str, Any] | None) -> ChangeStream[dict[str, Any]]:
        self._ahead = False
        return self._source.watch(resume, None if resume else self._begin())

    def _begin(self) -> Timestamp:
        """Return when a new stream begins.

        Left to itself it would begin one tick in the future and say so by its first token, which would then pass for
        having seen a write of that very tick. From a time that has been, a token means what it says.
        """
        now = self._source.now()
        # Where nothing has happened since the collection was dropped, a stream from now would see that again, and end.
        self._ahead = now == self._gone
        return Timestamp(now.time, now.inc + 1) if self._ahead else now

    def _events(self, stream: ChangeStream[dict[str, Any]]) -> Iterator[News]:
        """Yield what changed, and up to when; that nothing changed is news too."""
        future = stream.resume_token if self._ahead else None
        while not self._stop.is_set() and stream.alive:
            news = News()
            event = stream.try_next()
            while event is not None:
                self._note(event, news)
                news.drained = len(news) < BATCH
                event = stream.try_next() if news.drained else None
            news.token = stream.resume_token
            news.drained = news.drained and news.token != future
            if news.token is not None:
                yield news

    def _note(self, event: Mapping[str, Any], news: News) -> None:
        if event["operationType"] in _GONE:
            self._gone = event["clusterTime"]
            raise CollectionGoneError(f"the collection saw {event['operationType']!r}")
        id, news.at = event["documentKey"]["_id"], event["clusterTime"]
        if event["operationType"] != "update":
            news.changed.append(id)
            return
        fields = [f"{name}." for name in (*event.get("updated", ()), *event.get("removed", ()))]
        if any(map(self._source.is_content, fields)):
            news.changed.append(id)
        elif any(map(is_private, fields)):
            news.computed.append(id)

    def _load(self) -> None:
        fresh = self.index.anew(expected=self._source.expected())
        self._skipped.clear()
        if self._keeper is not None:
            self._keeper.begin()
        for batch in self._source.batches():
            self._put_batch(fresh, batch)
            if self._stop.is_set():
                return
        fresh.tend()
        # What was read first may have changed before the last was read: whole when the stream has come to here.
        self.index, self._ready_at = fresh, self._source.now()

    def _apply(self, news: News) -> None:
        if not len(news):
            return
        held = len(self.index)
        self._read_again(news.ids, news.at, older=set(map(id_key, news.computed)) - set(map(id_key, news.changed)))
        if held and not len(self.index):  # of another dimension than those that went, some were skipped
            for part in partition_all(BATCH, list(self._skipped.items())):
                self._read_again(dict(part), news.at)
        self.index.tend()
        if self._keeper is not None:
            self._keeper.changed(len(news))

    def _read_again(self, ids: Mapping[Any, Any], at: Timestamp, older: Set[Any] = frozenset()) -> None:
        """Move the index, in one step, to what these documents were at a time.

        Parameters
        ----------
        ids : mapping
            Identifiers by their keys.
        at : bson.Timestamp
        older : set
            Keys of those whose vectors stay where a newer version has computed them: their content is the same.
        """
        for key in ids:
            self._skipped.pop(key, None)
        found = self._source.as_of(at, list(ids.values()))
        newer = {id_key(document["_id"]) for document in found if self._source.version_of(document) > self.version}
        fitting, vectors = self._fitting(self.index, filter(self._source.is_current, found))
        stay = newer & older | set(map(id_key, fitting))
        self.index.change(fitting, vectors, [id for key, id in ids.items() if key not in stay])

    def _put_batch(self, index: VectorIndex, batch: bytes) -> None:
        blocks, rest = blocks_of(batch, self._source.path)
        for ids, vectors in blocks:
            self._put_block(index, ids, vectors)
        index.put(*self._fitting(index, (bson.decode(document, self._source.codec_options) for document in rest)))

    def _put_block(self, index: VectorIndex, ids: list[Any], vectors: Floats) -> None:
        fits = np.asarray(np.isfinite(vectors).all(axis=1))
        if index.measure.name == "cosine":
            fits &= vectors.any(axis=1)
        fits &= index.dimension in (None, vectors.shape[1])
        if not fits.all():
            odd = [unpacked_id(ids[i]) for i in np.flatnonzero(~fits).tolist()]
            self._skipped.update(zip(id_keys(odd), odd, strict=True))
            ids, vectors = [ids[i] for i in np.flatnonzero(fits).tolist()], vectors[fits]
        index.put_packed(ids, vectors)

    def _fitting(self, index: VectorIndex, documents: Iterable[Mapping[str, Any]]) -> tuple[list[Any], Floats]:
        """Return the identifiers and outputs of those documents whose outputs are vectors that fit."""
        ids: list[Any] = []
        vectors: list[Floats] = []
        for document in documents:
            id, vector = document["_id"], stored_vector(self._source.output(document))
            wanted = index.dimension or (len(vectors[0]) if vectors else None)
            if vector is None or wanted not in (None, len(vector)) or not self._has_direction(vector):
                self._skipped[id_key(id)] = id
                continue
            ids.append(id)
            vectors.append(vector)
        return ids, np.stack(vectors) if ids else np.empty((0, index.dimension or 0), dtype=np.float32)

    def _has_direction(self, vector: Floats) -> bool:
        return self.index.measure.name != "cosine" or bool(vector.any())

    def _advance(self, news: News) -> None:
        assert news.token is not None
        seen = time_of(news.token)
        if not news.drained:
            seen = Timestamp(seen.time, max(0, seen.inc - 1))
        with self._moved:
            self._seen, self._error, self._behind = max(seen, self._seen), None, not news.drained
            if self._ready_at is not None and self._seen >= self._ready_at:
                self._ready, self._ready_at = True, None
            self._moved.notify_all()
        if self._keeper is not None and self._ready:
            self._keeper.keep(self.index, news.token, self._skipped.values())
