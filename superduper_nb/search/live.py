"""An index that follows its collection: loaded by one query, kept up by a change stream.

The stream is opened before the query runs, so no change falls between them. An event only says which document changed;
the document is then read again, as the query that loaded the index read it, which either gives its vector or says that
it is out. So events may come twice, late or mixed with newer states: the index always moves to what the collection
holds.

An index belongs to one model version. Where a newer version has computed a document anew, the vector of the older one
stays, so that the old index is whole until the new one is; it goes when the document itself changes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import bson
import numpy as np
from bson import Timestamp
from pymongo import ReadPreference
from pymongo.change_stream import ChangeStream
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern
from toolz import partition_all

from superduper_nb.documents.paths import BASE, get_path, output_path, token_path
from superduper_nb.errors import DeadlineError
from superduper_nb.search.ids import id_key
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.keeper import Keeper
from superduper_nb.search.measures import Floats
from superduper_nb.search.stream import PIPELINE, CollectionGoneError, News, may_resume, time_of
from superduper_nb.search.vectors import block_of, stored_vector

__all__ = ["LiveIndex"]

log = logging.getLogger(__name__)

_BATCH: Final = 2000
_AWAIT_MS: Final = 25
_PAUSE_S: Final = 0.5
_GONE: Final = ("drop", "rename", "dropDatabase", "invalidate")
_PRIVATE: Final = ("_outputs.", "_sddb.")


class LiveIndex:
    """The vectors of one model version on one key of a collection, always up to date.

    Parameters
    ----------
    index : VectorIndex
        Empty; filled and kept by this.
    collection : pymongo.collection.Collection
        Where the documents are.
    model, key, version
        Whose outputs.
    filter : mapping
        Only documents that match it.
    keeper : Keeper, optional
        Of its snapshot.
    """

    def __init__(
        self,
        index: VectorIndex,
        collection: Collection[dict[str, Any]],
        *,
        model: str,
        key: str,
        version: int,
        filter: Mapping[str, Any],
        keeper: Keeper | None = None,
    ) -> None:
        self.index, self.version, self._keeper = index, version, keeper
        self._skipped: dict[Any, Any] = {}
        # Of the primary and majority-committed, as the stream is: nothing that could be rolled back.
        self._collection = collection.with_options(
            read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("majority")
        )
        self._key, self._path, self._token = key, output_path(key, model), token_path(model, key)
        self._filter = dict(filter)
        self._seen = Timestamp(0, 0)
        self._resume: Mapping[str, Any] | None = None
        self._ready_at: Timestamp | None = None
        self._gone: Timestamp | None = None
        self._ahead = False
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._ready = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name=f"index {self._path}", daemon=True)

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
        query = self._with_filter({f"{self._token}.v": {"$lt": self.version}})
        return self._collection.find_one(query, {"_id": 1}) is not None

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
            "lag_s": max(0.0, time.time() - self._seen.time) if self._error else 0.0,
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
                log.warning("Index %s lost its change stream (%s); it comes back.", self._path, type(error).__name__)
                self._stop.wait(_PAUSE_S)

    def _restore(self) -> None:
        """Begin from the snapshot, where there is one; it is ready when it has seen all that is there by now."""
        if self._keeper is None or (saved := self._keeper.restore()) is None:
            return
        now: Timestamp = self._collection.database.command("ping")["operationTime"]
        self.index = self.index.anew(saved.rows)
        self._skipped = {id_key(id): id for id in saved.skipped}
        self._resume, self._ready_at = saved.token, now

    def _lost(self, error: Exception, *, ready: bool) -> None:
        with self._moved:
            self._error, self._ready = error, ready

    def _watch(self, resume: Mapping[str, Any] | None) -> ChangeStream[dict[str, Any]]:
        self._ahead = False
        begin = None if resume else self._begin()
        return self._collection.watch(
            PIPELINE,
            resume_after=resume,
            start_at_operation_time=begin,
            max_await_time_ms=_AWAIT_MS,
        )

    def _begin(self) -> Timestamp:
        """Return when a new stream begins.

        Left to itself it would begin one tick in the future and say so by its first token, which would then pass for
        having seen a write of that very tick. From a time that has been, a token means what it says.
        """
        now: Timestamp = self._collection.database.command("ping")["operationTime"]
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
                news.drained = len(news) < _BATCH
                event = stream.try_next() if news.drained else None
            news.token = stream.resume_token
            news.drained = news.drained and news.token != future
            if news.token is not None:
                yield news

    def _note(self, event: Mapping[str, Any], news: News) -> None:
        if event["operationType"] in _GONE:
            self._gone = event["clusterTime"]
            raise CollectionGoneError(f"the collection saw {event['operationType']!r}")
        id = event["documentKey"]["_id"]
        if event["operationType"] != "update":
            news.changed.append(id)
            return
        fields = [f"{name}." for name in (*event.get("updated", ()), *event.get("removed", ()))]
        if any(self._is_content(name) for name in fields):
            news.changed.append(id)
        elif any(name.startswith(_PRIVATE) for name in fields):
            news.computed.append(id)

    def _is_content(self, name: str) -> bool:
        """Say whether a field (with a dot behind it) can change what the vector is made of, or the filter."""
        if name.startswith(_PRIVATE):
            return False
        key = f"{self._key}."
        return bool(self._filter) or self._key == BASE or name.startswith(key) or key.startswith(name)

    def _load(self) -> None:
        fresh = self.index.anew()
        self._skipped.clear()
        self._ready_at = None
        if self._keeper is not None:
            self._keeper.begin()
        query = self._with_filter({f"{self._token}.v": self.version, f"{self._token}.error": {"$exists": False}})
        # The bytes of many documents at a time: what it yields is not what its annotation says.
        for batch in self._collection.find_raw_batches(query, {"v": f"${self._path}"}, batch_size=_BATCH):
            self._put_batch(fresh, cast("bytes", batch))
            if self._stop.is_set():
                return
        fresh.tend()
        with self._moved:
            self.index, self._ready, self._error = fresh, True, None
            self._moved.notify_all()

    def _with_filter(self, query: dict[str, Any]) -> dict[str, Any]:
        return {"$and": [query, self._filter]} if self._filter else query

    def _apply(self, news: News) -> None:
        for part in partition_all(_BATCH, news.changed):
            self._read_again(part, keep_older=False)
        for part in partition_all(_BATCH, news.computed):
            self._read_again(part, keep_older=True)
        if len(news):
            self.index.tend()
            if self._keeper is not None:
                self._keeper.changed(len(news))

    def _read_again(self, ids: Sequence[Any], *, keep_older: bool) -> None:
        """Move the index to what these documents are now.

        Parameters
        ----------
        keep_older : bool
            Leave the vectors of those that a newer version has computed: their content is the same.
        """
        for key in map(id_key, ids):
            self._skipped.pop(key, None)
        found = list(self._collection.find(self._with_filter({"_id": {"$in": list(ids)}}), self._fields()))
        mine = [(document["_id"], get_path(document, self._path)) for document in found if self._mine(document)]
        present = set(map(id_key, self._put(self.index, mine)))
        if keep_older:
            present |= {id_key(document["_id"]) for document in found if self._version_of(document) > self.version}
        self.index.remove([id for id in ids if id_key(id) not in present])

    def _fields(self) -> dict[str, int]:
        return {self._path: 1, self._token: 1}

    def _mine(self, document: Mapping[str, Any]) -> bool:
        return self._version_of(document) == self.version and get_path(document, f"{self._token}.error", None) is None

    def _version_of(self, document: Mapping[str, Any]) -> int:
        version = get_path(document, f"{self._token}.v", None)
        return version if isinstance(version, int) else 0

    def _put_batch(self, index: VectorIndex, batch: bytes) -> None:
        block = block_of(batch)
        if block is not None:
            ids, vectors = block
            fits = index.dimension in (None, vectors.shape[1]) and np.isfinite(vectors).all()
            if fits and (self.index.measure.name != "cosine" or vectors.any(axis=1).all()):
                index.put_packed(ids, vectors)
                return
        documents = bson.decode_all(batch, self._collection.codec_options)
        self._put(index, [(document["_id"], document.get("v")) for document in documents])

    def _put(self, index: VectorIndex, outputs: Iterable[tuple[Any, Any]]) -> list[Any]:
        """Add outputs by identifier; return the identifiers of those that are vectors that fit."""
        ids: list[Any] = []
        vectors: list[Floats] = []
        for id, output in outputs:
            vector = stored_vector(output)
            wanted = index.dimension or (len(vectors[0]) if vectors else None)
            if vector is None or wanted not in (None, len(vector)) or not self._has_direction(vector):
                self._skipped[id_key(id)] = id
                continue
            ids.append(id)
            vectors.append(vector)
        if ids:
            index.put(ids, np.stack(vectors))
        return ids

    def _has_direction(self, vector: Floats) -> bool:
        return self.index.measure.name != "cosine" or bool(vector.any())

    def _advance(self, news: News) -> None:
        assert news.token is not None
        seen = time_of(news.token)
        if not news.drained:
            seen = Timestamp(seen.time, max(0, seen.inc - 1))
        with self._moved:
            self._seen, self._error = max(seen, self._seen), None
            if self._ready_at is not None and self._seen >= self._ready_at:
                self._ready, self._ready_at = True, None
            self._moved.notify_all()
        if self._keeper is not None and self._ready:
            self._keeper.keep(self.index, news.token, self._skipped.values())
