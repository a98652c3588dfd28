"""The four engines of the cluster as objects in this process: MongoDB, jobs, linear algebra, model server.

The client asks an object with the methods of `Services` and does not know whether it got one of those here or the HTTP
client of a notebook server (`superduper_nb.remote.RemoteServices`).
"""

from __future__ import annotations

import contextlib
import os
import platform
from asyncio import AbstractEventLoop
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from functools import cache, partial
from typing import Any, Final, Protocol

from pymongo import MongoClient

from superduper_nb._version import __version__
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.cluster.mongod import Mongod, connect_options, knock, wrap_uri_errors
from superduper_nb.components.store import COLLECTION as COMPONENTS
from superduper_nb.components.store import ComponentStore
from superduper_nb.components.trust import TRUST_KEY, trust_key
from superduper_nb.config import Config, DownloadsConfig, SearchConfig
from superduper_nb.documents.download import DownloadPolicy
from superduper_nb.documents.types import Type
from superduper_nb.errors import ModelError, SuperduperError
from superduper_nb.jobs.dispatcher import Dispatcher
from superduper_nb.jobs.follower import Follower
from superduper_nb.jobs.foreground import run_foreground
from superduper_nb.jobs.records import COLLECTION as JOBS
from superduper_nb.jobs.records import JobStore
from superduper_nb.models.apply import Predictor
from superduper_nb.models.loading import Loader
from superduper_nb.search import SearchEngine, SearchReply, SearchRequest
from superduper_nb.search.keeper import default_folder
from superduper_nb.serving import Body, Errors, Form, InProcessModels, ModelServer, Prediction, Stream, UnreadBody
from superduper_nb.serving.cluster import OnCluster

__all__ = ["InProcessServices", "LocalServices", "Services"]

_MONGODB_URI: Final = "SUPERDUPER_MONGODB__URI"
"""Where workers find MongoDB."""


class Services(Protocol):
    """What the client asks of the cluster, wherever that runs."""

    def status(self) -> dict[str, Any]:
        """Say where each component runs, in which version and state."""

    def search(self, request: SearchRequest) -> SearchReply:
        """Find the nearest of the documents that match."""

    def indexes(self) -> list[dict[str, Any]]:
        """List the indexes in memory."""

    def describe_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Say how large, how fresh and in what state an index is."""

    def refresh_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Load an index anew."""

    def models(self, database: str) -> list[dict[str, Any]]:
        """List the models of a database, and how those in memory do."""

    def predict(
        self, database: str, model: str, inputs: list[Any], version: int | None = None, errors: Errors = "raise"
    ) -> Prediction:
        """Apply a model."""

    def submit(self, database: str, model: str, inputs: list[Any], **options: Any) -> Future[Prediction]:
        """Have a model applied; options are those of `predict`."""

    def stream(self, database: str, model: str, x: Any, version: int | None = None) -> Iterable[Any]:
        """Return what yields what a model yields for one input, as it comes; closed where iteration ends."""

    def load_model(self, database: str, model: str, example: Any = None) -> dict[str, Any]:
        """Load a model in the model server, and apply it to an example."""

    def unload_model(self, database: str, model: str) -> None:
        """Drop a model from the model server's memory."""

    def notify(self, database: str, jobs: Collection[str]) -> None:
        """Say that jobs were written; in-process services run them before they return."""

    def close(self) -> None:
        """Stop what was started."""


