"""The model server's methods in this process, for scripts and tests: nothing is started, each call is run at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

from superduper_nb.errors import ModelError
from superduper_nb.serving.shelf import Shelf, apply
from superduper_nb.serving.statistics import Statistics
from superduper_nb.serving.values import Current, Load, Prediction

__all__ = ["InProcessModels"]


class InProcessModels:
    """Models of this process, one call at a time. See `superduper_nb.serving.ModelServer` for the methods."""

    def __init__(self, load: Load, current: Current) -> None:
        self._shelf = Shelf(load, current)
        self._statistics: dict[tuple[str, str], Statistics] = {}
        self._lock = threading.RLock()  # a model may itself ask for a prediction

    def submit(
        self, database: str, model: str, inputs: list[Any], *, version: int | None = None, timeout: float = 60.0
    ) -> Future[Prediction]:
        """Return a future that is already done; a model that runs in this process can't be stopped at a deadline."""
        future: Future[Prediction] = Future()
        try:
            future.set_result(self.predict(database, model, inputs, version=version, timeout=timeout))
        except Exception as error:
            future.set_exception(error)
        return future

    def predict(
        self, database: str, model: str, inputs: list[Any], *, version: int | None = None, timeout: float = 60.0
    ) -> Prediction:
        """Apply a model to inputs, here and now."""
        started = time.monotonic()
        with self._lock:
            entry = self._shelf.get(database, model, version)
            (answer,) = apply(entry.predictor, [inputs])
            took_ms = (time.monotonic() - started) * 1000
            statistics = self._statistics.setdefault((database, model), Statistics())
            statistics.record(took_ms, inputs=len(inputs), failed=isinstance(answer, ModelError))
        if isinstance(answer, ModelError):
            raise answer
        return Prediction(answer, entry.about.version, took_ms)

    def loaded(self) -> list[dict[str, Any]]:
        """List the models that were used, with their figures."""
        with self._lock:
            models = self._shelf.models()
            return [figures.row(*name, models=models) for name, figures in self._statistics.items()]

    def status(self) -> dict[str, Any]:
        """Say that it runs in this process."""
        return {"state": "running", "where": "this process"}

    def unload(self, database: str, model: str) -> None:
        """Drop a model from memory; the next call loads it again."""
        with self._lock:
            self._shelf.unload(database, model)

    def close(self) -> None:
        """Drop every model."""
        with self._lock:
            for about in self._shelf.models():
                self._shelf.unload(about.database, about.model)
