"""What a change stream tells an index: which documents, and up to when."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Timestamp
from pymongo.change_stream import ChangeStream
from pymongo.errors import ConnectionFailure, PyMongoError

from superduper_nb.search.ids import id_keys
from superduper_nb.search.source import BATCH, Source, is_private

__all__ = ["Changes", "CollectionGoneError", "News", "may_resume"]

_GONE: Final = ("drop", "rename", "dropDatabase", "invalidate")


@dataclass(slots=True)
class News:
    """What the stream told since the last time.

    Attributes
    ----------
    changed : list
        Documents whose own content may have changed.
    computed : list
        Documents of which only outputs changed.
    last : mapping
        The token of the last of these changes.
    token : mapping
        Up to where.
    drained : bool
        Everything up to the token has been read; else more may have happened at its very time.
    """

    changed: list[Any] = field(default_factory=list)
    computed: list[Any] = field(default_factory=list)
    last: Mapping[str, Any] = field(default_factory=dict)
    token: Mapping[str, Any] = field(default_factory=dict)
    drained: bool = True

    def __len__(self) -> int:
        return len(self.changed) + len(self.computed)

    @property
    def ids(self) -> dict[Any, Any]:
        """Each document once, by the key of its identifier."""
        ids = [*self.changed, *self.computed]
        return dict(zip(id_keys(ids), ids, strict=True))

    @property
    def at(self) -> Timestamp:
        """When the last of the changes was made."""
        return _time_of(self.last)

    @property
    def seen(self) -> Timestamp:
        """Up to when everything is told."""
        until = _time_of(self.token)
        return until if self.drained else Timestamp(until.time, max(0, until.inc - 1))


class CollectionGoneError(Exception):
    """The collection was dropped or renamed: what the index holds is void."""


class Changes:
    """The changes of a source, as news.

    Parameters
    ----------
    source : Source
        Of what.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._gone: Timestamp | None = None
        self._ahead = False

    def opened(self, resume: Mapping[str, Any] | None) -> ChangeStream[dict[str, Any]]:
        """Open the stream, behind a token or from now on."""
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

    def told(self, stream: ChangeStream[dict[str, Any]], stop: threading.Event) -> Iterator[News]:
        """Yield what changed, and up to when; that nothing changed is news too."""
        future = stream.resume_token if self._ahead else None
        while not stop.is_set() and stream.alive:
            news = News()
            event = stream.try_next()
            while event is not None:
                self._note(event, news)
                news.drained = len(news) < BATCH
                event = stream.try_next() if news.drained else None
            news.token = stream.resume_token or {}
            news.drained = news.drained and news.token != future
            if news.token:
                yield news

    def _note(self, event: Mapping[str, Any], news: News) -> None:
        kind = event["operationType"]
        if kind in _GONE:
            self._gone = _time_of(event["_id"])
            raise CollectionGoneError(f"the collection saw {kind!r}")
        news.last = event["_id"]
        if kind != "update":
            news.changed.append(event["id"])
            return
        fields = [f"{name}." for name in (*event.get("updated", ()), *event.get("removed", ()))]
        if any(map(self._source.is_content, fields)):
            news.changed.append(event["id"])
        elif any(map(is_private, fields)):
            news.computed.append(event["id"])


def may_resume(error: Exception) -> bool:
    """Say whether a stream that ended so goes on where it was."""
    if not isinstance(error, PyMongoError):
        return False
    return isinstance(error, ConnectionFailure) or error.has_error_label("ResumableChangeStreamError")


def _time_of(token: Mapping[str, Any]) -> Timestamp:
    """Read the cluster time in a resume token: the first eight bytes after the type byte of its key string.

    References
    ----------
    MongoDB source, ``src/mongo/db/pipeline/resume_token.h``.
    """
    data = bytes.fromhex(token["_data"][:18])
    return Timestamp(int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:9], "big"))
