"""What is registered in the databases of a MongoDB, as far as searches need it: asked anew ten times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from operator import is_
from typing import Any

from bson import Timestamp
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import InvalidName

from superduper_nb.components.cache import CachedStore
from superduper_nb.components.lately import Lately
from superduper_nb.components.store import Component, ComponentStore
from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.models.loading import Loader
from superduper_nb.search.measures import BUILTIN, Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.spec import IndexSpec
from superduper_nb.search.together import Together
from superduper_nb.search.values import SearchRequest

__all__ = ["Registered", "chosen", "watcher_of"]


class Registered:
    """The components of each database that was asked for.

    Parameters
    ----------
    client : pymongo.MongoClient
        Where they are.
    """

    def __init__(self, client: MongoClient[dict[str, Any]]) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._known: dict[str, Loader] = {}
        self._looks: dict[str, Together[None, None]] = {}
        """Whether something new is registered: asked once for all searches that came meanwhile."""
        self._asked: dict[str, tuple[Timestamp | None, float]] = {}
        self._lately = Lately()
        self._specs: dict[tuple[str, str, str], tuple[tuple[Component | None, ...], IndexSpec]] = {}
        """The last of each index, and of which components it was made."""

    def now(self, database: str) -> Loader:
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

    def lately(self, database: str, after: Timestamp | None) -> Loader:
        """Return what was registered a moment ago (`Lately`).

        It is asked anew, too, where somebody asks `after` another time than who asked last: who has waited for jobs
        sees what they are of.
        """
        of, at = self._asked.get(database, (None, float("-inf")))
        if of == after and self._lately.counts(database, at):
            return self._known[database]
        begin = time.monotonic()
        loader = self.now(database)
        self._asked[database] = after, begin
        return loader

    def told(self, database: str) -> None:
        """Be told that something new may be registered."""
        self._lately.tell(database)

    def known(self, database: str) -> Loader:
        """Return what was registered when that was last asked."""
        return self._known[database]

    def collection(self, database: str, name: str) -> Collection[dict[str, Any]]:
        """Return a collection; raises `InvalidInputError` where its name is none."""
        try:
            return self._known[database].store.database[name]
        except InvalidName as error:
            raise InvalidInputError(f"{name!r:.80} is no name of a collection: {error}.") from None

    def spec(self, database: str, component: Component) -> IndexSpec:
        """Return which index a component asks for."""
        known, definition = self._known[database], component.definition
        model, measure = known.store.get("model", definition["models"][0]), definition["measure"]
        own = None if measure in BUILTIN else known.store.get("measure", measure)
        name = database, component.collection, component.id
        parts, spec = self._specs.get(name, ((), None))
        # The very same objects, until something is registered: compared by content they would cost what this saves.
        if spec is not None and all(map(is_, parts, (component, model, own))):
            return spec
        self.collection(database, component.collection)  # raises where its name is none
        spec = IndexSpec(
            database=database,
            collection=component.collection,
            id=component.id,
            definition=f"{component.hash} {measure if own is None else own.hash}",
            measure=Measure(measure) if own is None else Measure(measure, known.object(own)),
            options=IndexOptions.of(definition.get("index")),
            model=model.id,
            key=definition["keys"][0],
            version=model.version,
            filter=definition["filter"],
        )
        self._specs[name] = (component, model, own), spec
        return spec


def _look(store: CachedStore, asked: Sequence[None]) -> Sequence[None]:
    store.refresh()
    return asked


def _opened(client: MongoClient[dict[str, Any]], name: str) -> Database[dict[str, Any]]:
    try:
        return client[name]
    except InvalidName as error:
        raise InvalidInputError(f"{name!r:.80} is no name of a database: {error}.") from None


def chosen(store: ComponentStore, request: SearchRequest) -> Component:
    """Return the semantic index that a request means: the one it names, or the only one of its collection."""
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


def watcher_of(component: Component) -> str:
    """Return the watcher whose outputs an index holds."""
    return f"{component.definition['models'][0]}/{component.definition['keys'][0]}"
