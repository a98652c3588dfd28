"""The linear-algebra service: finds the semantic index, encodes the query, searches completely, also under filters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from bson import Timestamp
from pymongo import MongoClient

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.components.store import Component
from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.search.figures import Figures
from superduper_nb.search.finding import Finding
from superduper_nb.search.measures import Floats
from superduper_nb.search.pairing import version_beside
from superduper_nb.search.plan import Hints, Matching, Plan
from superduper_nb.search.queries import QueryVectors
from superduper_nb.search.refine import Groups
from superduper_nb.search.registered import Registered, chosen, watcher_of
from superduper_nb.search.remembered import Remembered
from superduper_nb.search.searchable import Following, Searchable
from superduper_nb.search.shelf import Shelf, Wanted
from superduper_nb.search.spec import IndexSpec
from superduper_nb.search.stages import Stages
from superduper_nb.search.text import by_words
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
        self._registered = Registered(client)
        self._shelf, self._pool = Shelf(memory), pool
        self._hints, self._remembered, self._figures = Hints(), Remembered(), Figures()
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
        component, plans, stages, partial = self._searched(request)
        return SearchReply(
            **_columns(plans, many=request.many),
            candidates=sum(plan.candidates for plan in plans),
            survivors=sum(plan.survivors for plan in plans),
            untested=any(plan.untested for plan in plans),
            **self._said(request, component, plans[0], stages, partial),
        )

    def search_each(self, requests: Sequence[SearchRequest]) -> list[SearchReply | Exception]:
        """Answer requests of one `SearchRequest.company` in one go, each as `search` would.

        Returns
        -------
        list of SearchReply or Exception
            What `search` returns, or raises.
        """
        if len(requests) == 1:
            return [self._outcome(requests[0])]
        first = requests[0]
        vectors: Any = [request.vector for request in requests]
        try:
            component, plans, stages, partial = self._searched(replace(first, vector=vectors))
            said = self._said(first, component, plans[0], stages, partial)
        except InvalidInputError:  # whose vector it is, each learns alone
            return list(map(self._outcome, requests))
        except Exception as error:
            return [error] * len(requests)
        return [
            SearchReply(**_columns([plan], many=False), candidates=plan.candidates, survivors=plan.survivors, **said)
            for plan in plans
        ]

    def _outcome(self, request: SearchRequest) -> SearchReply | Exception:
        try:
            return self.search(request)
        except Exception as error:
            return error

    def _searched(self, request: SearchRequest) -> tuple[Component, list[Plan], Stages, bool]:
        """Search; return what was found for each query, and whether parts of the index did not answer."""
        stages = Stages()
        component = self._chosen(request)
        matching = self._matching(request, stages)
        wanted = self._wanted(request.database, component, request.after)
        with self._shelf.using(wanted) as live:
            index = live.seeing(request.after, _LOAD_TIMEOUT_S)
            if matching is not None:
                matching.remember(self._remembered, live.moment)
            with stages("encode"):
                queries = self._queries(request.database, component, live.version, index).of(request)
            finding = Finding(request, index, matching, self._hints, stages)
            with stages("search"):
                found = finding.batch(queries) if request.many else [self._refined(finding, component, queries[0])]
        self._figures.count(wanted.name, stages.took_ms / 1000, len(found))
        return component, found, stages, index.missing > 0

    def _said(
        self, request: SearchRequest, component: Component, plan: Plan, stages: Stages, partial: bool
    ) -> dict[str, Any]:
        """Return what a reply says beside what was found."""
        return {
            "strategy": plan.strategy,
            "pending": self._pending_lately(request, component),
            "took_ms": stages.took_ms,
            "stages_ms": stages.ms,
            "index": component.id,
            "partial": partial,
        }

    def _refined(self, finding: Finding, component: Component, query: Floats) -> Plan:
        """Search for one query, with what is asked beyond the nearest."""
        request = finding.request
        collection = self._registered.collection(request.database, request.collection)
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
        component = self._registered.now(database).store.get("semantic_index", id, collection=collection)
        with self._shelf.using(self._wanted(database, component)) as live:
            return _named((database, collection, id), live.describe())

    def figures(self) -> list[dict[str, Any]]:
        """Return what each index did and how it is, in numbers; those that went out of memory, too."""
        there = {(row["database"], row["collection"], row["id"]): row for row in self.indexes()}
        done = {name: self._figures.of(name) for name in {*there, *self._figures.names()}}
        return [
            dict(zip(("database", "collection", "id"), name, strict=True)) | there.get(name, {}) | of
            for name, of in sorted(done.items())
        ]

    @property
    def nbytes(self) -> int:
        """Memory that the indexes take."""
        return self._shelf.nbytes

    def refresh(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Load an index anew."""
        self._registered.now(database).store.get("semantic_index", id, collection=collection)
        self._shelf.drop((database, collection, id))
        return self.describe(database, collection, id)

    def close(self) -> None:
        """Stop following every collection, and leave snapshots."""
        self._shelf.close()

    def _pending_lately(self, request: SearchRequest, component: Component) -> int:
        """Return what is pending; asked for at most a few times a second, unless the asker has written meanwhile."""
        key = (request.database, request.collection, watcher_of(component))
        after, until, count = self._counted.get(key, (None, 0.0, 0))
        if after != request.after or time.monotonic() > until:
            count = self._pending(*key)
            self._counted[key] = request.after, time.monotonic() + _COUNT_FOR_S, count
        return count

    # --- which index ---------------------------------------------------------------------------------------------

    def _chosen(self, request: SearchRequest) -> Component:
        known = self._registered.lately(request.database, request.after)
        try:
            return chosen(known.store, request)
        except NotFoundError:  # it may have been registered just now, elsewhere
            return chosen(self._registered.now(request.database).store, request)

    def registered(self, database: str) -> None:
        """Be told that something new may be registered in a database; else it is noticed within a tenth of a second."""
        self._registered.told(database)

    def _wanted(self, database: str, component: Component, after: Timestamp | None = None) -> Wanted:
        spec = self._registered.spec(database, component)
        return Wanted(
            (database, component.collection, component.id),
            spec.definition,
            spec.version,
            partial(self._made, spec),
            lambda: self._pending(database, component.collection, watcher_of(component)),
            after,
            _LOAD_TIMEOUT_S,
        )

    def _made(self, spec: IndexSpec) -> Following:
        if self._pool is not None and spec.options.spread:
            from superduper_nb.search.shards import ShardedIndex

            return ShardedIndex(self._pool, spec)
        return spec.opened(self._client, self._snapshots)

    def _matching(self, request: SearchRequest, stages: Stages) -> Matching | None:
        if not request.filter:
            return None
        return Matching(self._registered.collection(request.database, request.collection), request.filter, stages)

    def _queries(self, database: str, component: Component, version: int, index: Searchable) -> QueryVectors:
        def encode(model: str, inputs: list[Any], of: int | None) -> list[Any]:
            return self._encode(database, model, inputs, of)

        known, first = self._registered.known(database), component.definition["models"][0]

        def version_of(model: str) -> int | None:
            return version if model == first else version_beside(known.store, first, version, model)

        return QueryVectors(component, version_of, index, known.codec(), encode)


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
