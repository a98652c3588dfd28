"""Predictions and searches that take the short way: answered as handlers answer, and only where nothing is special."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from jupyter_server.auth import Authorizer, IdentityProvider
from jupyter_server.auth.authorizer import AllowAllAuthorizer

from superduper_nb.errors import DeadlineError, InvalidInputError, ModelError, OverloadedError, ServiceError
from superduper_nb.server_ext.direct import DirectWay
from superduper_nb.server_ext.metrics import REQUEST_SECONDS

PATH = "models/shop/double/predict"
GOOD = {"inputs": [[1, 2], "x"]}
SEARCH = {"database": "shop", "collection": "products", "vector": [1.0, 2.0, 3.0, 4.0]}
BSON = {"Content-Type": "application/bson", "Accept": "application/bson"}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return whether requests to the route took the short way, one after the other."""
    found: list[bool] = []
    find_handler = DirectWay.find_handler

    def note(self: DirectWay, request: Any, **parameters: Any) -> Any:
        delegate = find_handler(self, request, **parameters)
        found.append(delegate is not None)
        return delegate

    monkeypatch.setattr(DirectWay, "find_handler", note)
    return found


@pytest.fixture
def known(running: Any, ask: Any, jp_asyncio_loop: Any) -> Any:
    """Return the extension after a first request, which checked the server's name."""
    answer = jp_asyncio_loop.run_until_complete(ask("POST", PATH, GOOD))
    assert answer.status == 200
    return running


REQUESTS: dict[str, tuple[str, Any, dict[str, str]]] = {
    "JSON": (PATH, GOOD, {}),
    "a version": (PATH, {**GOOD, "version": 7}, {}),
    "one input failed": (PATH, {"inputs": ["bad"], "errors": "return"}, {}),
    "BSON": (PATH, bson.encode({"inputs": [[1.0, 2.0]]}), BSON),
    "JSON in, BSON out": (PATH, GOOD, {"Accept": "application/bson"}),
    "no JSON": (PATH, b"{", {}),
    "no object": (PATH, b"[]", {}),
    "nothing": (PATH, b"", {}),
    "no BSON": (PATH, b"{}", BSON),
    "an unknown field": (PATH, {**GOOD, "x": 1}, {}),
    "a wrong version": (PATH, {**GOOD, "version": "7"}, {}),
    "another type": (PATH, b"x", {"Content-Type": "text/plain"}),
    "what can't be sent": (PATH, {"inputs": ["unsendable"]}, {}),
    "a URL": (PATH, {"inputs": [{"_type": "image", "_url": "http://127.0.0.1:1/x.png"}]}, {}),
    "no such model": ("models/shop/nope/predict", GOOD, {}),
    "a wrong name": ("models/shop/no%20pe/predict", GOOD, {}),
    "a wrong database": ("models/admin/double/predict", GOOD, {}),
    "no UTF-8": ("models/shop/%ff/predict", GOOD, {}),
    "a search": ("search", SEARCH, {}),
    "a search in BSON": ("search", bson.encode(SEARCH), BSON),
    "a search, BSON out": ("search", SEARCH, {"Accept": "application/bson"}),
    "a batch": ("search", {**SEARCH, "vector": [SEARCH["vector"]] * 2}, {}),
    "a filter": ("search", {**SEARCH, "filter": {"price": {"$lt": 50}}}, {}),
    "a search by example": ("search", {**SEARCH, "vector": None, "like": {"text": "red"}}, {}),
    "a search by id": ("search", {**SEARCH, "vector": None, "id": 1}, {}),
    "another dimension": ("search", {**SEARCH, "vector": [1.0]}, {}),
    "no search": ("search", b"{", {}),
    "no body": ("search", b"", {}),
    "code": ("search", {**SEARCH, "filter": {"$where": "1"}}, {}),
    "an unknown field of a search": ("search", {**SEARCH, "x": 1}, {}),
    "a search of another type": ("search", b"vector", {"Content-Type": "text/plain"}),
}
FAILURES: dict[str, BaseException] = {
    "refused": InvalidInputError("These are 50% wrong."),
    "failed": ModelError("The model failed."),
    "too many": OverloadedError("300 inputs wait.", retry_after=7.4),
    "too late": DeadlineError("It took too long."),
    "ended": ServiceError("The process ended."),
    "a surprise": ZeroDivisionError("secret"),
}


