"""What each route answers."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import bson
import numpy as np
import pytest
from bson.binary import Binary, BinaryVectorDtype

from superduper_nb.server_ext.direct import DirectWay
from superduper_nb.server_ext.routes import ROUTES

QUERY = {"database": "shop", "collection": "products", "semantic_index": "meaning"}


async def test_status_tells_state_and_nothing_secret(running: Any, ask: Any, start: SimpleNamespace) -> None:
    await running.engine.services(wait=5)
    answer = await ask("GET", "status")
    assert answer.status == 200
    assert answer.body["state"] == "ready"
    assert answer.body["instance"] == running.instance_id
    assert answer.body["components"]["mongodb"]["where"] == "127.0.0.1:1"
    assert "s3cr3t" not in answer.raw.decode()


async def test_our_paths_are_tried_first_and_hide_no_others(running: Any, jp_serverapp: Any, jp_fetch: Any) -> None:
    *direct, first = (rule.target for rule in jp_serverapp.web_app.default_router.rules[:3])
    assert [type(way) for way in direct] == [DirectWay, DirectWay]
    assert {route.handler for route in ROUTES} <= {rule.target for rule in first.rules}
    assert (await jp_fetch("api/status")).code == 200
    assert (await jp_fetch("api/kernelspecs")).code == 200


async def test_search_by_each_kind_of_query(running: Any, ask: Any, start: SimpleNamespace) -> None:
    filter = {"price": {"$lt": 50}, "name": {"$regex": "^a", "$ne": "ab"}}
    answer = await ask("POST", "search", {**QUERY, "like": {"text": "warm"}, "filter": filter, "n": 2, "exact": True})
    assert answer.status == 200, answer.body
    assert answer.body["ids"] == [None, 1]
    request = start.services.calls[-1][1]
    assert (request.like, request.filter, request.n, request.exact) == ({"text": "warm"}, filter, 2, True)

    await ask("POST", "search", {**QUERY, "vector": [1, 2.5, 3, 4]})
    np.testing.assert_array_equal(start.services.calls[-1][1].vector, np.array([1, 2.5, 3, 4], np.float32))

    answer = await ask("POST", "search", {**QUERY, "id": {"$oid": "5" * 24}})
    assert start.services.calls[-1][1].id == bson.ObjectId("5" * 24)
    assert answer.body["ids"][0] == {"$oid": "5" * 24}
    assert answer.body["scores"][2] == {"$numberDouble": "-Infinity"}


async def test_search_with_a_list_of_vectors(running: Any, ask: Any, start: SimpleNamespace) -> None:
    answer = await ask("POST", "search", {**QUERY, "vector": [[1, 2, 3, 4], [5, 6, 7, 8]], "n": 1})
    assert answer.body["ids"] == [[None], [None]]
    assert answer.body["scores"] == [[1.0], [1.0]]
    assert answer.body["distances"] is None
    assert np.array(start.services.calls[-1][1].vector).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert len(start.services.calls) == 1  # in one call of the engine
    answer = await ask("POST", "search", {**QUERY, "likes": [{"text": "a"}, {"text": "b"}, {"_id": 1}], "n": 1})
    assert answer.body["ids"] == [[None]] * 3
    assert start.services.calls[-1][1].likes == [{"text": "a"}, {"text": "b"}, {"_id": 1}]


async def test_every_option_reaches_the_engine(running: Any, ask: Any, start: SimpleNamespace) -> None:
    both = {"like": [{"text": "warm"}, {"_id": 3}], "unlike": {"text": "cold"}, "min_score": -0.5, "max_score": 1}
    for option in ({"diversity": 0.3}, {"group_by": "a.b"}, {}):
        answer = await ask("POST", "search", {**QUERY, **both, **option})
        assert answer.status == 200, answer.body
        assert (answer.body["survivors"], answer.body["stages_ms"]) == (2, {"search": 0.05})
        request = start.services.calls[-1][1]
        assert {name: getattr(request, name) for name in {**both, **option}} == {**both, **option}
    await ask("POST", "search", {**QUERY, "id": 1, "text": "red wool"})
    assert start.services.calls[-1][1].text == "red wool"


async def test_bson_in_and_out(running: Any, ask: Any, start: SimpleNamespace) -> None:
    vector = Binary.from_vector([1.0, 2.0, 3.0, 4.0], BinaryVectorDtype.FLOAT32)
    headers = {"Content-Type": "application/bson", "Accept": "application/bson"}
    answer = await ask("POST", "search", bson.encode({**QUERY, "vector": vector}), headers=headers)
    assert answer.headers["Content-Type"] == "application/bson"
    assert bson.decode(answer.raw)["scores"] == [1.0, 0.5, float("-inf")]
    assert list(start.services.calls[-1][1].vector) == [1, 2, 3, 4]


async def test_indexes(running: Any, ask: Any, start: SimpleNamespace) -> None:
    assert (await ask("GET", "indexes")).body["indexes"][0]["id"] == "meaning"
    assert (await ask("GET", "indexes/shop/my.products/meaning")).body["collection"] == "my.products"
    assert (await ask("POST", "indexes/shop/products/meaning/refresh")).body["size"] == 3
    assert ("refresh_index", ("shop", "products", "meaning")) in start.services.calls


async def test_predict_in_json_answers_lists(running: Any, ask: Any) -> None:
    answer = await ask("POST", "models/shop/double/predict", {"inputs": [[1, 2], "x", "bad"], "version": 3})
    assert answer.status == 200, answer.body
    assert answer.body["outputs"] == [
        [2.0, 4.0],
        "x",
        {"_error": {"type": "ValueError", "message": "this one is 50% bad"}},
    ]
    assert answer.body["version"] == 3


async def test_predict_in_bson_answers_vectors(running: Any, ask: Any) -> None:
    headers = {"Content-Type": "application/bson", "Accept": "application/bson"}
    answer = await ask("POST", "models/shop/double/predict", bson.encode({"inputs": [[1.0, 2.0]]}), headers=headers)
    (output,) = bson.decode(answer.raw)["outputs"]
    assert output.as_vector().data == [2.0, 4.0]


async def test_predict_never_unpickles(running: Any, ask: Any, start: SimpleNamespace) -> None:
    data = base64.b64encode(b"\x80\x04N.").decode()
    pickled = {"_content": {"type": "pickle", "bytes": {"$binary": {"base64": data, "subType": "00"}}}}
    answer = await ask("POST", "models/shop/double/predict", {"inputs": [pickled]})
    assert (answer.status, answer.body["code"]) == (400, "invalid_input")
    assert "pickle" in answer.body["message"]
    assert start.services.calls == []


async def test_predict_never_fetches(running: Any, ask: Any, start: SimpleNamespace) -> None:
    inputs = [{"_content": {"type": "image", "url": "http://127.0.0.1:1/x"}}]
    answer = await ask("POST", "models/shop/double/predict", {"inputs": inputs})
    assert answer.status == 400
    assert start.services.calls == []


async def test_an_output_that_can_not_be_sent_is_the_models_fault(running: Any, ask: Any) -> None:
    answer = await ask("POST", "models/shop/double/predict", {"inputs": ["unsendable"]})
    assert (answer.status, answer.body["code"]) == (422, "model")


async def test_models(running: Any, ask: Any) -> None:
    assert (await ask("GET", "models/shop")).body == {"models": [{"id": "double", "version": 0}]}


async def test_jobs_in_pages(running: Any, ask: Any) -> None:
    first = (await ask("GET", "jobs", params={"db": "shop", "limit": "3", "status": "running"})).body
    rest = (await ask("GET", "jobs", params={"db": "shop", "limit": "3", "since": first["next"]})).body
    assert [job["_id"] for job in first["jobs"] + rest["jobs"]] == ["j4", "j3", "j2", "j1", "j0"]
    assert rest["next"] is None


async def test_one_job(running: Any, ask: Any, start: SimpleNamespace) -> None:
    db = {"db": "shop"}
    assert (await ask("GET", "jobs/j1", params=db)).body["state"] == "running"
    assert (await ask("GET", "jobs/j1/logs", params={**db, "since": "1"})).body["next"] == 3
    assert (await ask("POST", "jobs/j1/retry", params=db)).status == 400
    assert (await ask("POST", "jobs/j1/cancel", params=db)).body["state"] == "cancelled"
    assert (await ask("POST", "jobs/j1/retry", params=db)).body["state"] == "pending"
    assert ("notify", "shop") in start.services.calls
    missing = await ask("GET", "jobs/nope", params=db)
    assert (missing.status, missing.body["code"]) == (404, "not_found")


async def test_notice_of_new_jobs(running: Any, ask: Any, start: SimpleNamespace) -> None:
    assert (await ask("POST", "jobs", {"database": "shop"})).body == {"database": "shop"}
    assert start.services.calls == [("notify", "shop")]


async def test_metrics_count_requests(running: Any, ask: Any) -> None:
    await ask("GET", "models/shop")
    answer = await ask("GET", "metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    text = answer.raw.decode()
    assert 'superduper_request_seconds_count{operation="GET models/{database}",status="200"}' in text
    assert "superduper_ready 1.0" in text


async def test_metrics_tell_how_each_index_does(running: Any, ask: Any) -> None:
    await running.engine.services(wait=5)
    lines = (await ask("GET", "metrics")).raw.decode().splitlines()
    labels = 'collection="products",database="shop",index="meaning"'
    assert f'superduper_search_seconds_bucket{{{labels},le="0.001"}} 2.0' in lines
    assert f'superduper_search_seconds_bucket{{{labels},le="+Inf"}} 3.0' in lines
    assert f"superduper_search_seconds_count{{{labels}}} 3.0" in lines
    assert f"superduper_search_seconds_sum{{{labels}}} 0.5" in lines
    for name, value in {"vectors": 3.0, "bytes": 48.0, "lag_seconds": 0.25}.items():
        assert f"superduper_index_{name}{{{labels}}} {value}" in lines


async def test_status_page(running: Any, jp_fetch: Any) -> None:
    answer = await jp_fetch("superduper")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert b"superduper/api/v1/status" in answer.body


@pytest.mark.parametrize("path", ["", "nope", "jobs/a/b/c/d", "models"])
async def test_unknown_paths_answer_json(running: Any, ask: Any, path: str) -> None:
    answer = await ask("GET", path)
    assert (answer.status, answer.body["code"]) == (404, "not_found")


async def test_answers_have_the_headers_of_an_api(running: Any, ask: Any) -> None:
    for path in ("status", "events"):
        answer = await ask("GET", path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.raw.startswith(b"{")
        json.loads(answer.raw)
