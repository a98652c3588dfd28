"""From records to live objects, each loaded once a process and version."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from pymongo.database import Database

from superduper_nb.components.store import Component, ComponentStore
from superduper_nb.documents.codec import Codec
from superduper_nb.documents.types import Type, builtin_types
from superduper_nb.models.apply import Predictor
from superduper_nb.models.shapes import OneShape

__all__ = ["Loader"]

T = TypeVar("T")

_KEEP: Final = 16


class Loader:
    """Loads the components of one database and keeps the last sixteen versions used.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose components.
    store : ComponentStore, optional
        Where to look them up; default: in the database, each time.
    """

    def __init__(self, database: Database[Any], store: ComponentStore | None = None) -> None:
        self.store = store or ComponentStore(database)
        self._cache: dict[str, Any] = {}
        self._lock = threading.Lock()

    def object(self, component: Component) -> Any:
        """Return the object of a component."""
        loaded: Any = self._cached(f"object {component.hash}", lambda: self.store.load(component))
        return loaded

    def predictor(self, model: Component, batch_size: int | None = None) -> Predictor:
        """Return a model ready to be applied, with batches of the size that it was registered with, or of this one."""
        if batch_size is not None:
            return self._cached(
                f"predictor {model.hash} {batch_size}", lambda: self.predictor(model).with_batch_size(batch_size)
            )

        return self._cached(f"predictor {model.hash}", lambda: self.built(model))

    def built(self, model: Component) -> Predictor:
        """Return a model ready to be applied that is not kept here: it leaves memory with whoever holds it."""
        bundle = self.store.load(model)
        options: dict[str, Any] = {name: model.definition.get(name) for name in ("batch_size", "device", "optimize")}
        steps = {name: bundle[name] for name in ("preprocess", "postprocess")}
        made = Predictor(bundle["object"], **steps, **options)
        if model.definition["type"] == "vector" and not made.streams:
            made.postprocess = OneShape(self.store, model, made.postprocess)
        if options["optimize"] == "compile":
            made.warm_up(bundle["examples"])
        return made

    def model(self, id: str, version: int | None = None) -> tuple[Predictor, Component]:
        """Return a model by name, in a version (the current one by default), with its record."""
        component = self.store.get("model", id, version=version)
        return self.predictor(component), component

    def codec(self) -> Codec:
        """Return a codec that knows the built-in types and those registered now."""
        own = self.store.current("type", collection="")
        key = "codec " + " ".join(sorted(component.hash for component in own))
        return self._cached(key, lambda: Codec(self._types(own)))

    def types(self) -> dict[str, Type]:
        """Return the built-in types and those registered now, by name."""
        return self._types(self.store.current("type", collection=""))

    def _types(self, own: Sequence[Component]) -> dict[str, Type]:
        return {**builtin_types(), **{component.id: self.object(component) for component in own}}

    def _cached(self, key: str, build: Callable[[], T]) -> T:
        with self._lock:
            if key in self._cache:
                held: T = self._cache.pop(key)
                self._cache[key] = held  # the most recently used is last
                return held
        value = build()
        with self._lock:
            self._cache[key] = value
            if len(self._cache) > _KEEP:
                del self._cache[next(iter(self._cache))]
        return value
