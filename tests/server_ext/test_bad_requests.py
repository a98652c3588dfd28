"""Whatever is sent: 4xx, a message that names what is wrong, no traceback, and nothing reaches the engines."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from pymongo.errors import AutoReconnect, ExecutionTimeout, OperationFailure

from superduper_nb.errors import (
    ConflictError,
    DeadlineError,
    InvalidInputError,
    ModelError,
    MongoUnavailableError,
    NotFoundError,
    OverloadedError,
    SuperduperError,
    TrustError,
)

QUERY: dict[str, Any] = {"database": "shop", "collection": "products", "semantic_index": "meaning"}
GOOD: dict[str, Any] = {**QUERY, "like": {"text": "warm"}}

RAW = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"x"',
    "a number": b"3",
    "half an object": b"{",
    "no UTF-8": b"\xff\xfe{",
    "something after it": b"{} x",
    "nested without end": b"[" * 200_000,
    "objects without end": b'{"a":' * 100_000,
    "a number of 5 000 digits": b'{"n": ' + b"9" * 5000 + b"}",
    "a number of 70 bits": b'{"database": 1180591620717411303424}',
    "a lone surrogate": b'{"\\ud800": 1}',
    "NaN": b'{"min_score": NaN}',
    "a key twice": b'{"n": 1, "n": 2}',
    "a broken ObjectId": b'{"id": {"$oid": "x"}}',
    "an ObjectId that is a number": b'{"id": {"$oid": 5}}',
    "a broken date": b'{"id": {"$date": "yesterday"}}',
    "a broken decimal": b'{"id": {"$numberDecimal": "x"}}',
    "a broken binary": b'{"id": {"$binary": 1}}',
    "a null character in a key": b'{"a\\u0000b": 1}',
}


@pytest.mark.parametrize("path", ["search", "models/shop/double/predict", "jobs"])
async def test_broken_bodies(running: Any, ask: Any, start: SimpleNamespace, path: str) -> None:
    for what, body in RAW.items():
        assert_refused(await ask("POST", path, body), what=what)
    assert start.services.calls == []


def assert_refused(answer: SimpleNamespace, status: int = 400, code: str = "invalid_input", what: object = "") -> None:
    assert (answer.status, answer.body["code"]) == (status, code), (what, answer.body)
    assert answer.body.keys() == {"message", "reason", "code"}
    assert len(answer.body["message"]) < 600
    assert "Traceback" not in answer.raw.decode()


FIELDS: dict[str, list[Any]] = {
    "database": [None, 1, "", "a/b", "a b", "admin", "local", "a$b", "x" * 64, ["shop"], "a\u0000b"],
    "collection": [None, "", "system.users", "$cmd", "oplog.$main", "a..b", ".a", "x" * 300],
    "semantic_index": [1, "", "a/b", "../x", "x" * 65, "ＡＢ", "-a", "a\n"],
    "n": [0, -1, 10_001, 2**31, 2**63, 1.5, 1e3, "5", True, None],
    "exact": [1, "true"],
    "min_score": ["0.5", True, {"$numberDouble": "NaN"}, {"$numberDouble": "Infinity"}],
    "like": ["warm", 1, ["warm"], [], {}, None],
    "likes": ["warm", {"a": 1}, [], [1], [{}], [{"a": 1}] * 1001],
    "unlike": ["cold", [], {}, [{}]],
    "max_score": ["0.5", {"$numberDouble": "-Infinity"}],
    "diversity": [-0.1, 1.1, "1", True],
    "text": ["", "  ", 1, ["a"]],
    "group_by": ["", "$a", "a..b", 1],
    "filter": [
        "x",
        [],
        {"$where": "sleep(1e4)"},
        {"$or": [{"a": {"$elemMatch": {"$where": "1"}}}]},
        {"$expr": {"$function": {"body": "f", "args": [], "lang": "js"}}},
        {"a": {"$code": "1"}},
    ],
    "nmu": [1],
    "<script>\r\nX: y": [1],
}


@pytest.mark.parametrize("field", FIELDS)
async def test_bad_fields_are_named(running: Any, ask: Any, start: SimpleNamespace, field: str) -> None:
    for value in FIELDS[field]:
        answer = await ask("POST", "search", {**GOOD, field: value})
        assert_refused(answer, what=value)
        assert field in answer.body["message"], value
        assert "X" not in answer.headers
    assert start.services.calls == []


VECTORS = [[], [[]], [[1, 2], [3]], ["1"], [True], [None], [1e300], [{"$numberDouble": "NaN"}], "1,2", 3, {}, [[1], 2]]
VECTORS += [
    [0.0] * 20_000,
    {"$binary": {"base64": "AAEC", "subType": "00"}},
    {"$binary": {"base64": "", "subType": "09"}},
]


async def test_bad_vectors(running: Any, ask: Any, start: SimpleNamespace) -> None:
    for vector in VECTORS:
        answer = await ask("POST", "search", {**QUERY, "vector": vector})
        assert_refused(answer, what=vector)
        assert "vector" in answer.body["message"]
    assert start.services.calls == []


async def test_exactly_one_kind_of_query(running: Any, ask: Any) -> None:
    for query in ({}, {"like": {}, "id": 1}, {"vector": [1.0], "like": {"a": 1}}):
        assert_refused(await ask("POST", "search", {**QUERY, **query}), what=query)


CLASHES: list[dict[str, Any]] = [
    {"like": {"a": 1}, "diversity": 0.5, "text": "b"},
    {"like": {"a": 1}, "diversity": 0.5, "group_by": "b"},
    {"like": {"a": 1}, "text": "b", "group_by": "b"},
    {"like": {"a": 1}, "text": "b", "min_score": 0.1},
    {"like": {"a": 1}, "text": "b", "max_score": 0.1},
    {"like": {"a": 1}, "min_score": 0.2, "max_score": 0.1},
    {"like": {"a": 1}, "diversity": 0.5, "n": 1001},
    {"likes": [{"a": 1}], "unlike": {"a": 1}},
    {"vector": [[1.0]], "text": "a"},
    {"vector": [[1.0]], "diversity": 0.5},
    {"likes": [{"a": 1}], "group_by": "a"},
    {"likes": [{"a": 1}] * 11, "n": 10_000},
]


@pytest.mark.parametrize("clash", CLASHES, ids=lambda clash: "-".join(clash))
async def test_options_that_exclude_each_other(running: Any, ask: Any, start: SimpleNamespace, clash: Any) -> None:
    assert_refused(await ask("POST", "search", {**QUERY, **clash}), what=clash)
    assert start.services.calls == []


async def test_bad_inputs(running: Any, ask: Any) -> None:
    for inputs in (None, "x", {}, [], [0] * 10_001):
        answer = await ask("POST", "models/shop/double/predict", {"inputs": inputs})
        assert_refused(answer, what=inputs)
        assert "inputs" in answer.body["message"]


PATHS = ["models/..%2f..%2fetc%2fpasswd", "models/%00", "models/a%20b", "models/" + "x" * 10_000, "models/admin"]
PATHS += [
    "indexes/shop/products/a%2fb",
    "indexes/shop/$cmd/a",
    "models/ＡＢ%2f",
    "jobs/a_b?db=shop",
    "jobs/j1?db=a%20b",
]
PATHS += [
    "jobs",
    "jobs?db=shop&status=dead",
    "jobs?db=shop&statsu=failed",
    "jobs?db=shop&limit=0",
    "jobs?db=shop&limit=x",
]
PATHS += ["jobs/j1/logs?db=shop&since=-1", "events?since=-2", "events?since=%ff", "status?x=1"]


async def test_bad_names_and_parameters(running: Any, http_server_client: Any, jp_auth_header: Any) -> None:
    for path in PATHS:
        url = f"/a%40b/superduper/api/v1/{path}"
        answer = await http_server_client.fetch(url, headers=jp_auth_header, raise_error=False)
        assert answer.code == 400, (path, answer.body)
        assert answer.headers["Content-Type"] == "application/json"
        assert set(json.loads(answer.body)) == {"message", "reason", "code"}


async def test_broken_bson(running: Any, ask: Any) -> None:
    headers = {"Content-Type": "application/bson"}
    for body in (b"x", b"\x05\x00\x00\x00\x01", bson.encode({"a": 1})[:-2], b"\xff" * 100):
        assert_refused(await ask("POST", "search", body, headers=headers))


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "multipart/form-data; boundary=x", "application/x-pickle"]
)
async def test_other_types_of_content(running: Any, ask: Any, kind: str) -> None:
    answer = await ask("POST", "search", b"\x80\x04N.", headers={"Content-Type": kind})
    assert_refused(answer, 415, "unsupported_media_type")


class TestLongBodies:
    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {"max_body_bytes": 1000}

    async def test_announced(self, running: Any, ask: Any, start: SimpleNamespace) -> None:
        assert (await ask("POST", "jobs", {"database": "shop"})).status == 200
        answer = await ask("POST", "search", b" " * 1001)
        assert_refused(answer, 413, "too_large")
        assert "1000" in answer.body["message"]
        assert [what for what, _ in start.services.calls] == ["notify"]

    async def test_announced_and_never_sent(self, running: Any, http_server_client: Any, jp_auth_header: Any) -> None:
        reply = await talk(http_server_client, jp_auth_header, "Content-Length: 600000000\r\n\r\n{}")
        assert b"413" in reply.splitlines()[0]

    async def test_in_chunks(
        self, running: Any, http_server_client: Any, jp_auth_header: Any, start: SimpleNamespace
    ) -> None:
        chunk = "400\r\n" + " " * 1024 + "\r\n"
        reply = await talk(http_server_client, jp_auth_header, "Transfer-Encoding: chunked\r\n\r\n" + chunk)
        assert b"400" in reply.splitlines()[0]
        assert start.services is None or start.services.calls == []


async def talk(client: Any, auth: dict[str, str], rest: str) -> bytes:
    """Send a POST by hand and return what comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.get_http_port())
    head = "POST /a%40b/superduper/api/v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    writer.write((head + "".join(f"{k}: {v}\r\n" for k, v in auth.items()) + rest).encode())
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


