"""The client of another process's server: same values, same errors, through a real server."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import bson
import numpy as np
import pymongo
import pytest
from bson.binary import Binary
from jupyter_server.serverapp import ServerApp

from superduper_nb import errors
from superduper_nb.documents.codec import Codec
from superduper_nb.documents.types import builtin_types
from superduper_nb.errors import (
    DeadlineError,
    InvalidInputError,
    ModelError,
    NotFoundError,
    OverloadedError,
    ServerUnavailableError,
    SuperduperError,
)
from superduper_nb.models import ItemError
from superduper_nb.remote import Carried, RemoteServices
from superduper_nb.search import SearchReply, SearchRequest
from superduper_nb.serving import Prediction
from superduper_nb.transport import Transport

CODEC = Codec({id: type_ for id, type_ in builtin_types().items() if id != "pickle"})
CARRIED = Carried(
    reply=SearchReply,
    prediction=Prediction,
    item_error=ItemError,
    encode=lambda database, value: CODEC.encode(value),
    decode=lambda database, value: CODEC.decode(value),
)
InThread = Callable[..., Awaitable[Any]]


@pytest.fixture
def far(running: Any, http_server: Any, http_server_port: Any, jp_serverapp: ServerApp) -> Any:
    """Return the services of the running server, as another process sees them."""
    url = f"http://127.0.0.1:{http_server_port[1]}/a%40b/"
    services = RemoteServices(url, jp_serverapp.identity_provider.token, carried=CARRIED)
    yield services
    services.close()


async def away(call: Callable[..., Any], *args: Any) -> Any:
    """Call from a thread, as a kernel would from its process: the loop here has to answer."""
    return await asyncio.get_running_loop().run_in_executor(None, call, *args)


async def test_search(far: Any, start: SimpleNamespace) -> None:
    filter = {"at": {"$gt": datetime.datetime(2026, 1, 1)}, "ref": Binary(b"x" * 16, 4)}
    vector = np.arange(4, dtype=np.float32)
    asked = SearchRequest(
        database="shop",
        collection="products",
        semantic_index="meaning",
        vector=vector,
        filter=filter,
        n=2,
        min_score=0.1,
    )
    reply = await away(far.search, asked)
    assert isinstance(reply, SearchReply)
    assert (reply.ids, reply.scores, reply.index) == ([None, 1], [1.0, 0.5], "meaning")
    (_, got), *_ = start.services.calls
    np.testing.assert_array_equal(got.vector, vector)
    assert got.filter == filter
    assert (got.n, got.min_score, got.exact) == (2, 0.1, False)


async def test_every_option_travels(far: Any, start: SimpleNamespace) -> None:
    where = {"database": "shop", "collection": "products"}
    matrix = np.arange(8, dtype=np.float32).reshape(2, 4)
    reply = await away(far.search, SearchRequest(**where, vector=matrix, max_score=0.5))
    assert reply.ids == [[None, 1, "b"]] * 2
    np.testing.assert_array_equal(start.services.calls[-1][1].vector, matrix)
    for asked in (
        SearchRequest(**where, likes=[{"a": np.ones(2)}, {"_id": 3}]),
        SearchRequest(**where, like=[{"a": 1}, {"a": 2}], unlike={"_id": 1}, group_by="a.b", min_score=0.1),
        SearchRequest(**where, like={"a": 1}, text="warm wool"),
        SearchRequest(**where, id=1, diversity=0.3),
        SearchRequest(**where, id=1, filter={"a": 1}, untested=True),
    ):
        reply = await away(far.search, asked)
        assert repr(start.services.calls[-1][1]) == repr(asked)
    assert reply.stages_ms == {"search": 0.05}


@pytest.mark.parametrize(
    "id", [bson.ObjectId(), "x", 7, bson.Int64(2**40), datetime.datetime(2026, 1, 1), {"a": 1}, 0.5]
)
async def test_ids_of_any_type(far: Any, start: SimpleNamespace, id: Any) -> None:
    reply = await away(far.search, SearchRequest(database="shop", collection="products", id=id))
    assert start.services.calls[0][1].id == id
    assert reply.ids[0] == id


async def test_like_may_hold_objects(far: Any, start: SimpleNamespace) -> None:
    matrix = np.eye(3)
    await away(far.search, SearchRequest(database="shop", collection="products", like={"img": matrix, "text": "warm"}))
    got = start.services.calls[0][1].like
    np.testing.assert_array_equal(got["img"], matrix)
    assert got["text"] == "warm"


async def test_predict(far: Any) -> None:
    made = await away(far.predict, "shop", "double", [np.ones(3, np.float32), "bad", "x", np.eye(2)], 4)
    assert isinstance(made, Prediction)
    np.testing.assert_array_equal(made.outputs[0], 2 * np.ones(3, np.float32))
    assert made.outputs[0].dtype == np.float32
    assert made.outputs[1] == ItemError("ValueError", "this one is 50% bad")
    assert made.outputs[2] == "x"
    np.testing.assert_array_equal(made.outputs[3], 2 * np.eye(2))
    assert made.version == 4


async def test_the_rest(far: Any, start: SimpleNamespace) -> None:
    assert (await away(far.status))["state"] in ("starting", "ready")
    assert (await away(far.indexes))[0]["id"] == "meaning"
    assert (await away(far.describe_index, "shop", "my.things", "meaning"))["collection"] == "my.things"
    assert (await away(far.refresh_index, "shop", "products", "meaning"))["size"] == 3
    assert await away(far.models, "shop") == [{"id": "double", "version": 0}]
    await away(far.notify, "shop", ["j1"])
    assert start.services.calls[-1] == ("notify", "shop")


async def test_errors_come_back_as_what_they_were(far: Any, running: Any, start: SimpleNamespace) -> None:
    await running.engine.services(wait=5)
    named = [getattr(errors, name) for name in errors.__all__]
    classes = [cls for cls in named if isinstance(cls, type) and issubclass(cls, SuperduperError)]
    asked = SearchRequest(database="shop", collection="products", id=1)
    for cls in classes:
        start.services.fail = cls("50% of it: odd")
        with pytest.raises(SuperduperError) as caught:
            await away(far.search, asked)
        assert type(caught.value) is cls
        assert str(caught.value) == "50% of it: odd"
    start.services.fail = OverloadedError("full", 7)
    with pytest.raises(OverloadedError) as full:
        await away(far.search, asked)
    assert full.value.retry_after == 7


async def test_bad_input_is_the_callers(far: Any) -> None:
    with pytest.raises(InvalidInputError, match="no type stores"):
        await away(far.predict, "shop", "double", [threading.Lock()])
    with pytest.raises(InvalidInputError, match="can't be sent"):
        await away(far.search, SearchRequest(database="shop", collection="products", id=2**70))
    with pytest.raises(NotFoundError, match="No model 'tripel'"):
        await away(far.predict, "shop", "tripel", [1])
    with pytest.raises(ModelError, match="can't be sent"):
        await away(far.predict, "shop", "double", ["unsendable"])
    with pytest.raises(InvalidInputError, match="database"):
        await away(far.models, "a.b")


async def test_a_wrong_token(far: Any) -> None:
    stranger = RemoteServices(far.url, "wr0ng", carried=CARRIED)
    with pytest.raises(ServerUnavailableError) as caught:
        await away(stranger.status)
    assert "wr0ng" not in str(caught.value) + repr(stranger)
    stranger.close()


def test_nobody_there(http_server_port: Any) -> None:
    socket, port = http_server_port
    socket.close()
    services = RemoteServices(f"http://127.0.0.1:{port}/", "t0ken", carried=CARRIED)
    with pytest.raises(ServerUnavailableError, match=rf"127\.0\.0\.1:{port}.*refused") as caught:
        services.status()
    assert "t0ken" not in str(caught.value)


@pytest.fixture
def strange() -> Any:
    """Return the URL of a server that is none of ours: it says hello, or after a path nothing at all."""
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "silent" in self.path:
                done.wait(20)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    done.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_something_else_there(strange: str) -> None:
    with pytest.raises(ServerUnavailableError, match="does not speak BSON"):
        RemoteServices(strange, carried=CARRIED).status()


def test_no_answer_in_time(strange: str) -> None:
    with pytest.raises(DeadlineError, match="silent"):
        Transport(strange).request("GET", "silent", timeout=0.1)


def test_the_time_that_pymongo_allows_is_ours_too(strange: str) -> None:
    services = RemoteServices(f"{strange}silent/", carried=CARRIED)
    with pytest.raises(DeadlineError, match=r"in 0\.[01]"), pymongo.timeout(0.2):
        services.status()


@pytest.mark.parametrize("url", ["localhost:8888", "ftp://x/", "", "http://"])
def test_no_url(url: str) -> None:
    with pytest.raises(InvalidInputError, match="http://host:port/"):
        Transport(url)
