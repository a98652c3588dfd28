"""Keeps an index's snapshot: which file it is, when it is written, whether it may be believed.

The file's checksums say that it is whole. That it belongs to what MongoDB holds *now* takes more: the database may have
been restored from a backup or copied since. So MongoDB vouches for it: each snapshot has a stamp, which is written to
``_sddb.snapshots`` before the file takes its name, and a file whose stamp is not there is discarded. A database that
knows the stamp has the snapshot in its past, so its change stream leads from there to now, or says that it can not.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import threading
import time
import uuid
from collections.abc import Collection as Several
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure, OperationFailure
from pymongo.write_concern import WriteConcern

from superduper_nb.search.index import VectorIndex
from superduper_nb.search.rows import View
from superduper_nb.search.snapshots import BadSnapshotError, Snapshot, read_snapshot, remove_graphs, write_snapshot

__all__ = ["Keeper", "default_folder"]

log = logging.getLogger(__name__)

_FORMAT: Final = 3
_RECORDS: Final = "_sddb.snapshots"
_WORTH: Final = 2_000_000
"""Numbers (rows x dimension) from which a snapshot is quicker than to load from MongoDB."""
_CHANGED_SHARE: Final = 0.2
_CHANGED_AT_CLOSE: Final = 1000
_EVERY_S: Final = 60.0
_UNUSED_S: Final = 90 * 86400.0
_ABANDONED_S: Final = 3600.0
_OLD_S: Final = 3600.0
"""A snapshot this old is written anew at close, so that its place in the change stream is not forgotten."""


def default_folder() -> Path:
    """Return where snapshots are: in the user's data folder."""
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "superduper_nb" / "indexes"


class Keeper:
    """The snapshot of one index.

    Parameters
    ----------
    folder : pathlib.Path
        Where the files are.
    collection : pymongo.collection.Collection
        Whose documents the index is of.
    index : str
        Its name.
    identity : mapping
        What else a snapshot has to be of: definition, measure, model version.
    """

    def __init__(
        self, folder: Path, collection: Collection[dict[str, Any]], index: str, identity: Mapping[str, Any]
    ) -> None:
        self._folder, self._collection, self._index = folder, collection, index
        self._given = {"format": _FORMAT, "index": index, **identity}
        majority = WriteConcern("majority")
        self._records: Collection[dict[str, Any]] = collection.database.get_collection(_RECORDS, write_concern=majority)
        self._identity: dict[str, Any] | None = None
        self._changed = 0
        self._written: float | None = None
        self._next = 0.0
        self._writer: threading.Thread | None = None
        self.state = "none"

    # --- from the file -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Find out which collection it is now: one that was dropped and made again is another."""
        listed: list[Mapping[str, Any]] = []
        with contextlib.suppress(OperationFailure):  # not allowed to know: no snapshots then
            listed = list(self._collection.database.list_collections(filter={"name": self._collection.name}))
        of = listed[0].get("info", {}).get("uuid") if listed else None
        self._identity = None if of is None else {"collection": bytes(of), **self._given}
        self._written, self._changed = None, 0

    def restore(self) -> Snapshot | None:
        """Return the snapshot that leads to what MongoDB holds now; discard any other."""
        self.begin()
        if self._identity is None:
            return None
        try:
            found = read_snapshot(self._path, self._identity, self._collection.codec_options)
            if self._records.find_one({"_id": found.stamp}) is None:
                raise BadSnapshotError("MongoDB does not know it")
        except FileNotFoundError:
            return None
        except ConnectionFailure:
            raise
        except Exception as error:  # whatever a damaged file leads to
            log.warning("The snapshot of index %r is discarded (%s); it is loaded from MongoDB.", self._index, error)
            self.discard()
            return None
        self._written, self.state = self._path.stat().st_mtime, "restored"
        return found

    def discard(self) -> None:
        """Remove the file."""
        if self._identity is not None:
            self._path.unlink(missing_ok=True)
            remove_graphs(self._path)
        self.state = "none"

    @property
    def _path(self) -> Path:
        assert self._identity is not None
        return self._folder / f"{self._identity['collection'].hex()}-{_short(self._index.encode())}.index"

    # --- to the file -------------------------------------------------------------------------------------------------

    def changed(self, count: int) -> None:
        """Note that so many documents have changed."""
        self._changed += count

    def keep(self, index: VectorIndex, token: Mapping[str, Any], skipped: Several[Any]) -> None:
        """Write in the background, if enough has changed since the last time."""
        enough = self._written is None or self._changed > _CHANGED_SHARE * len(index) + _CHANGED_AT_CLOSE
        if not (enough or index.has_new_graph) or time.monotonic() < self._next or index.tending or self._writing():
            return
        if (view := self._worth(index)) is None:
            return
        self._next = time.monotonic() + _EVERY_S
        self._writer = threading.Thread(
            target=self._write, args=(view, token, list(skipped)), name=f"snapshot {self._index}", daemon=True
        )
        self._writer.start()

    def close(self, index: VectorIndex, token: Mapping[str, Any], skipped: Several[Any]) -> None:
        """Write what has changed since the last time."""
        if self._writer is not None:
            self._writer.join()
        fresh = self._written is not None and time.time() - self._written < _OLD_S
        same = self._changed <= _CHANGED_AT_CLOSE and not index.has_new_graph
        if (fresh and same) or (view := self._worth(index)) is None:
            return
        self._write(view, token, list(skipped))

    def _writing(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def _worth(self, index: VectorIndex) -> View | None:
        view = None if self._identity is None else index.view()
        return view if view is not None and view.count * view.rows.vectors.shape[1] >= _WORTH else None

    def _write(self, view: View, token: Mapping[str, Any], skipped: list[Any]) -> None:
        identity, path, since = self._identity, self._path, self._changed
        assert identity is not None
        stamp = uuid.uuid4().hex
        file = f"{socket.gethostname()} {path}"
        try:
            record = {"_id": stamp, "file": _short(file.encode()), "index": self._index, "at": datetime.now(UTC)}
            self._records.insert_one(record)
            write_snapshot(
                path, Snapshot(identity, stamp, token, skipped, view.rows), view, self._collection.codec_options
            )
            self._records.delete_many({"file": record["file"], "_id": {"$ne": stamp}})
        except Exception as error:  # a full disk, no MongoDB: the one before is still there
            self.state = f"failed: {type(error).__name__}: {error}"
            log.warning("The snapshot of index %r was not written: %s", self._index, error)
            return
        self._written, self.state = time.time(), "written"
        self._changed -= since
        _tidy(self._folder)


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _tidy(folder: Path) -> None:
    """Remove what crashes left, and snapshots of collections that nobody has asked about for months."""
    for pattern, age in ((".*.part", _ABANDONED_S), ("*.index", _UNUSED_S), ("*.graph", _ABANDONED_S)):
        for path in folder.glob(pattern):
            try:
                if time.time() - path.stat().st_mtime > age and not _has_index(path):
                    path.unlink()
            except OSError:
                continue


def _has_index(path: Path) -> bool:
    """Say whether this is a graph whose snapshot is there."""
    return path.suffix == ".graph" and path.with_name(f"{path.stem.rpartition('-')[0]}.index").exists()
