"""The linear-algebra service: finds the semantic index, encodes the query, searches completely, also under filters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from bson import Timestamp
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import InvalidName

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.components.cache import CachedStore
from superduper_nb.components.store import Component, ComponentStore
from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.models.loading import Loader
from superduper_nb.search.finding import Finding
from superduper_nb.search.measures import BUILTIN, Floats, Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.plan import Hints, Matching, Plan
from superduper_nb.search.queries import QueryVectors
from superduper_nb.search.refine import Groups
from superduper_nb.search.searchable import Following, Searchable
from superduper_nb.search.shelf import Shelf, Wanted
from superduper_nb.search.spec import IndexSpec
from superduper_nb.search.stages import Stages
from superduper_nb.search.text import by_words
from superduper_nb.search.together import Together
from superduper_nb.search.values import SearchReply, SearchRequest

__all__ = ["SearchEngine"]

_LOAD_TIMEOUT_S: Final = 60.0
_COUNT_FOR_S: Final = 0.25

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
    memory : int, optional
        Bytes that the indexes may take, all together: beyond, the least recently used goes out.
    pool : DaskPool, optional
        Whose workers hold the parts of those that are split; without, all are in one piece.
    """

    def __init__(
        self,
        client: MongoClient[dict[str, Any]],
        encode: Encode,
        pending: Pending,
        *,
        snapshots: Path | None = None,
        memory: int | None = None,
        pool: DaskPool | None = None,
    ) -> None:
        self._client, self._encode, self._pending, self._snapshots = client, encode, pending, snapshots
        self._lock = threading.Lock()
        self._known: dict[str, Loader] = {}
        self._looks: dict[str, Together[None, None]] = {}
        """Whether something new is registered: asked once for all searches that came meanwhile."""
        self._shelf, self._pool = Shelf(memory), pool
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
        stages = Stages()
        known = self._asked(request.database)
        matching = self._matching(request, stages)
        component = _chosen(known.store, request)
        with self._shelf.using(self._wanted(request.database, component, request.after)) as live:
            index = live.seeing(request.after, _LOAD_TIMEOUT_S)
            return self._found(request, component, live.version, index, matching, stages)

    def _found(
        self,
        request: SearchRequest,
        component: Component,
        version: int,
        index: Searchable,
        matching: Matching | None,
        stages: Stages,
    ) -> SearchReply:
        """Search in an index."""
        with stages("encode"):
            queries = self._queries(request.database, component, version, index).of(request)
        finding = Finding(request, index, matching, self._hints, stages)
        with stages("search"):
            found = finding.batch(queries) if request.many else [self._refined(finding, component, queries[0])]
        return SearchReply(
            **_columns(found, many=request.many),
            strategy=found[0].strategy,
            candidates=sum(plan.candidates for plan in found),
            survivors=sum(plan.survivors for plan in found),
            pending=self._pending_lately(request, component),
            took_ms=stages.took_ms,
            stages_ms=stages.ms,
            index=component.id,
            partial=index.missing > 0,
        )

    def _refined(self, finding: Finding, component: Component, query: Floats) -> Plan:
        """Search for one query, with what is asked beyond the nearest."""
        request = finding.request
        collection = self._collection(request.database, request.collection)
        if request.diversity:
            return finding.spread(query)
        if request.group_by is not None:
            return finding.grouped(query, Groups(collection, request.group_by))
        if request.text is not None:
            key, own = component.definition["keys"][0], component.definition["filter"]
            filter = {"$and": [request.filter, own]} if request.filter and own else request.filter or own
            return finding.fused(query, lambda n: by_words(collection, filter, request.text or "", n, key))
        return finding.nearest(query)

    def indexes(self) -> list[dict[str, Any]]:
        """List the indexes in memory."""
        return [_named(name, described) for name, described in self._shelf.describe()]

    def describe(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Say how large, how fresh and in what state an index is; one that is not in memory begins to load."""
        component = self._asked(database).store.get("semantic_index", id, collection=collection)
        with self._shelf.using(self._wanted(database, component)) as live:
            return _named((database, collection, id), live.describe())

    @property
    def nbytes(self) -> int:
        """Memory that the indexes take."""
        return self._shelf.nbytes

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
                store = CachedStore(opened)
                self._known[database] = Loader(opened, store)
                self._looks[database] = Together(partial(_look, store), 1)
            loader, look = self._known[database], self._looks[database]
        look.ask(None)
        return loader

    def _wanted(self, database: str, component: Component, after: Timestamp | None = None) -> Wanted:
        spec = self._spec(database, component)
        return Wanted(
            (database, component.collection, component.id),
            spec.definition,
            spec.version,
            partial(self._made, spec),
            lambda: self._pending(database, component.collection, _watcher(component)),
            after,
            _LOAD_TIMEOUT_S,
        )

    def _made(self, spec: IndexSpec) -> Following:
        if self._pool is not None and spec.options.spread:
            from superduper_nb.search.shards import ShardedIndex

            return ShardedIndex(self._pool, spec)
        return spec.opened(self._client, self._snapshots)

    def _spec(self, database: str, component: Component) -> IndexSpec:
        known, definition = self._known[database], component.definition
        measure, measured = self._measure(known, component)
        self._collection(database, component.collection)  # raises where its name is none
        return IndexSpec(
            database=database,
            collection=component.collection,
            id=component.id,
            definition=f"{component.hash} {measured}",
            measure=measure,
            options=IndexOptions.of(definition.get("index")),
            model=definition["models"][0],
            key=definition["keys"][0],
            version=known.store.get("model", definition["models"][0]).version,
            filter=definition["filter"],
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

    def _matching(self, request: SearchRequest, stages: Stages) -> Matching | None:
        if not request.filter:
            return None
        return Matching(self._collection(request.database, request.collection), request.filter, stages)

    def _queries(self, database: str, component: Component, version: int, index: Searchable) -> QueryVectors:
        def encode(model: str, inputs: list[Any], of: int | None) -> list[Any]:
            return self._encode(database, model, inputs, of)

        return QueryVectors(component, version, index, self._known[database].codec(), encode)


def _look(store: CachedStore, asked: Sequence[None]) -> Sequence[None]:
    store.refresh()
    return asked


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
        raise InvalidInputError(f"{where} has several semantic indexes: say semantic_index= (--index) one of {names}.")
    return found[0]


def _columns(found: list[Plan], *, many: bool) -> dict[str, Any]:
    """Return what was found as the columns of a reply."""
    hits = [plan.hits for plan in found]
    distances = [None if each.distances is None else each.distances.tolist() for each in hits]
    columns: dict[str, list[Any]] = {
        "ids": [each.ids for each in hits],
        "scores": [each.scores.tolist() for each in hits],
        "distances": distances,
    }
    if not many:
        return {name: column[0] for name, column in columns.items()}
    return columns | ({"distances": None} if all(each is None for each in distances) else {})


def _named(name: tuple[str, str, str], described: dict[str, Any]) -> dict[str, Any]:
    return {"database": name[0], "collection": name[1], "id": name[2], **described}


def _watcher(component: Component) -> str:
    return f"{component.definition['models'][0]}/{component.definition['keys'][0]}"
