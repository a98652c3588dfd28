"""Cursors: pymongo's, whose documents come decoded, and in the order of a search where there was one."""

from __future__ import annotations

import copy
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from pymongo.command_cursor import CommandCursor
from pymongo.cursor import Cursor as PymongoCursor
from pymongo.typings import _DocumentType

from superduper_nb.client.features import Features
from superduper_nb.client.joining import Join
from superduper_nb.documents.plain import has_nothing_to_decode
from superduper_nb.errors import InvalidInputError
from superduper_nb.search.ids import id_key
from superduper_nb.search.values import SearchReply, SearchRequest, expected

if TYPE_CHECKING:
    import pandas as pd

    from superduper_nb.client.finding import FindingCollection

__all__ = ["Cursor", "DecodingCommandCursor", "handed_out", "split_like"]

Read = Callable[[Iterable[Any]], list[Any]]

_OWN: Final = ("_search", "_request", "_weigh", "_read", "_features", "_join")
_PASSED_ON: Final = (
    *("_ordering", "_hint", "_collation", "_max_time_ms"),
    *("_comment", "_let", "_allow_disk_use", "_read_preference"),
)
"""Options of a search's cursor that are those of the query for its documents."""


def split_like(filter: Any) -> tuple[Any, Any]:
    """Take ``$like`` out of a filter; return the rest, and it."""
    if isinstance(filter, Mapping) and "$like" in filter:
        rest = {key: value for key, value in filter.items() if key != "$like"}
        return rest, filter["$like"]
    return filter, None


class Cursor(PymongoCursor[_DocumentType]):
    """A `pymongo.cursor.Cursor`.

    With ``like``, it holds the `n` documents nearest to it, best first, each with ``_score``; a projection, sort, skip
    or limit applies to that result. The search runs when the first document is asked for, and anew after `rewind` or
    `clone`.
    """

    # Set on a cursor only where they are needed, so that any other one is pymongo's to the last attribute.
    _search: Callable[[SearchRequest, Mapping[str, Any], bool], SearchReply] | None = None
    _request: SearchRequest | None = None
    _weigh: Callable[[float], None] | None = None
    """Told how many bytes the documents of a search took, on average."""
    _received: int | None = None
    """Bytes that came; None: not counted."""
    _read: Read | None = None
    _features: Features | None = None
    _join: Join | None = None
    _answer: SearchReply | None = None
    _plain: bool = False
    """The batch that came last holds nothing to decode."""

    @property
    def reply(self) -> SearchReply | None:
        """What the search answered: scores, strategy, candidates. None before it ran, and where there is none."""
        return self._answer

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def _clone(self, deepcopy: bool = True, base: Any = None) -> Cursor[_DocumentType]:
        clone: Cursor[_DocumentType] = super()._clone(deepcopy, base)
        for name in _OWN:
            if name in self.__dict__:
                setattr(clone, name, getattr(self, name))
        return clone

    def _unpack_response(self, response: Any, *args: Any, **kwargs: Any) -> Any:
        # Its bytes tell it sooner than a look at each value. Encrypted ones tell nothing.
        if self._read is not None:
            self._plain = self._collection.database.client._encrypter is None and has_nothing_to_decode(
                bytes(response.raw_command_response())
            )
        if self._received is not None:
            self._received += len(response.raw_command_response())
        return super()._unpack_response(response, *args, **kwargs)

    def _refresh(self) -> int:
        if self._data or self._killed:
            return len(self._data)
        self._plain = False
        if self._search is not None and not self._explain:
            self._data, self._id = deque(self._found()), 0
            self.close()
        elif self._features is not None or self._join is not None:
            self._refresh_widened()
        else:
            super()._refresh()
        if self._read is not None and not self._explain and not self._plain:
            self._data = deque(self._read(self._data))
        return len(self._data)

    def _refresh_widened(self) -> None:
        """Read a batch with what features and neighbours need, and put them in."""
        asked = self._projection
        for wider in (self._features, self._join):
            if wider is not None:
                self._projection = wider.projection(self._projection)
        try:
            super()._refresh()
        finally:
            self._projection = asked
        self._plain = False  # what is put in may have something
        if self._explain:
            return
        if self._features is not None:
            for document in self._data:
                self._features.put(document, asked)
        if self._join is not None:
            self._join.put(self._data, asked, self._neighbours)

    def _neighbours(self, query: Mapping[str, Any], projection: Mapping[str, Any]) -> Cursor[Any]:
        inner: Cursor[Any] = Cursor(self._collection, query, projection, session=self.session)
        inner._read_preference = self._read_preference
        if self._features is not None:
            inner._features = self._features
        return inner

    # --- searching -------------------------------------------------------------------------------------------------

    def _found(self) -> list[Any]:
        reply, documents = self._answered()
        self._answer = reply
        rank = {id_key(id): i for i, id in enumerate(reply.ids)}
        for document in documents:
            i = rank[id_key(document["_id"])]
            _score(document, reply.scores[i], None if reply.distances is None else reply.distances[i])
        if not self._ordering:
            documents.sort(key=lambda document: rank[id_key(document["_id"])])
        elif "_score" in self._ordering:
            documents.sort(key=lambda document: document["_score"], reverse=self._ordering["_score"] == -1)
        end = self._skip + abs(self._limit) if self._limit else None
        documents = documents[self._skip : end]
        if self._without_id:
            for document in documents:
                del document["_id"]
        self._retrieved = len(documents)
        return documents

    def _answered(self) -> tuple[SearchReply, list[Any]]:
        """Search; return what was found, and its documents, in any order."""
        # What matches under a collation of the cursor, only its own query can tell.
        reply = self._searched(untested=self._join is None and self._collation is None)
        if not reply.untested:
            return self._with_documents(reply)
        assert self._request is not None
        # Documents may be large: rather than read many more than are wanted, have them tested first.
        n, most = self._request.n, 2 * int(expected(self._request.n))
        reply, documents = self._with_documents(reply, most)
        if n <= len(documents) < most:
            return _best(reply, documents, n)
        return self._with_documents(self._searched())

    def _searched(self, *, untested: bool = False) -> SearchReply:
        assert self._search is not None
        assert self._request is not None
        return self._search(self._request, self._spec, untested)

    def _with_documents(self, reply: SearchReply, most: int = 0) -> tuple[SearchReply, list[Any]]:
        """Return a reply that says how long it took to read the documents, and those; at most so many."""
        begin = time.perf_counter()
        reading = self._of(reply.ids).limit(most)
        documents = list(reading)
        if documents and self._weigh is not None and reading._received:
            self._weigh(reading._received / len(documents))
        took = (time.perf_counter() - begin) * 1000
        return replace(reply, stages_ms={**reply.stages_ms, "documents": took}), documents

    def _of(self, ids: list[Any]) -> Cursor[Any]:
        """Return a cursor over these documents, with this one's options; the filter once more, as it is now."""
        query = {"$and": [{"_id": {"$in": ids}}, self._spec]} if self._spec else {"_id": {"$in": ids}}
        inner: Cursor[Any] = Cursor(self._collection, query, session=self.session)
        inner._received = 0
        for name in _PASSED_ON:
            setattr(inner, name, getattr(self, name))
        if self._ordering and "_score" in self._ordering:
            if len(self._ordering) > 1:
                raise InvalidInputError("A sort by _score is by nothing else: most scores are different.")
            inner._ordering = None
        projection = dict(self._projection) if self._projection else None
        if self._without_id and projection is not None:
            del projection["_id"]
        inner._projection = projection or None
        for name in ("_features", "_join"):
            if (widening := getattr(self, name)) is not None:
                setattr(inner, name, widening)
        return inner

    @property
    def _without_id(self) -> bool:
        return bool(self._projection) and self._projection is not None and self._projection.get("_id", 1) in (0, False)

    def distinct(self, key: str) -> list[Any]:
        """Return the distinct values of a key; of the result, where this is a search."""
        if self._search is None:
            return list(super().distinct(key))
        reply = self._searched()
        return list(self._collection.distinct(key, {"_id": {"$in": reply.ids}}, session=self._session))

    def to_pandas(self) -> pd.DataFrame:
        """Return the documents as a data frame: a row for each, a column for each field."""
        import pandas as pd

        return pd.DataFrame(self.to_list())

    def explain(self) -> Any:
        """Say how MongoDB runs the query; for a search, how that ran: strategy, candidates, time."""
        if self._search is None:
            return super().explain()
        reply, documents = self._answered()
        names = ("index", "strategy", "candidates", "survivors", "pending", "took_ms", "stages_ms")
        return {"search": {name: getattr(reply, name) for name in names} | {"found": len(documents)}}


