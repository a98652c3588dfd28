"""Search, model server and job records over one MongoDB connection."""

from __future__ import annotations

import platform
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Any

from pymongo import MongoClient

from superduper_nb._version import __version__
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.components.store import COLLECTION as COMPONENTS
from superduper_nb.config import SearchConfig
from superduper_nb.jobs.records import COLLECTION as JOBS
from superduper_nb.jobs.records import JobStore
from superduper_nb.models.loading import Loader
from superduper_nb.search import SearchEngine, SearchReply, SearchRequest
from superduper_nb.search.keeper import default_folder
from superduper_nb.serving import Errors, InProcessModels, ModelServer, Prediction, Stream

__all__ = ["Engines"]


class Engines:
    """What both kinds of local services share."""

    mode: str

    def __init__(
        self,
        client: MongoClient[Any],
        models: ModelServer | InProcessModels,
        search: SearchConfig | None = None,
        pool: DaskPool | None = None,
    ) -> None:
        self.client, self._models = client, models
        memory = search and search.memory_gb
        self._search = SearchEngine(
            client,
            self._encode,
            self._pending,
            snapshots=default_folder(),
            memory=int(memory * 2**30) if memory else None,
            pool=pool,
        )

    def status(self) -> dict[str, Any]:
        """Say where each component runs, in which version and state."""
        models = self._models.loaded()
        return {
            "version": __version__,
            "python": platform.python_version(),
            "mode": self.mode,
            "components": {
                "mongodb": self._mongodb_status(),
                "jobs": self._jobs_status(),
                "linear_algebra": self._search_status(),
                "model_server": {**self._models.status(), "models": len(models)},
            },
        }

    def _search_status(self) -> dict[str, Any]:
        indexes = len(self._search.indexes())
        return {"state": "running", "where": "this process", "indexes": indexes, "bytes": self._search.nbytes}

    def _mongodb_status(self) -> dict[str, Any]:
        host, port = self.client.address or ("?", "?")
        try:
            return {"state": "running", "where": f"{host}:{port}", "version": self.client.server_info()["version"]}
        except Exception as error:
            return {"state": "unreachable", "where": f"{host}:{port}", "error": type(error).__name__}

    def _jobs_status(self) -> dict[str, Any]:
        return {"state": "running", "where": "in the foreground"}

    def search(self, request: SearchRequest) -> SearchReply:
        """Find the nearest of the documents that match."""
        return self._search.search(request)

    def search_each(self, requests: Sequence[SearchRequest]) -> list[SearchReply | Exception]:
        """Answer requests that go together; see `SearchEngine.search_each`."""
        return self._search.search_each(requests)

    def index_figures(self) -> list[dict[str, Any]]:
        """Return what each index did and how it is, in numbers."""
        return self._search.figures()

    def notify(self, database: str, jobs: Collection[str]) -> None:
        """Be told that something was registered, or that these jobs were recorded."""
        self._search.registered(database)
        self._models.registered(database)

    def indexes(self) -> list[dict[str, Any]]:
        """List the indexes in memory."""
        return self._search.indexes()

    def describe_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Say how large, how fresh and in what state an index is."""
        return self._search.describe(database, collection, id)

    def refresh_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Load an index anew."""
        return self._search.refresh(database, collection, id)

    def databases(self) -> list[str]:
        """List the databases that hold components or jobs."""
        ours = {"name": {"$in": [COMPONENTS, JOBS]}}
        names = self.client.list_database_names()
        return [name for name in names if self.client[name].list_collection_names(filter=ours)]

    def models(self, database: str) -> list[dict[str, Any]]:
        """List the models of a database, and how those do that were asked for."""
        live = {entry["model"]: entry for entry in self._models.loaded() if entry["database"] == database}
        known = Loader(self.client[database]).store.current("model")
        return [
            {
                "id": model.id,
                "version": model.version,
                "state": "unloaded",
                **model.definition,
                **(model.notes or {}),
                # One that is still being loaded has no version of its own yet.
                **{name: value for name, value in live.get(model.id, {}).items() if (name, value) != ("version", None)},
            }
            for model in known
        ]

    def model_figures(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return what the model server says about each model, and about itself."""
        return self._models.loaded(), self._models.status()

    def predict(
        self, database: str, model: str, inputs: list[Any], version: int | None = None, errors: Errors = "raise"
    ) -> Prediction:
        """Apply a model."""
        return self._models.predict(database, model, inputs, version=version, errors=errors)

    def submit(self, database: str, model: str, inputs: list[Any], **options: Any) -> Future[Prediction]:
        """Have a model applied; options are those of `ModelServer.submit`."""
        return self._models.submit(database, model, inputs, **options)

    def stream(self, database: str, model: str, x: Any, version: int | None = None) -> Stream:
        """Have a model's output for one input yielded."""
        return self._models.stream(database, model, x, version=version)

    def load_model(self, database: str, model: str, example: Any = None) -> dict[str, Any]:
        """Load a model, and apply it to an example."""
        made = self.predict(database, model, [] if example is None else [example])
        return {"version": made.version, "took_ms": made.took_ms}

    def unload_model(self, database: str, model: str) -> None:
        """Drop a model from memory."""
        self._models.unload(database, model)

    def jobs(self, database: str) -> JobStore:
        """Return the jobs of a database."""
        return JobStore(self.client[database])

    def close(self) -> None:
        """Stop the engines; harmless when done twice."""
        self._search.close()
        self._models.close()

    def _pending(self, database: str, collection: str, watcher: str) -> int:
        return self.jobs(database).pending(collection, watcher)

    def _encode(self, database: str, model: str, inputs: list[Any], version: int | None) -> list[Any]:
        outputs: list[Any] = self.predict(database, model, inputs, version).outputs
        return outputs
