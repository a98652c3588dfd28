"""The linear-algebra service: finds the semantic index, encodes the query, searches completely, also under filters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bson import Timestamp
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import InvalidName

from superduper_nb.components.cache import CachedStore
from superduper_nb.components.store import Component, ComponentStore
from superduper_nb.documents.paths import BASE, get_path
from superduper_nb.errors import InvalidInputError, ModelError, NotFoundError
from superduper_nb.models.apply import ItemError
from superduper_nb.models.loading import Loader
from superduper_nb.search.index import Hits, VectorIndex
from superduper_nb.search.keeper import Keeper
from superduper_nb.search.live import LiveIndex
from superduper_nb.search.measures import BUILTIN, Floats, Measure, check_query
from superduper_nb.search.plan import Hints, Matching, planned
from superduper_nb.search.shelf import Shelf
from superduper_nb.search.values import SearchReply, SearchRequest

__all__ = ["SearchEngine"]

_LOAD_TIMEOUT_S: Final = 60.0
_COUNT_FOR_S: Final = 0.25
_MISSING: Final = object()

Encode = Callable[[str, str, list[Any], int | None], list[Any]]
"""(database, model, inputs, version) -> outputs."""

Pending = Callable[[str, str, str], int]
"""(database, collection, watcher) -> documents."""


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
    snapshots : pathlib.Path, optional
        The folder of the files from which indexes start again; none by default.
    """

    def __init__(
        self,
        client: MongoClient[dict[str, Any]],
        encode: Encode,
        pending: Pending,
        *,
        snapshots: Path | None = None,
    ) -> None:
        self._client, self._encode, self._pending, self._snapshots = client, encode, pending, snapshots
        self._lock = threading.Lock()
        self._known: dict[str, Loader] = {}
        self._shelf = Shelf()
        self._hints = Hints()
        self._counted: dict[tuple[str, str, str], tuple[Timestamp | None, float, int]] = {}

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
        known = self._asked(request.database)
        matching = self._matching(request)
        component = _chosen(known.store, request)
        live = self._live_index(request.database, component, request.after)
        live.wait(request.after, _LOAD_TIMEOUT_S)
        index = live.index
        query = self._query_vector(request, component, live.version, index)
        plan = planned(index, matching, query, request.n, exact=request.exact, hints=self._hints)
        hits = _above(plan.hits, request.min_score)
        return SearchReply(
            ids=hits.ids,
            scores=hits.scores.tolist(),
            distances=None if hits.distances is None else hits.distances.tolist(),
            strategy=plan.strategy,
            candidates=plan.candidates,
            pending=self._pending_lately(request, component),
            took_ms=(time.perf_counter() - begin) * 1000,
            index=component.id,
        )

    def indexes(self) -> list[dict[str, Any]]:
        """List the indexes in memory."""
        return [_named(name, described) for name, described in self._shelf.describe()]

    def describe(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Say how large, how fresh and in what state an index is; one that is not in memory begins to load."""
        component = self._asked(database).store.get("semantic_index", id, collection=collection)
        live = self._live_index(database, component)
        return _named((database, collection, id), live.describe())

    def refresh(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Load an index anew."""
        self._asked(database).store.get("semantic_index", id, collection=collection)
        self._shelf.drop((database, collection, id))
        return self.describe(database, collection, id)

    def close(self) -> None:
        """Stop following every collection, and leave snapshots."""
        self._shelf.close()

    def _pending_lately(self, request: SearchRequest, component: Component) -> int:
        """Return what is pending; asked for at most a few times a second, unless the asker has written meanwhile."""
        key = (request.database, request.collection, _watcher(component))
        after, until, count = self._counted.get(key, (None, 0.0, 0))
        if after != request.after or time.monotonic() > until:
            count = self._pending(*key)
            self._counted[key] = request.after, time.monotonic() + _COUNT_FOR_S, count
        return count

    # --- which index ---------------------------------------------------------------------------------------------

    def _asked(self, database: str) -> Loader:
        """Return what is registered in a database, as of now."""
        with self._lock:
            if database not in self._known:
                opened = _opened(self._client, database)
                self._known[database] = Loader(opened, CachedStore(opened))
            loader = self._known[database]
        assert isinstance(loader.store, CachedStore)
        loader.store.refresh()
        return loader

    def _live_index(self, database: str, component: Component, after: Timestamp | None = None) -> LiveIndex:
        known = self._known[database]
        model_id, key = component.definition["models"][0], component.definition["keys"][0]
        model = known.store.get("model", model_id)
        measure, measured = self._measure(known, component)

        collection = self._collection(database, component.collection)
        definition = f"{component.hash} {measured}"

        def make() -> LiveIndex:
            identity = {"definition": definition, "model": model_id, "version": model.version}
            folder = self._snapshots
            return LiveIndex(
                VectorIndex(measure),
                collection,
                model=model_id,
                key=key,
                version=model.version,
                filter=component.definition["filter"],
                keeper=None if folder is None else Keeper(folder, collection, component.id, identity),
            )

        return self._shelf.get(
            (database, component.collection, component.id),
            definition,
            model.version,
            make,
            lambda: self._pending(database, component.collection, _watcher(component)),
            after,
            _LOAD_TIMEOUT_S,
        )

    def _measure(self, known: Loader, component: Component) -> tuple[Measure, str]:
        """Return the measure, and what tells it from another of the same name."""
        name = component.definition["measure"]
        if name in BUILTIN:
            return Measure(name), name
        own = known.store.get("measure", name)
        return Measure(name, known.object(own)), own.hash

    def _collection(self, database: str, collection: str) -> Collection[dict[str, Any]]:
        try:
            return self._known[database].store.database[collection]
        except InvalidName as error:
            raise InvalidInputError(f"{collection!r:.80} is no name of a collection: {error}.") from None

    def _matching(self, request: SearchRequest) -> Matching | None:
        if not request.filter:
            return None
        return Matching(self._collection(request.database, request.collection), request.filter)

    # --- the query -----------------------------------------------------------------------------------------------

    def _query_vector(self, request: SearchRequest, component: Component, version: int, index: VectorIndex) -> Floats:
        if request.id is not None:
            return self._stored(request.id, index)
        given = request.vector
        if given is None:
            given = self._encoded(request, component, version, index)
        return check_query(given, index.dimension, index.measure)

    def _stored(self, id: Any, index: VectorIndex) -> Floats:
        vector = index.vector(id)
        if vector is None:
            raise NotFoundError(
                f"No vector of a document with _id {id!r}: it does not exist, or its output is still to come."
            )
        return vector

    def _encoded(self, request: SearchRequest, component: Component, version: int, index: VectorIndex) -> Any:
        like = self._known[request.database].codec().decode(dict(request.like or {}))
        definition = component.definition
        for model, key in zip(definition["models"], definition["keys"], strict=True):
            value = like if key == BASE else get_path(like, key, _MISSING)
            if value is not _MISSING:
                # The query must meet vectors of the very version that made them.
                of = version if model == definition["models"][0] else None
                return _vector_of(model, self._encode(request.database, model, [value], of)[0])
        if "_id" in like:
            return self._stored(like["_id"], index)
        keys = ", ".join(repr(key) for key in definition["keys"])
        raise InvalidInputError(
            f"like= must hold a key of the index {component.id!r} ({keys}) or _id; it holds {list(like)}."
        )


def _opened(client: MongoClient[dict[str, Any]], name: str) -> Database[dict[str, Any]]:
    try:
        return client[name]
    except InvalidName as error:
        raise InvalidInputError(f"{name!r:.80} is no name of a database: {error}.") from None


def _chosen(store: ComponentStore, request: SearchRequest) -> Component:
    if request.semantic_index is not None:
        return store.get("semantic_index", request.semantic_index, collection=request.collection)
    found = store.current("semantic_index", collection=request.collection)
    where = f"{request.database}.{request.collection}"
    if not found:
        raise NotFoundError(
            f"{where} has no semantic index. Make one: "
            "docs.create_semantic_index('meaning', models=['<model>'], keys=['<key>'])."
        )
    if len(found) > 1:
        names = ", ".join(repr(component.id) for component in found)
        raise InvalidInputError(f"{where} has several semantic indexes: say semantic_index= one of {names}.")
    return found[0]


def _vector_of(model: str, output: Any) -> Any:
    if isinstance(output, ItemError):
        raise ModelError(f"The model {model!r} failed on the query: {output}")
    return output


def _above(hits: Hits, min_score: float | None) -> Hits:
    if min_score is None:
        return hits
    keep = int((hits.scores >= min_score).sum())  # best first: those that stay are the first ones
    return Hits(hits.ids[:keep], hits.scores[:keep], None if hits.distances is None else hits.distances[:keep])


def _named(name: tuple[str, str, str], described: dict[str, Any]) -> dict[str, Any]:
    return {"database": name[0], "collection": name[1], "id": name[2], **described}


def _watcher(component: Component) -> str:
    return f"{component.definition['models'][0]}/{component.definition['keys'][0]}"
