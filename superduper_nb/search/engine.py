"""The linear-algebra service: finds the semantic index, encodes the query, searches completely, also under filters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from superduper_nb.components.store import Component
from superduper_nb.documents.paths import BASE, get_path
from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.models.loading import Loader
from superduper_nb.search.ids import id_key
from superduper_nb.search.index import Hits, VectorIndex
from superduper_nb.search.live import LiveIndex
from superduper_nb.search.measures import BUILTIN, Floats, Measure, check_query
from superduper_nb.search.values import SearchReply, SearchRequest

__all__ = ["SearchEngine"]

_LOAD_TIMEOUT_S: Final = 60.0
_FILTER_TIMEOUT_MS: Final = 30_000
_FIRST_PROBE: Final = 64
_LAST_PROBE: Final = 2048
_MISSING: Final = object()

Encode = Callable[[str, str, list[Any], int | None], list[Any]]
"""(database, model, inputs, version) -> outputs."""

Pending = Callable[[str, str, str], int]
"""(database, collection, watcher) -> documents."""


@dataclass(frozen=True, slots=True)
class _Plan:
    hits: Hits
    strategy: str
    candidates: int


class SearchEngine:
    """Searches the semantic indexes of a MongoDB; each is loaded when it is first asked for.

    Parameters
    ----------
    client : pymongo.MongoClient
        Where documents and components are.
    encode : callable
        ``(database, model, inputs, version) -> outputs``: applies a registered model to the query.
    pending : callable
        ``(database, collection, watcher) -> int``: documents whose outputs have still to be computed.
    """

    def __init__(self, client: MongoClient[dict[str, Any]], encode: Encode, pending: Pending) -> None:
        self._client, self._encode, self._pending = client, encode, pending
        self._lock = threading.Lock()
        self._loaders: dict[str, Loader] = {}
        self._live: dict[tuple[str, str, str], tuple[str, LiveIndex]] = {}

    # --- the service ---------------------------------------------------------------------------------------------

    def search(self, request: SearchRequest) -> SearchReply:
        """Find the nearest of the documents that match.

        Raises
        ------
        InvalidInputError
            A bad vector, a `like` without a key of the index, a filter MongoDB refuses.
        NotFoundError
            No such index, or no vector of that document.
        DeadlineError
            The index is not loaded, or behind.
        ModelError
            The model failed on the query.
        """
        begin = time.perf_counter()
        component = self._component(request)
        live = self._live_index(request.database, component)
        live.wait(request.after, _LOAD_TIMEOUT_S)
        query = self._query_vector(request, component, live)
        plan = self._plan(request, live.index, query)
        hits = _above(plan.hits, request.min_score)
        return SearchReply(
            ids=hits.ids,
            scores=hits.scores.tolist(),
            distances=None if hits.distances is None else hits.distances.tolist(),
            strategy=plan.strategy,
            candidates=plan.candidates,
            pending=self._pending(request.database, request.collection, _watcher(component)),
            took_ms=(time.perf_counter() - begin) * 1000,
            index=component.id,
        )

    def indexes(self) -> list[dict[str, Any]]:
        """List the indexes in memory."""
        with self._lock:
            return [_named(key, live) for key, (_, live) in self._live.items()]

    def describe(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Say how large, how fresh and in what state an index is."""
        component = self._loader(database).store.get("semantic_index", id, collection=collection)
        live = self._live_index(database, component)
        return _named((database, collection, id), live)

    def refresh(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Load an index anew."""
        self._loader(database).store.get("semantic_index", id, collection=collection)
        with self._lock:
            _, live = self._live.pop((database, collection, id), (None, None))
        if live is not None:
            live.close()
        return self.describe(database, collection, id)

    def close(self) -> None:
        """Stop following every collection."""
        with self._lock:
            lives = [live for _, live in self._live.values()]
            self._live.clear()
        for live in lives:
            live.close()

    # --- which index ---------------------------------------------------------------------------------------------

    def _loader(self, database: str) -> Loader:
        with self._lock:
            if database not in self._loaders:
                self._loaders[database] = Loader(self._client[database])
            return self._loaders[database]

    def _component(self, request: SearchRequest) -> Component:
        store = self._loader(request.database).store
        if request.semantic_index is not None:
            return store.get("semantic_index", request.semantic_index, collection=request.collection)
        known = store.current("semantic_index", collection=request.collection)
        where = f"{request.database}.{request.collection}"
        if not known:
            raise NotFoundError(
                f"{where} has no semantic index. Make one: "
                "docs.create_semantic_index('meaning', models=['<model>'], keys=['<key>'])."
            )
        if len(known) > 1:
            names = ", ".join(repr(component.id) for component in known)
            raise InvalidInputError(f"{where} has several semantic indexes: say semantic_index= one of {names}.")
        return known[0]

    def _live_index(self, database: str, component: Component) -> LiveIndex:
        loader = self._loader(database)
        model_id, key = component.definition["models"][0], component.definition["keys"][0]
        model = loader.store.get("model", model_id)
        name, content = (database, component.collection, component.id), f"{component.hash} {model.version}"
        live = LiveIndex(
            VectorIndex(self._measure(loader, component)),
            self._collection(database, component.collection),
            model=model_id,
            key=key,
            version=model.version,
            filter=component.definition["filter"],
        )
        with self._lock:
            held = self._live.get(name)
            if held is not None and held[0] == content:
                return held[1]
            live.start()
            self._live[name] = content, live
        if held is not None:
            held[1].close()
        return live

    def _measure(self, loader: Loader, component: Component) -> Measure:
        name = component.definition["measure"]
        if name in BUILTIN:
            return Measure(name)
        return Measure(name, loader.object(loader.store.get("measure", name)))

    def _collection(self, database: str, collection: str) -> Collection[dict[str, Any]]:
        return self._loader(database).store.database[collection]

    # --- the query -----------------------------------------------------------------------------------------------

    def _query_vector(self, request: SearchRequest, component: Component, live: LiveIndex) -> Floats:
        index = live.index
        if request.vector is not None:
            return check_query(request.vector, index.dimension, index.measure)
        if request.id is not None:
            return self._stored(request.id, index)
        return check_query(self._encoded(request, component, live), index.dimension, index.measure)

    def _stored(self, id: Any, index: VectorIndex) -> Floats:
        vector = index.vector(id)
        if vector is None:
            raise NotFoundError(
                f"No vector of a document with _id {id!r}: it does not exist, or its output is still to come."
            )
        return vector

    def _encoded(self, request: SearchRequest, component: Component, live: LiveIndex) -> Any:
        loader = self._loader(request.database)
        like = loader.codec().decode(dict(request.like or {}))
        definition = component.definition
        for model, key in zip(definition["models"], definition["keys"], strict=True):
            value = like if key == BASE else get_path(like, key, _MISSING)
            if value is not _MISSING:
                # The query must meet vectors of the very version that made them.
                version = live.version if model == definition["models"][0] else None
                return self._encode(request.database, model, [value], version)[0]
        if "_id" in like:
            return self._stored(like["_id"], live.index)
        keys = ", ".join(repr(key) for key in definition["keys"])
        raise InvalidInputError(
            f"like= must hold a key of the index {component.id!r} ({keys}) or _id; it holds {list(like)}."
        )

    # --- the plan ------------------------------------------------------------------------------------------------

    def _plan(self, request: SearchRequest, index: VectorIndex, query: Floats) -> _Plan:
        """Search; under a filter, take the cheaper of two complete ways.

        Where many documents match, the best candidates are tested against the filter until `n` have passed: they are in
        order, so the first `n` that pass are the answer. Where few match, MongoDB lists them and only those are compared.
        """
        if not request.filter:
            return _Plan(index.search(query, request.n), "exact", len(index))
        matching = _Matching(self._collection(request.database, request.collection), request.filter)
        probe = max(_FIRST_PROBE, 4 * request.n)
        while probe <= _LAST_PROBE and probe < len(index):
            candidates = index.search(query, probe)
            passed = matching.of(candidates.ids)
            if len(passed) >= request.n:
                return _Plan(_only(candidates, passed, request.n), "exact, then filter", probe)
            wanted = 2 * request.n * probe // max(1, len(passed))
            if not passed or wanted <= probe:
                break
            probe = wanted
        among = matching.all()
        return _Plan(index.search(query, request.n, among=among), "filter, then exact", len(among))


class _Matching:
    """Which documents match a filter, as MongoDB sees it."""

    def __init__(self, collection: Collection[dict[str, Any]], filter: Mapping[str, Any]) -> None:
        self._collection, self._filter = collection, dict(filter)

    def of(self, ids: list[Any]) -> set[Any]:
        """Return the keys of those of these that match."""
        return {id_key(id) for id in self._ids({"$and": [{"_id": {"$in": ids}}, self._filter]})}

    def all(self) -> list[Any]:
        """Return all that match."""
        return self._ids(self._filter)

    def _ids(self, query: Mapping[str, Any]) -> list[Any]:
        try:
            found = self._collection.find(query, {"_id": 1}, batch_size=100_000, max_time_ms=_FILTER_TIMEOUT_MS)
            return [document["_id"] for document in found]
        except OperationFailure as error:
            if error.code is None or error.code >= 10_000 or error.code in (2, 9, 14, 51):
                raise InvalidInputError(
                    f"MongoDB refuses the filter: {error.details and error.details.get('errmsg')}"
                ) from None
            raise


def _only(hits: Hits, passed: set[Any], n: int) -> Hits:
    keep = [i for i, id in enumerate(hits.ids) if id_key(id) in passed][:n]
    distances = None if hits.distances is None else hits.distances[keep]
    return Hits([hits.ids[i] for i in keep], hits.scores[keep], distances)


def _above(hits: Hits, min_score: float | None) -> Hits:
    if min_score is None:
        return hits
    keep = int((hits.scores >= min_score).sum())  # best first: those that stay are the first ones
    return Hits(hits.ids[:keep], hits.scores[:keep], None if hits.distances is None else hits.distances[:keep])


def _named(key: tuple[str, str, str], live: LiveIndex) -> dict[str, Any]:
    return {"database": key[0], "collection": key[1], "id": key[2], **live.describe()}


def _watcher(component: Component) -> str:
    return f"{component.definition['models'][0]}/{component.definition['keys'][0]}"