def _best(reply: SearchReply, matching: list[Any], n: int) -> tuple[SearchReply, list[Any]]:
    """Return the answer, where a reply holds candidates of which these documents match: the first `n` of them."""
    keys = {id_key(document["_id"]) for document in matching}
    first = list(itertools.islice((i for i, id in enumerate(reply.ids) if id_key(id) in keys), n))
    distances = reply.distances and [reply.distances[i] for i in first]
    ids, scores = [reply.ids[i] for i in first], [reply.scores[i] for i in first]
    answer = replace(reply, ids=ids, scores=scores, distances=distances, survivors=len(matching), untested=False)
    keys = set(map(id_key, ids))
    return answer, [document for document in matching if id_key(document["_id"]) in keys]


def _score(document: Any, score: float, distance: float | None) -> None:
    document["_score"] = score
    if distance is not None:
        document["_distance"] = distance


def handed_out(found: Mapping[Any, Any], reply: SearchReply, *, hidden: bool) -> list[list[Any]]:
    """Return the documents of each query of a batch, best first; each place has a document of its own.

    Parameters
    ----------
    found : mapping
        The documents by the key of their identifier.
    reply : SearchReply
        Of the batch.
    hidden : bool
        Leave ``_id`` out.
    """
    given: set[Any] = set()
    lists: list[list[Any]] = []
    for i, ids in enumerate(reply.ids):
        distances = (reply.distances and reply.distances[i]) or [None] * len(ids)
        lists.append([])
        for id, score, distance in zip(ids, reply.scores[i], distances, strict=True):
            if (document := found.get(key := id_key(id))) is None:
                continue  # it went, or stopped matching, since the search
            if key in given:
                document = copy.deepcopy(document)
            given.add(key)
            lists[-1].append(document)
            _score(document, score, distance)
    for document in (document for documents in lists if hidden for document in documents):
        del document["_id"]
    return lists


class DecodingCommandCursor(CommandCursor[_DocumentType]):
    """A cursor over an aggregation's results whose documents come decoded."""

    _read: Read | None = None

    def __init__(self, collection: FindingCollection[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(collection, *args, **kwargs)
        self._read = collection._workspace.reader(collection.codec_options)
        self._decode()

    def _refresh(self) -> int:
        before = len(self._data)
        count = super()._refresh()
        if not before:
            self._decode()
        return count

    def _decode(self) -> None:
        if self._read is not None:
            self._data = deque(self._read(self._data))
