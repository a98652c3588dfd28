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
from collections.abc import Mapping
from typing import Any, Final

from bson import Timestamp
from pymongo.change_stream import ChangeStream

from superduper_nb.errors import DeadlineError
from superduper_nb.search.contents import Contents
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.keeper import Keeper
from superduper_nb.search.source import Source
from superduper_nb.search.stream import Changes, CollectionGoneError, News, may_resume

__all__ = ["LiveIndex"]

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.5


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
        self.version, self._source, self._keeper = source.version, source, keeper
        self._contents, self._changes = Contents(index, source), Changes(source)
        self._seen = Timestamp(0, 0)
        self._moment = object()
        self._resume: Mapping[str, Any] | None = None
        self._ready_at: Timestamp | None = None
        self._behind = False
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
            self._keeper.close(self.index, self._resume, self._contents.skipped.values())

    def discard_snapshot(self) -> None:
        """Remove the file, so that the next one is loaded from MongoDB."""
        if self._keeper is not None:
            self._keeper.discard()

    @property
    def index(self) -> VectorIndex:
        """What there is to search in."""
        return self._contents.index

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

    def moment(self) -> object | None:
        """Return an object that stays while nothing in the collection changes; None where that is not known."""
        if self._source.is_sharded:
            return None  # what a mongos says of the time is not that of its shards
        now = self._source.now()
        with self._moved:
            return self._moment if self._fresh(now) else None  # else there may be changes on their way here

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
            "skipped": len(self._contents.skipped),
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
                    for news in self._changes.told(stream, self._stop):
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
        self._contents.restore(saved.rows, saved.skipped)
        self._resume, self._ready_at = saved.token, now

    def _lost(self, error: Exception, *, ready: bool) -> None:
        with self._moved:
            self._error, self._ready, self._moment = error, ready, object()

    def _watch(self, resume: Mapping[str, Any] | None) -> ChangeStream[dict[str, Any]]:
        return self._changes.opened(resume)

    def _load(self) -> None:
        if self._keeper is not None:
            self._keeper.begin()
        if self._contents.load(self._stop):
            # What was read first may have changed before the last was read: whole when the stream has come to here.
            self._ready_at = self._source.now()

    def _apply(self, news: News) -> None:
        if len(news):
            self._contents.apply(news)
            if self._keeper is not None:
                self._keeper.changed(len(news))

    def _advance(self, news: News) -> None:
        with self._moved:
            if news.last:
                self._moment = object()
            self._seen, self._error, self._behind = max(news.seen, self._seen), None, not news.drained
            if self._ready_at is not None and self._seen >= self._ready_at:
                self._ready, self._ready_at = True, None
            self._moved.notify_all()
        if self._keeper is not None and self._ready:
            self._keeper.keep(self.index, news.token, self._contents.skipped.values())
