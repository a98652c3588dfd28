"""Cursors: pymongo's, whose documents come decoded, and in the order of a search where there was one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pymongo.command_cursor import CommandCursor
from pymongo.cursor import Cursor as PymongoCursor
from pymongo.typings import _DocumentType

from superduper_nb.search.ids import id_key
from superduper_nb.search.values import SearchReply

if TYPE_CHECKING:
    from superduper_nb.client.collection import Collection

__all__ = ["Cursor", "DecodingCommandCursor", "split_like"]

Read = Callable[[Any], Any]


def split_like(filter: Any) -> tuple[Any, Any]:
    """Take ``$like`` out of a filter; return the rest, and it."""
    if isinstance(filter, Mapping) and "$like" in filter:
        rest = {key: value for key, value in filter.items() if key != "$like"}
        return rest, filter["$like"]
    return filter, None


class Cursor(PymongoCursor[_DocumentType]):
    """A `pymongo.cursor.Cursor`.

    With ``like``, it holds the `n` documents nearest to it, best first, each with ``_score``; a projection, sort, skip or
    limit applies to that result. The search runs when the first document is asked for, and anew after `rewind` or `clone`.
    """

    _search: Callable[[Mapping[str, Any]], SearchReply] | None = None
    _read: Read | None = None
    reply: SearchReply | None = None
    """What the search answered: scores, strategy, candidates. None before it ran, and where there was none."""

    def _clone(self, deepcopy: bool = True, base: Any = None) -> Cursor[_DocumentType]:
        clone: Cursor[_DocumentType] = super()._clone(deepcopy, base)
        clone._search, clone._read = self._search, self._read
        return clone

    def _refresh(self) -> int:
        if self._data or self._killed:
            return len(self._data)
        if self._search is None or self._explain:
            super()._refresh()
        elif self._id is None:
            self._data, self._id = deque(self._found()), 0
            self.close()
        if self._read is not None and not self._explain:
            self._data = deque(map(self._read, self._data))
        return len(self._data)

    def _found(self) -> list[Any]:
        assert self._search is not None
        self.reply = reply = self._search(self._spec)
        rank = {id_key(id): i for i, id in enumerate(reply.ids)}
        documents = list(self._of(reply.ids))
        for document in documents:
            _score(document, reply, rank[id_key(document["_id"])])
        if not self._ordering:
            documents.sort(key=lambda document: rank[id_key(document["_id"])])
        end = self._skip + abs(self._limit) if self._limit else None
        documents = documents[self._skip : end]
        if self._without_id:
            for document in documents:
                del document["_id"]
        self._retrieved = len(documents)
        return documents

    def _of(self, ids: list[Any]) -> PymongoCursor[Any]:
        """Return an ordinary cursor over these documents, with this one's options; the filter once more, as it is now."""
        inner: PymongoCursor[Any] = PymongoCursor(self._collection, {"$and": [{"_id": {"$in": ids}}, self._spec]})
        for name in (
            "ordering",
            "hint",
            "collation",
            "max_time_ms",
            "comment",
            "let",
            "allow_disk_use",
            "read_preference",
        ):
            setattr(inner, f"_{name}", getattr(self, f"_{name}"))
        projection = dict(self._projection) if self._projection else None
        if self._without_id and projection is not None:
            del projection["_id"]
        inner._projection = projection or None
        return inner

    @property
    def _without_id(self) -> bool:
        return bool(self._projection) and self._projection is not None and self._projection.get("_id", 1) in (0, False)

    def distinct(self, key: str) -> list[Any]:
        """Return the distinct values of a key; of the result, where this is a search."""
        if self._search is None:
            return list(super().distinct(key))
        reply = self._search(self._spec)
        return list(self._collection.distinct(key, {"_id": {"$in": reply.ids}}))

    def explain(self) -> Any:
        """Say how MongoDB runs the query; for a search, how that ran: strategy, candidates, time."""
        if self._search is None:
            return super().explain()
        reply = self._search(self._spec)
        names = ("index", "strategy", "candidates", "pending", "took_ms")
        return {"search": {name: getattr(reply, name) for name in names} | {"found": len(reply.ids)}}


def _score(document: Any, reply: SearchReply, i: int) -> None:
    document["_score"] = reply.scores[i]
    if reply.distances is not None:
        document["_distance"] = reply.distances[i]


class DecodingCommandCursor(CommandCursor[_DocumentType]):
    """A cursor over an aggregation's results whose documents come decoded."""

    _read: Read | None = None

    def __init__(self, collection: Collection[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(collection, *args, **kwargs)
        self._read = collection._workspace.reader(collection.codec_options.document_class)
        self._decode()

    def _refresh(self) -> int:
        before = len(self._data)
        count = super()._refresh()
        if not before:
            self._decode()
        return count

    def _decode(self) -> None:
        if self._read is not None:
            self._data = deque(map(self._read, self._data))
