"""An index that follows its collection: loaded by one query, kept up by a change stream.

The stream is opened before the query runs, so no change falls between them. An event only says which document changed;
the document is then read again with the very query that loaded the index, which either gives its vector or says that it
is out. So events may come twice, late or mixed with newer states: the index always moves to what the collection holds.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from bson import Timestamp
from bson.binary import Binary
from pymongo.change_stream import ChangeStream
from pymongo.collection import Collection
from pymongo.errors import PyMongoError
from toolz import partition_all

from superduper_nb.documents.paths import get_path, token_path
from superduper_nb.errors import DeadlineError
from superduper_nb.search.ids import id_key
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.measures import Floats

__all__ = ["LiveIndex"]

log = logging.getLogger(__name__)

_LOAD_BATCH: Final = 2000
_AWAIT_MS: Final = 25
_PAUSE_S: Final = 1.0
_STEP_WAIT_S: Final = 0.2

_HEADER: Final = b"\x27\x00"
"""Of a BSON binary vector (subtype 9): float32, no padding."""


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
    ) -> None:
        self.index, self.version = index, version
        self.skipped = 0
        self._collection = collection
        self._path = f"_outputs.{key}.{model}"
        token = token_path(model, key)
        self._query: dict[str, Any] = {f"{token}.v": version, f"{token}.error": {"$exists": False}}
        if filter:
            self._query = {"$and": [self._query, dict(filter)]}
        self._filtered = bool(filter)
        self._seen = Timestamp(0, 0)
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._loaded = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name=f"index {self._path}", daemon=True)

    # --- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._loaded.set()
        self._thread.join(timeout=5)

    def wait(self, after: Timestamp | None, timeout: float) -> None:
        """Wait until it is loaded and has seen the writes up to `after`.

        Raises
        ------
        DeadlineError
            It took longer than `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        if not self._loaded.wait(timeout):
            raise DeadlineError(f"The index was not loaded within {timeout:g} s; it goes on loading. Try again.")
        with self._moved:
            while after is not None and self._seen < after and not self._stop.is_set():
                if (
                    not self._moved.wait(max(0.0, min(deadline - time.monotonic(), 1.0)))
                    and time.monotonic() > deadline
                ):
                    raise DeadlineError(f"The index is more than {timeout:g} s behind the collection{self._why()}.")

    def _why(self) -> str:
        return f" ({type(self._error).__name__})" if self._error else ""

    def describe(self) -> dict[str, Any]:
        """Say how large, how fresh and in what state it is."""
        loaded = "ready" if self._loaded.is_set() else "loading"
        return {
            "state": loaded if self._error is None else "behind",
            "size": len(self.index),
            "dimension": self.index.dimension,
            "kind": "exact",
            "measure": self.index.measure.name,
            "bytes": self.index.nbytes,
            "skipped": self.skipped,
            "model_version": self.version,
            "cluster_time": self._seen,
        }

    # --- the thread ----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        resume: Mapping[str, Any] | None = None
        while not self._stop.is_set():
            try:
                with self._watch(resume) as stream:
                    if resume is None:
                        self._load()
                    for changed, token in self._events(stream):
                        self._read_again(changed)
                        resume = token
                        self._advance(token)
            except PyMongoError as error:
                if not error.has_error_label("ResumableChangeStreamError") and not _away(error):
                    resume = None  # the stream's history is gone, or the collection is: begin anew
                self._error = error
                log.warning("Index %s lost its change stream (%s); it comes back.", self._path, type(error).__name__)
                self._stop.wait(_PAUSE_S)

    def _watch(self, resume: Mapping[str, Any] | None) -> ChangeStream[dict[str, Any]]:
        names = {"$map": {"input": {"$objectToArray": "$updateDescription.updatedFields"}, "in": "$$this.k"}}
        pipeline = [
            {
                "$project": {
                    "operationType": 1,
                    "documentKey._id": 1,
                    "clusterTime": 1,
                    "updated": {"$cond": ["$updateDescription", names, []]},
                    "removed": "$updateDescription.removedFields",
                }
            }
        ]
        return self._collection.watch(pipeline, resume_after=resume, max_await_time_ms=_AWAIT_MS)

    def _events(self, stream: ChangeStream[dict[str, Any]]) -> Iterator[tuple[list[Any], Mapping[str, Any]]]:
        """Yield what changed, with the token up to which it did; nothing changed is news too."""
        while not self._stop.is_set() and stream.alive:
            changed: list[Any] = []
            event = stream.try_next()
            while event is not None:
                if event["operationType"] in ("drop", "rename", "invalidate"):
                    raise _CollectionGoneError(event["operationType"])
                if self._concerns(event):
                    changed.append(event["documentKey"]["_id"])
                event = stream.try_next() if len(changed) < _LOAD_BATCH else None
            if stream.resume_token is not None:
                yield changed, stream.resume_token

    def _concerns(self, event: Mapping[str, Any]) -> bool:
        if event["operationType"] != "update" or self._filtered:
            return True
        fields = [*event.get("updated", ()), *event.get("removed", ())]
        return any(f"{field}.".startswith(("_outputs.", "_sddb.")) for field in fields)

    def _load(self) -> None:
        fresh = VectorIndex(self.index.measure)
        found = self._collection.find(self._query, {self._path: 1}, batch_size=_LOAD_BATCH)
        for documents in partition_all(_LOAD_BATCH, found):
            self._put(fresh, documents)
            if self._stop.is_set():
                return
        self.index = fresh
        self._error = None
        self._loaded.set()

    def _read_again(self, ids: list[Any]) -> None:
        for part in partition_all(_LOAD_BATCH, ids):
            query = {"$and": [{"_id": {"$in": list(part)}}, self._query]}
            present = set(map(id_key, self._put(self.index, self._collection.find(query, {self._path: 1}))))
            self.index.remove([id for id in part if id_key(id) not in present])

    def _put(self, index: VectorIndex, documents: Iterable[dict[str, Any]]) -> list[Any]:
        ids: list[Any] = []
        vectors: list[Floats] = []
        for document in documents:
            vector = _vector(get_path(document, self._path, None))
            wanted = index.dimension or (len(vectors[0]) if vectors else None)
            if vector is None or wanted not in (None, len(vector)):
                self.skipped += 1
                continue
            ids.append(document["_id"])
            vectors.append(vector)
        if ids:
            index.put(ids, np.stack(vectors))
        return ids

    def _advance(self, token: Mapping[str, Any]) -> None:
        with self._moved:
            self._seen = _time_of(token)
            self._error = None
            self._moved.notify_all()


class _CollectionGoneError(PyMongoError):
    """The collection was dropped or renamed: what the index holds is void."""


def _away(error: PyMongoError) -> bool:
    from pymongo.errors import ConnectionFailure

    return isinstance(error, ConnectionFailure)


def _time_of(token: Mapping[str, Any]) -> Timestamp:
    """Read the cluster time in a resume token: the first eight bytes after the type byte of its key string.

    References
    ----------
    MongoDB source, ``src/mongo/db/pipeline/resume_token.h``.
    """
    data = bytes.fromhex(token["_data"][:18])
    return Timestamp(int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:9], "big"))


def _vector(value: Any) -> Floats | None:
    """Return a stored vector without building a Python object for each number."""
    if isinstance(value, Binary) and value.subtype == 9 and value[:2] == _HEADER:
        return np.frombuffer(value, dtype="<f4", offset=2)
    with contextlib.suppress(TypeError, ValueError):
        if isinstance(value, list) and value:
            array = np.asarray(value, dtype=np.float32)
            return array if array.ndim == 1 else None
    return None
