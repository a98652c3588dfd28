"""The API's description says what the server does, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from superduper_nb.server_ext.openapi import document
from superduper_nb.server_ext.routes import API, ROUTES
from superduper_nb.server_ext.schemas import SearchBody, check
from superduper_nb.server_ext.wire import load

VERBS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def described() -> dict[str, Any]:
    return document("/a%40b/")


def test_every_route_and_verb_is_described_and_the_reverse(
    described: dict[str, Any], jp_serverapp: Any, app: Any
) -> None:
    said = {(path, verb) for path, item in described["paths"].items() for verb in VERBS & item.keys()}
    registered = set()
    for group in jp_serverapp.web_app.default_router.rules:
        for rule in getattr(group.target, "rules", []):
            pattern = getattr(rule.matcher, "regex", re.compile("")).pattern
            if API in pattern:
                path = re.sub(r"\(\?P<(\w+)>[^)]+\)", r"{\1}", pattern.partition(API)[2].rstrip("$")).replace("\\", "")
                verbs = {verb for verb in VERBS if "_unimplemented" not in getattr(rule.target, verb).__name__}
                registered |= {(f"/{path}", verb) for verb in verbs}
    assert said == registered
    assert len(said) == 20


def test_it_is_sound(described: dict[str, Any]) -> None:
    assert described["openapi"].startswith("3.1.")
    assert described["servers"] == [{"url": "/a%40b/superduper/api/v1"}]
    references = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(described)))
    assert references <= described["components"]["schemas"].keys()
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [item[verb]["operationId"] for item in described["paths"].values() for verb in VERBS & item.keys()]
    assert len(ids) == len(set(ids))
    for path, item in described["paths"].items():
        assert re.findall(r"\{(\w+)\}", path) == [parameter["name"] for parameter in item.get("parameters", [])]


async def test_real_answers_match_it(running: Any, ask: Any, described: dict[str, Any]) -> None:
    served = (await ask("GET", "openapi.json")).body
    assert served == described
    search = {"database": "shop", "collection": "products", "like": {"text": "warm"}}
    bodies = {"/search": search, "/jobs": {"database": "shop"}, "/models/{database}/{model}/predict": {"inputs": ["a"]}}
    bodies["/models/{database}/{model}/stream"] = {"input": "a"}
    names = {"database": "shop", "collection": "c", "index": "meaning", "model": "double", "job": "j1"}
    await running.engine.services(wait=5)
    for route in ROUTES:
        for verb in route.operations:
            path = f"/{route.path}"
            said = described["paths"][path][verb]
            by_db = any(parameter["name"] == "db" for parameter in said.get("parameters", []))
            asked = {"db": "shop"} if by_db and path != "/openapi.json" else {}
            body = bodies.get(path, {}) if verb == "post" else None
            answer = await ask(verb.upper(), route.path.format(**names), body, params=asked)
            assert answer.status == 200, (verb, path, answer.body)
            kind = answer.headers["Content-Type"]
            schema = said["responses"]["200"]["content"][kind]["schema"]
            if kind == "application/json":
                jsonschema.validate(answer.body, {**schema, "components": described["components"]})
    error = (await ask("GET", "jobs/nope", params={"db": "shop"})).body
    jsonschema.validate(error, {"$ref": "#/components/schemas/ErrorReply", "components": described["components"]})


def test_the_examples_for_curl_are_requests() -> None:
    text = (Path(__file__).parents[2] / "docs" / "finding.md").read_text()
    bodies = re.findall(r"curl .*? -d '(.*?)'", text, re.DOTALL)
    assert len(bodies) == 2
    for body in bodies:
        asked = check(SearchBody, load(body.encode(), "application/x-www-form-urlencoded"))
        assert asked.database == "shop"
