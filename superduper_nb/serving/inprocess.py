"""The model server's methods in this process, for scripts and tests: nothing is started, each call is run at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from superduper_nb.serving.shelf import Shelf, apply, whole
from superduper_nb.serving.statistics import Statistics
from superduper_nb.serving.stream import Stream
from superduper_nb.serving.streams import Streams
from superduper_nb.serving.values import Current, Errors, Load, Prediction, Slice

__all__ = ["InProcessModels"]

T = TypeVar("T")


class InProcessModels:
    """Models of this process, one call at a time. See `superduper_nb.serving.ModelServer` for the methods."""

    def __init__(self, load: Load, current: Current) -> None:
        self._shelf = Shelf(load, current)
        self._statistics: dict[tuple[str, str], Statistics] = {}
        self._lock = threading.RLock()  # a model may itself ask for a prediction

    def submit(self, database: str, model: str, inputs: list[Any], **options: Any) -> Future[Prediction]:
        """Return a future that is already done; a model that runs in this process can't be stopped at a deadline."""
        return _done(lambda: self.predict(database, model, inputs, **options))

    def predict(
        self,
        database: str,
        model: str,
        inputs: list[Any],
        *,
        version: int | None = None,
        timeout: float = 60.0,
        errors: Errors = "raise",
    ) -> Prediction:
        """Apply a model to inputs, here and now."""
        started = time.monotonic()
        with self._lock:
            entry = self._shelf.get(database, model, version)
            (answer,) = apply(entry.predictor, [inputs])
            took_ms = round((time.monotonic() - started) * 1000, 3)
            statistics, failed = self._statistics.setdefault((database, model), Statistics()), True
            try:
                outputs = whole(answer, errors)
                failed = False
            finally:
                statistics.record(took_ms, inputs=len(inputs), failed=failed)
                statistics.batches += 1
        return Prediction(outputs, entry.about.version, took_ms)

    def stream(self, database: str, model: str, x: Any, *, version: int | None = None, timeout: float = 60.0) -> Stream:
        """Run a model as its pieces are asked for."""
        streams = Streams(self._shelf.get, lambda database, x: x)

        def advance() -> Slice:
            with self._lock:
                return streams.advance(0)

        def begin() -> Slice:
            with self._lock:
                streams.open(0, (database, model, version), x, "objects")
                return streams.advance(0)

        return Stream(lambda: _done(begin), lambda: _done(advance), lambda: streams.end(0))

    def loaded(self) -> list[dict[str, Any]]:
        """List the models that were used, with their figures."""
        with self._lock:
            models = self._shelf.models()
            return [figures.row(*name, models=models) for name, figures in self._statistics.items()]

    def status(self) -> dict[str, Any]:
        """Say that it runs in this process."""
        return {"state": "running", "where": "this process"}

    def registered(self, database: str) -> None:
        """Be told that a new version may be registered: each call asks for the newest anyway."""

    def unload(self, database: str, model: str) -> None:
        """Drop a model from memory; the next call loads it again."""
        with self._lock:
            self._shelf.unload(database, model)

    def close(self) -> None:
        """Drop every model."""
        with self._lock:
            self._shelf.clear()


def _done(call: Callable[[], T]) -> Future[T]:
    """Call, and return what came of it."""
    future: Future[T] = Future()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    return future