async def both_ways(ask: Any, path: str, body: Any, headers: dict[str, str]) -> list[tuple[Any, ...]]:
    """Return what is answered the short way and by the handler: status, headers, body."""
    answers = []
    for way in (None, lambda *about, **parameters: None):
        with pytest.MonkeyPatch.context() as patch:
            if way is not None:
                patch.setattr(DirectWay, "find_handler", way)
            answer = await ask("POST", path, body, headers=headers)
        said = sorted((name, value) for name, value in answer.headers.get_all() if name != "Date")
        assert "Date" in answer.headers
        answers.append((answer.status, said, answer.raw))
    return answers


@pytest.mark.parametrize("settings_of_server", [{}, {"allow_origin": "*", "headers": {"X-Ours": "1"}}])
async def test_the_answer_is_the_handlers(
    running: Any, jp_serverapp: Any, ask: Any, taken: list[bool], settings_of_server: dict[str, Any]
) -> None:
    jp_serverapp.web_app.settings.update(settings_of_server)
    await running.engine.services(wait=5)
    await ask("POST", PATH, GOOD)
    for name, (path, body, headers) in REQUESTS.items():
        direct, handlers = await both_ways(ask, path, body, headers)
        assert direct == handlers, name
        assert taken[-1] == (name not in ("a wrong name", "a wrong database", "no UTF-8")), name


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failure_is_told_as_the_handler_does(
    known: Any, taken: list[bool], ask: Any, start: SimpleNamespace, failure: str
) -> None:
    start.services.fail = FAILURES[failure]
    for path, body in ((PATH, GOOD), ("search", SEARCH)):
        direct, handlers = await both_ways(ask, path, body, {})
        assert direct == handlers
        assert direct[0] >= 400
        assert b"secret" not in direct[2]
    assert taken == [True, True]


@pytest.mark.parametrize(
    ("special", "verb", "body", "headers", "params"),
    [
        ("no token", "POST", GOOD, {"Authorization": ""}, {}),
        ("a wrong token", "POST", GOOD, {"Authorization": "token x"}, {}),
        ("a cookie", "POST", GOOD, {"Cookie": "a=b"}, {}),
        ("a page", "POST", GOOD, {"Origin": "http://elsewhere.example"}, {}),
        ("a foreign name of the server", "POST", GOOD, {"Host": "elsewhere.example"}, {}),
        ("a parameter", "POST", GOOD, {}, {"x": "1"}),
        ("another verb", "PUT", GOOD, {}, {}),
        ("a long body", "POST", {"inputs": ["x" * 70_000]}, {}, {}),
    ],
)
async def test_what_is_special_goes_to_the_handler(
    known: Any,
    ask: Any,
    taken: list[bool],
    special: str,
    verb: str,
    body: Any,
    headers: dict[str, str],
    params: dict[str, str],
) -> None:
    await ask(verb, PATH, body, headers=headers, params=params)
    assert taken == [False]


async def test_the_limit_of_a_body_holds(known: Any, ask: Any, taken: list[bool]) -> None:
    known.max_body_bytes = 100
    assert (await ask("POST", PATH, {"inputs": ["x" * 200]})).status == 413
    assert taken == [False]


async def test_engines_that_are_not_up_are_waited_for(
    known: Any, ask: Any, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known.engine, "state", "stopped")
    assert (await ask("POST", PATH, GOOD)).status == 503
    assert taken == [False]


class Nobody(Authorizer):
    """Allows nothing."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return False


async def test_another_authorizer_is_asked(
    known: Any, ask: Any, jp_serverapp: Any, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(jp_serverapp.web_app.settings, "authorizer", Nobody(parent=jp_serverapp))
        assert (await ask("POST", PATH, GOOD)).status == 403
    with monkeypatch.context() as patch:
        patch.setattr(AllowAllAuthorizer, "is_authorized", Nobody.is_authorized)
        assert (await ask("POST", PATH, GOOD)).status == 403
    assert taken == [False, False]


class Other(IdentityProvider):
    """Somebody's own."""