class _Engines:
    """Search, model server and job records over one MongoDB connection: what both kinds of local services share."""

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
        """List the models of a database, and how those in memory do."""
        live = {entry["model"]: entry for entry in self._models.loaded() if entry["database"] == database}
        known = Loader(self.client[database]).store.current("model")
        return [
            {
                "id": model.id,
                "version": model.version,
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


class InProcessServices(_Engines):
    """Everything in this process; jobs run in the foreground, as they are written.

    Parameters
    ----------
    client : pymongo.MongoClient
        Where documents, components and jobs are.
    config : Config, optional
        What content may be fetched from where, how much memory indexes may take; default: the defaults.
    """

    mode = "in one process"

    def __init__(self, client: MongoClient[Any], config: Config | None = None) -> None:
        downloads, search = (config.downloads, config.linear_algebra) if config else (DownloadsConfig(), None)
        self._loaders: dict[str, Loader] = {}
        self._downloads = DownloadPolicy(**downloads.values())
        super().__init__(client, InProcessModels(self._load, self._current), search)

    def notify(self, database: str, jobs: Collection[str]) -> None:
        """Run these jobs, and return when they have ended."""
        if jobs:
            run_foreground(self.client[database], self._loader(database), jobs, self._downloads)

    def _loader(self, database: str) -> Loader:
        return self._loaders.setdefault(database, Loader(self.client[database]))

    def _load(self, database: str, model: str, version: int | None) -> tuple[Predictor, int]:
        predictor, component = self._loader(database).model(model, version)
        return predictor, component.version

    def _current(self, database: str, model: str) -> int:
        return self._loader(database).store.get("model", model).version


class LocalServices(_Engines):
    """The whole cluster on this machine, for a notebook server to hold: MongoDB, workers, search, model server.

    Parameters
    ----------
    config : Config
        Where MongoDB is, how many workers.
    on_event : callable, optional
        Told of job events (`Dispatcher`).
    loop : asyncio.AbstractEventLoop, optional
        Where requests come from, which the model server may share; not that of the thread that closes the services.

    Attributes
    ----------
    mongo_uri : str
        With credentials: for kernels of this user on this machine.

    Raises
    ------
    MongoUnavailableError, ServiceError
        A part does not start; what had started is stopped again.
    """

    mode = "notebook server"

    def __init__(
        self,
        config: Config,
        *,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        loop: AbstractEventLoop | None = None,
    ) -> None:
        with contextlib.ExitStack() as undo:
            self._mongod, self.mongo_uri = _mongodb(config, undo)
            with wrap_uri_errors(config.mongodb.where):
                client: MongoClient[dict[str, Any]] = MongoClient(self.mongo_uri, **connect_options())
                undo.callback(client.close)
                knock(client)
            self._pool = _pool(config, self.mongo_uri)
            undo.callback(self._pool.close)
            self._server = _model_server(config, self.mongo_uri, self._pool, loop)
            super().__init__(client, self._server, config.linear_algebra, self._pool)
            undo.callback(super().close)
            self._pool.start()
            self._dispatcher = Dispatcher(
                client,
                self._pool,
                in_flight=config.jobs.in_flight,
                batch_timeout=config.jobs.batch_timeout,
                on_event=on_event,
            )
            undo.callback(self._dispatcher.close)
            self._dispatcher.start()
            self._follower = Follower(client, self._dispatcher.notify)
            undo.callback(self._follower.close)
            self._follower.start()
            self._undo = undo.pop_all()

    def describe_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Say how an index is; see that it and the models that encode its queries are on their way into memory."""
        described = super().describe_index(database, collection, id)
        index = ComponentStore(self.client[database]).get("semantic_index", id, collection=collection)
        for model in set(index.definition["models"]):
            self._models.submit(database, model, [])  # its import of torch alone takes seconds
        return described

    def ask(
        self, database: str, model: str, body: Body | UnreadBody, *, form: Form, timeout: float
    ) -> Future[Prediction]:
        """Have a model applied to what came over HTTP."""
        return self._server.ask(database, model, body, form=form, timeout=timeout)

    def open(self, database: str, model: str, body: Body | UnreadBody, *, form: Form, timeout: float) -> Stream:
        """Have a model's output yielded for what came over HTTP."""
        return self._server.open(database, model, body, form=form, timeout=timeout)

    def _encode(self, database: str, model: str, inputs: list[Any], version: int | None) -> list[Any]:
        # A tensor would have the event loop import torch, which holds everything up for a second and more.
        return list(self._server.submit(database, model, inputs, version=version, form="arrays").result().outputs)

    def notify(self, database: str, jobs: Collection[str]) -> None:
        """Have the dispatcher look at once."""
        self._dispatcher.notify(database)

    def close(self) -> None:
        """Stop everything that was started; harmless when done twice."""
        self._undo.close()

    def _jobs_status(self) -> dict[str, Any]:
        return self._pool.describe()

    def _mongodb_status(self) -> dict[str, Any]:
        status = super()._mongodb_status() | {"embedded": self._mongod is not None}
        if self._mongod is not None and status["state"] != "running":
            status["error"] = self._mongod.status()["error"] or status["error"]
        return status


def _mongodb(config: Config, undo: contextlib.ExitStack) -> tuple[Mongod | None, str]:
    settings = config.mongodb
    if (uri := settings.address()) is not None:
        return None, uri
    mongod = undo.enter_context(Mongod.attach(settings.data, cache_gb=settings.cache_gb))
    return mongod, mongod.uri


def _workers(config: Config) -> int:
    return config.jobs.workers or os.cpu_count() or 1


def _pool(config: Config, mongo_uri: str) -> DaskPool:
    settings = config.jobs
    return DaskPool(
        address=settings.scheduler,
        tls=settings.certificates,
        max_workers=settings.max_workers,
        workers=_workers(config),
        threads=settings.threads,
        memory=_bytes(settings.memory_gb),
        resources=settings.resources,
        environment=_workers_environment(config, mongo_uri),
    )


def _workers_environment(config: Config, mongo_uri: str) -> dict[str, str]:
    """Return what workers can't know: other machines have no file with our key, and their own way to MongoDB."""
    if config.jobs.scheduler:
        return {TRUST_KEY: trust_key().hex()}
    return {_MONGODB_URI: mongo_uri, **config.downloads.environment()}


def _model_server(config: Config, mongo_uri: str, pool: DaskPool, loop: AbstractEventLoop | None) -> ModelServer:
    settings = config.model_server
    on_cluster = settings.placement == "cluster"
    uri = None if on_cluster else mongo_uri  # a worker has its own way to MongoDB in its environment
    return ModelServer(
        partial(load_model, uri),
        partial(current_version, uri),
        types=partial(registered_types, uri),
        place=OnCluster(pool, settings.resources) if on_cluster else None,
        replicas=settings.replicas,
        memory=_bytes(settings.memory_gb),
        loop=loop,
    )


def _bytes(gb: float | None) -> int | None:
    return int(gb * 2**30) if gb else None


# The model server's child process calls these with the URI bound, or None for that of its environment; it keeps its
# connection and loaders.


@cache
def _child_loader(uri: str | None, database: str) -> Loader:
    return Loader(_child_client(uri)[database])


@cache
def _child_client(uri: str | None) -> MongoClient[dict[str, Any]]:
    return MongoClient(uri or os.environ[_MONGODB_URI], **connect_options())


def load_model(uri: str | None, database: str, model: str, version: int | None) -> tuple[Predictor, int]:
    """Load a model in the process that serves it."""
    try:
        predictor, component = _child_loader(uri, database).model(model, version)
    except SuperduperError:
        raise
    except Exception as error:
        raise ModelError(f"The model {model!r} can't be loaded: {type(error).__name__}: {error}") from error
    return predictor, component.version


def registered_types(uri: str | None, database: str) -> dict[str, Type]:
    """Return the types that a database's documents may have, the built-in ones among them."""
    return _child_loader(uri, database).types()


def current_version(uri: str | None, database: str, model: str) -> int:
    """Return the version of a model that is current now."""
    return _child_loader(uri, database).store.newest("model", model)