ERRORS: list[tuple[BaseException, int, str]] = [
    (InvalidInputError("n=0: …"), 400, "invalid_input"),
    (NotFoundError("No index."), 404, "not_found"),
    (ConflictError("In use."), 409, "conflict"),
    (TrustError("Unsigned."), 409, "untrusted"),
    (ModelError("It raised 50% of the time."), 422, "model"),
    (OverloadedError("Full.", 7), 429, "overloaded"),
    (MongoUnavailableError("Gone."), 503, "mongodb_unavailable"),
    (DeadlineError("Late."), 504, "deadline"),
    (AutoReconnect("mongodb://ana:s3cr3t@db:27017 closed"), 503, "mongodb_unavailable"),
    (OperationFailure("x", 13, {"errmsg": "not authorized as ana"}), 503, "mongodb_unavailable"),
    (OperationFailure("x", 2, {"errmsg": "unknown operator: $foo"}), 400, "invalid_input"),
    (ExecutionTimeout("x", 50), 504, "deadline"),
    (RuntimeError("mongodb://ana:s3cr3t@db:27017"), 500, "internal"),
    (SuperduperError("Odd."), 500, "error"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=[repr(error)[:40] for error, _, _ in ERRORS])
async def test_errors_of_the_engines(
    running: Any,
    jp_serverapp: Any,
    ask: Any,
    start: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    code: str,
) -> None:
    await running.engine.services(wait=5)
    token = jp_serverapp.identity_provider.token
    start.services.fail = error
    with caplog.at_level(logging.DEBUG):
        answer = await ask("POST", "search", GOOD, params={"token": token})
    assert_refused(answer, status, code)
    if isinstance(error, SuperduperError):
        assert answer.body["message"] == str(error)
    if status in (429, 503):
        assert int(answer.headers["Retry-After"]) == (7 if isinstance(error, OverloadedError) else 5)
    written = answer.raw.decode() + str(answer.headers) + "\n".join(logged(caplog))
    assert "s3cr3t" not in written
    assert token not in written


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged by the server and the extension, as a handler would write it."""
    formatter = logging.Formatter()
    return [formatter.format(record) for record in caplog.records]