async def test_another_identity_provider_decides(
    known: Any, ask: Any, jp_serverapp: Any, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Other(parent=jp_serverapp, token=jp_serverapp.identity_provider.token)
    monkeypatch.setitem(jp_serverapp.web_app.settings, "identity_provider", other)
    await ask("POST", PATH, GOOD)
    assert taken == [False]


async def test_it_counts_as_a_request(known: Any, ask: Any, jp_serverapp: Any, taken: list[bool]) -> None:
    def counted() -> float:
        template = "models/{database}/{model}/predict"
        return sum(bucket.get() for bucket in REQUEST_SECONDS.labels(f"POST {template}", 200)._buckets)

    before, active = counted(), jp_serverapp.web_app.settings["api_last_activity"]
    await ask("POST", PATH, GOOD)
    assert counted() == before + 1
    assert jp_serverapp.web_app.settings["api_last_activity"] > active
    assert taken == [True]


async def test_too_many_are_refused(known: Any, ask: Any, start: SimpleNamespace, taken: list[bool]) -> None:
    known.lanes["predict"]._limit = 1
    start.services.hold = threading.Event()
    first = asyncio.ensure_future(ask("POST", PATH, GOOD))
    while not known.lanes["predict"].busy:
        await asyncio.sleep(0)
    assert (await ask("POST", PATH, GOOD)).status == 429
    start.services.hold.set()
    assert (await first).status == 200
    assert taken == [True, True]
    assert known.lanes["predict"].busy == 0


async def test_the_time_that_a_prediction_may_take_is_the_servers(known: Any, ask: Any, start: SimpleNamespace) -> None:
    known.predict_timeout = 7.5
    start.services.timeouts.clear()
    await both_ways(ask, PATH, GOOD, {})
    assert (await ask("POST", "models/shop/double/stream", {"input": 1})).status == 200
    assert start.services.timeouts == [7.5] * 3


def raw(known: Any, serverapp: Any, *more: str, version: str = "1.1") -> bytes:
    """Return a prediction as a program sends it."""
    body, path = json.dumps(GOOD), f"{serverapp.web_app.settings['base_url']}superduper/api/v1/{PATH}"
    token, host = f"Authorization: token {serverapp.identity_provider.token}", f"Host: {next(iter(known.hosts))}"
    head = [f"POST {path} HTTP/{version}", host, token, f"Content-Length: {len(body)}", *more]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


async def read(reader: asyncio.StreamReader) -> tuple[list[str], bytes]:
    """Return an answer: the lines of its head, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    length = next(int(line.partition(": ")[2]) for line in head if line.startswith("Content-Length: "))
    return head, await reader.readexactly(length)


async def test_a_connection_stays_until_the_client_wants_it_closed(
    known: Any, jp_serverapp: Any, taken: list[bool]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(jp_serverapp.port))
    answers = []
    for more in ([], ["Connection: keep-alive"], ["Connection: Close"]):
        writer.write(raw(known, jp_serverapp, *more))
        answers.append(await read(reader))
    assert await reader.read() == b""
    writer.close()
    heads = [[line for line in head if not line.startswith("Date: ")] for head, _ in answers]
    assert heads[0] == heads[1]
    assert sorted(heads[2]) == sorted([*heads[0], "Connection: close"])
    assert len({body for _, body in answers}) == 1
    assert taken == [True] * 3


async def test_an_old_client_gets_the_handlers_answer(known: Any, jp_serverapp: Any, taken: list[bool]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(jp_serverapp.port))
    writer.write(raw(known, jp_serverapp, version="1.0"))
    head, _ = await read(reader)
    assert head[0] == "HTTP/1.1 200 OK"
    assert await reader.read() == b""  # as HTTP/1.0 has it
    writer.close()
    assert taken == [False]


async def test_a_client_that_goes_away_gives_its_place_back(
    known: Any, jp_serverapp: Any, start: SimpleNamespace, taken: list[bool]
) -> None:
    start.services.hold = threading.Event()
    _, writer = await asyncio.open_connection("127.0.0.1", int(jp_serverapp.port))
    writer.write(raw(known, jp_serverapp))
    while not known.lanes["predict"].busy:
        await asyncio.sleep(0)
    writer.close()
    while known.lanes["predict"].busy:
        await asyncio.sleep(0)
    start.services.hold.set()
    assert taken == [True]
