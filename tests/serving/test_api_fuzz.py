"""Whatever fits the API's own description, and much that does not: an answer as described, and never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import bson
import hypothesis
import pytest
import schemathesis
from bson import json_util
from bson.errors import BSONError
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from superduper_nb.server_ext.openapi import document
from tests.serving.live import API, TOKEN, Live, running

pytestmark = pytest.mark.slow

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, mongo_uri: str) -> Iterator[Live]:
    with running(tmp_path_factory.mktemp("fuzz") / "home", mongo_uri) as server:
        docs = server.client["shop"]["products"]
        docs.create_model("double", lambda x: x * 2)
        docs.create_model("length", lambda text: [float(len(text)), 1.0], type="vector")
        docs.create_watcher("length", key="text")
        docs.create_semantic_index("meaning", models=["length"], keys=["text"])
        docs.insert_many([{"text": "x" * i} for i in range(1, 6)]).jobs.wait(60)
        NAMES["job"] = next(iter(docs.jobs)).id
        yield server
        server.client.drop_database("shop")


described = schemathesis.openapi.from_dict(document())


NAMES = {
    "database": "shop",
    "collection": "products",
    "index": "meaning",
    "semantic_index": "meaning",
    "model": "double",
}


@schemathesis.serializer("application/bson")
def bson_body(context: Any, value: Any) -> bytes:
    try:
        return bson.encode(value)
    except (TypeError, OverflowError, BSONError):  # no object, or a number of more than 64 bits
        return repr(value).encode()


@schemathesis.deserializer("application/bson")
def bson_reply(context: Any, response: Any) -> Any:
    return json.loads(json_util.dumps(bson.decode(response.content)))


@described.parametrize()
@hypothesis.settings(max_examples=15, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
def test_no_request_is_answered_with_5xx(live: Live, case: Any) -> None:
    """Send each case as it was made, and once more to what exists: most made-up names are found nowhere."""
    send = partial(case.call_and_validate, live.url + API.rstrip("/"), checks=CHECKS)
    auth = {"Authorization": f"token {TOKEN}"}
    send(headers=auth)
    case.path_parameters = {name: NAMES.get(name, value) for name, value in (case.path_parameters or {}).items()}
    if "db" in (case.query or {}):
        case.query["db"] = "shop"
    if isinstance(case.body, dict):
        case.body |= {name: NAMES[name] for name in case.body.keys() & NAMES.keys()}
    send(headers={**auth, "Accept": "application/bson"})
    assert live.process.poll() is None
