"""A Jupyter server in this process with our extension, on engines that are simple and slow on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from pytest_jupyter.jupyter_server import *  # noqa: F403  (pytest allows plugins to be named only at the top)
from tornado.httpclient import HTTPClientError, HTTPResponse

from superduper_nb.documents.types import builtin_types
from superduper_nb.errors import InvalidInputError, MongoUnavailableError, NotFoundError
from superduper_nb.models import ItemError
from superduper_nb.search import SearchReply, SearchRequest
from superduper_nb.server_ext.app import SuperduperApp
from superduper_nb.server_ext.events import EventLog
from superduper_nb.serving import Body, Form, Prediction, Slice, Stream, UnreadBody
from superduper_nb.serving.codecs import over_http
from superduper_nb.serving.forms import write_outputs, write_piece

CODEC = over_http(builtin_types())
SECRET = "s3cr3t-of-mongodb"


class FakeJobs:
    """Job records in a dict."""

    def __init__(self) -> None:
        self.records = {
            f"j{n}": {"_id": f"j{n}", "kind": "outputs", "name": "m/text", "state": "running"} for n in range(5)
        }

    def list(self, status: str | None = None, since: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        found = [self.records[id] for id in sorted(self.records, reverse=True) if since is None or id < since]
        return [record for record in found if status in (None, record["state"])][:limit]

    def get(self, id: str) -> dict[str, Any]:
        if id not in self.records:
            raise NotFoundError(f"No job {id!r} in shop.")
        return self.records[id]

    def logs(self, id: str, since: int = 0) -> Any:
        self.get(id)
        return [{"n": n, "line": f"line {n}"} for n in range(since, 3)]

    def cancel(self, id: str) -> dict[str, Any]:
        self.get(id)["state"] = "cancelled"
        return self.get(id)

    def retry(self, id: str) -> dict[str, Any]:
        if self.get(id)["state"] == "running":
            raise InvalidInputError(f"Job {id} is running: there is nothing to retry.")
        self.get(id)["state"] = "pending"
        return self.get(id)


class FakeServices:
    """The engines, each as small as it can be; `calls` says what was asked of them."""

    def __init__(self, events: EventLog) -> None:
        self.mongo_uri = f"mongodb://ana:{SECRET}@127.0.0.1:1/"
        self.events = events
        self.calls: list[tuple[str, Any]] = []
        self.timeouts: list[float] = []
        self.store = FakeJobs()
        self.fail: BaseException | None = None
        self.hold: threading.Event | None = None
        self.closed = False
        self.pool = ThreadPoolExecutor(4)

    def status(self) -> dict[str, Any]:
        return {"version": "?", "mode": "test", "components": {"mongodb": {"state": "running", "where": "127.0.0.1:1"}}}

    def search(self, request: SearchRequest) -> SearchReply:
        self._asked("search", request)
        if request.semantic_index == "nope":
            raise NotFoundError("shop.products has no semantic index 'nope'. Known: 'meaning'.")
        given: Any = request.vector
        if given is not None and not request.many and len(given) != 4:
            raise InvalidInputError(f"The index has 4 dimensions, the vector {len(given)}.")
        ids: list[Any] = [request.id, 1, "b"][: request.n]
        scores: list[Any] = [1.0, 0.5, float("-inf")][: request.n]
        if request.many:
            ids, scores = [ids] * request.queries, [scores] * request.queries
        return SearchReply(
            ids=ids,
            scores=scores,
            distances=None,
            strategy="exact",
            candidates=3,
            survivors=2,
            stages_ms={"search": 0.05},
            pending=0,
            took_ms=0.1,
            index="meaning",
        )

    def search_each(self, requests: Sequence[SearchRequest]) -> list[SearchReply | Exception]:
        return [self._outcome(request) for request in requests]

    def _outcome(self, request: SearchRequest) -> SearchReply | Exception:
        try:
            return self.search(request)
        except Exception as error:
            return error

    def index_figures(self) -> list[dict[str, Any]]:
        return [
            {
                **{"database": "shop", "collection": "products", "id": "meaning"},
                **{"searches": [("0.001", 2), ("+Inf", 3)], "searched_s": 0.5, "size": 3, "bytes": 48, "lag_s": 0.25},
            }
        ]

    def indexes(self) -> list[dict[str, Any]]:
        return [self.describe_index("shop", "products", "meaning")]

    def describe_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        self._asked("describe_index", (database, collection, id))
        return {"database": database, "collection": collection, "id": id, "size": 3, "state": "current"}

    def refresh_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        self._asked("refresh_index", (database, collection, id))
        return self.describe_index(database, collection, id)

    def databases(self) -> list[str]:
        return ["shop"]

    def models(self, database: str) -> list[dict[str, Any]]:
        return [{"id": "double", "version": 0}]

    def model_figures(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        return [], {}

    def predict(self, database: str, model: str, inputs: list[Any], version: int | None = None) -> Prediction:
        self._asked("predict", inputs)
        if model != "double":
            raise NotFoundError(f"No model {model!r} in {database}.")
        return Prediction(outputs=[self._output(x) for x in inputs], version=version or 0, took_ms=0.2)

    def ask(
        self, database: str, model: str, body: Body | UnreadBody, *, form: Form, timeout: float
    ) -> Future[Prediction]:
        self.timeouts.append(timeout)

        def answer() -> Prediction:
            asked = body if isinstance(body, Body) else body.read(body.data)
            made = self.predict(database, model, CODEC.decode(asked.inputs, strict=True), asked.version)
            return Prediction(write_outputs(form, made.outputs, CODEC.encode), made.version, made.took_ms)

        return self.pool.submit(answer)

    def open(self, database: str, model: str, body: Body | UnreadBody, *, form: Form, timeout: float) -> Stream:
        self.timeouts.append(timeout)
        asked = body if isinstance(body, Body) else body.read(body.data)
        (x,) = asked.inputs

        def part(done: bool) -> Future[Slice]:
            self._asked("stream", x)
            return self.pool.submit(lambda: Slice([write_piece(form, x, CODEC.encode)], done, asked.version or 0))

        return Stream(lambda: part(False), lambda: part(True), lambda: self.calls.append(("dropped", x)))

    def unload_model(self, database: str, model: str) -> None:
        self._asked("unload", (database, model))

    def _output(self, x: Any) -> Any:
        if isinstance(x, (list, np.ndarray)):
            return np.asarray(x, dtype=np.float32) * 2
        answers = {"bad": ItemError("ValueError", "this one is 50% bad"), "unsendable": threading.Lock()}
        return answers.get(x, x)

    def jobs(self, database: str) -> FakeJobs:
        return self.store

    def notify(self, database: str, jobs: Collection[str]) -> None:
        self._asked("notify", database)
        self.events.publish({"type": "job", "database": database, "state": "pending"})

    def close(self) -> None:
        self.closed = True
        self.pool.shutdown(wait=False)

    def _asked(self, what: str, value: Any) -> None:
        self.calls.append((what, value))
        if self.hold is not None:
            assert self.hold.wait(30)
        if self.fail is not None:
            raise self.fail


@pytest.fixture
def start() -> SimpleNamespace:
    """How the engines start: `error` is raised by it, `gate` delays it, `services` is what came of it."""
    return SimpleNamespace(error=None, gate=None, services=None, times=0)


@pytest.fixture(autouse=True)
def _fake_engines(monkeypatch: pytest.MonkeyPatch, start: SimpleNamespace) -> None:
    def build(config: Any, events: EventLog, loop: Any) -> FakeServices:
        start.times += 1
        if start.gate is not None:
            assert start.gate.wait(30)
        if start.error is not None:
            raise start.error
        start.services = FakeServices(events)
        return start.services

    monkeypatch.setattr("superduper_nb.server_ext.app.build_services", build)


@pytest.fixture
def settings() -> dict[str, Any]:
    """Return traits of the extension for this test."""
    return {}


@pytest.fixture
def jp_server_config(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "ServerApp": {
            "jpserver_extensions": {"superduper_nb": True, "jupyter_server_terminals": False},
            "reraise_server_extension_failures": True,
            "allow_unauthenticated_access": False,
        },
        "SuperduperApp": settings,
    }


@pytest.fixture
def app(jp_serverapp: Any) -> SuperduperApp:
    """Return the extension, not started yet."""
    found = jp_serverapp.extension_manager.extension_points["superduper"].app
    assert isinstance(found, SuperduperApp)
    return found


@pytest.fixture
def running(jp_serverapp: Any, jp_asyncio_loop: Any, app: SuperduperApp) -> SuperduperApp:
    """Return the extension, started as the server starts it."""
    jp_asyncio_loop.run_until_complete(jp_serverapp.extension_manager.start_all_extensions())
    return app


Ask = Callable[..., Awaitable[SimpleNamespace]]


@pytest.fixture
def ask(jp_fetch: Any) -> Ask:
    """Return ``await ask(verb, path, body)`` -> status, headers, body (parsed where JSON), raw."""

    async def send(verb: str, path: str, body: Any = None, **options: Any) -> SimpleNamespace:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        try:
            answer = await jp_fetch(
                "superduper/api/v1",
                *path.split("/"),
                method=verb,
                body=data,
                headers=headers,
                allow_nonstandard_methods=True,
                **options,
            )
        except HTTPClientError as error:
            answer = cast("HTTPResponse", error.response)
        return _answer(answer)

    return send


def _answer(answer: HTTPResponse) -> SimpleNamespace:
    is_json = answer.headers.get("Content-Type", "").startswith("application/json")
    body = json.loads(answer.body) if is_json and answer.body else None
    return SimpleNamespace(status=answer.code, headers=answer.headers, body=body, raw=answer.body)


@pytest.fixture
def unavailable() -> MongoUnavailableError:
    return MongoUnavailableError("No MongoDB answers at db.example:27017: check mongodb.uri.")
