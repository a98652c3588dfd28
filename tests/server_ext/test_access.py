"""Nobody gets in without a token and the authorizer's word, by any route or verb."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_server.auth import Authorizer
from jupyter_server.utils import JupyterServerAuthWarning
from tornado.httpclient import HTTPClientError

import superduper_nb.server_ext as package
from superduper_nb.server_ext.routes import ROUTES, Route

VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
NAMES = {"database": "shop", "collection": "products", "index": "meaning", "model": "double", "job": "j1"}
ACTIONS = {
    ("indexes/{database}/{collection}/{index}/refresh", "post"): "write",
    ("jobs/{job}/cancel", "post"): "write",
    ("jobs/{job}/retry", "post"): "execute",
    ("jobs", "post"): "execute",
    ("models/{database}/{model}/predict", "post"): "execute",
    ("models/{database}/{model}/stream", "post"): "execute",
    ("models/{database}/{model}/load", "post"): "execute",
    ("models/{database}/{model}/unload", "post"): "execute",
}
"""All others: read."""


def path_of(route: Route) -> str:
    return route.path.format(**NAMES)


def is_ours(pattern: str) -> bool:
    return "superduper" in pattern


@pytest.mark.parametrize("open_house", [True, False])
async def test_no_token_no_answer(jp_serverapp: Any, running: Any, ask: Any, open_house: bool) -> None:
    jp_serverapp.web_app.settings["allow_unauthenticated_access"] = open_house
    stranger = {"Authorization": ""}
    for route in ROUTES:
        for verb in VERBS:
            answer = await ask(
                verb, path_of(route), b"{}" if verb in ("POST", "PUT", "PATCH") else None, headers=stranger
            )
            assert answer.status == 403, (verb, route.path, answer.status)


@pytest.mark.parametrize("open_house", [True, False])
async def test_page_and_websocket_need_a_token(
    jp_serverapp: Any, running: Any, jp_fetch: Any, jp_ws_fetch: Any, open_house: bool
) -> None:
    jp_serverapp.web_app.settings["allow_unauthenticated_access"] = open_house
    stranger = {"Authorization": ""}
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("superduper", headers=dict(stranger), follow_redirects=False)
    assert refused.value.code == 302
    assert "/login" in refused.value.response.headers["Location"]  # type: ignore[union-attr]
    with pytest.raises(HTTPClientError) as refused:
        await jp_ws_fetch("superduper/api/v1/events", headers=dict(stranger))
    assert refused.value.code == 403


async def test_only_the_verbs_of_the_table_exist(running: Any, ask: Any, start: SimpleNamespace) -> None:
    await running.engine.services(wait=5)
    for route in ROUTES:
        for verb in (*VERBS, "PROPFIND"):
            if verb.lower() not in route.operations:
                answer = await ask(verb, path_of(route), b"{}" if verb in ("POST", "PUT", "PATCH") else None)
                assert answer.status == 405, (verb, route.path)
    assert start.services.calls == []


class Recorder(Authorizer):
    """Denies everything and remembers what was asked."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        self.asked.append((action, resource))
        return False


class TestAuthorizer:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        jp_server_config["ServerApp"]["authorizer_class"] = Recorder
        return jp_server_config

    async def test_each_route_asks_for_its_own_resource(
        self, running: Any, ask: Any, jp_fetch: Any, start: SimpleNamespace
    ) -> None:
        # Twice: a decorator that remembers the resource of its first caller would only show the second time.
        for _ in range(2):
            for route in ROUTES:
                for verb in route.operations:
                    Recorder.asked = []
                    answer = await ask(verb.upper(), path_of(route), b"{}" if verb == "post" else None)
                    assert answer.status == 403, (verb, route.path)
                    assert answer.body["code"] == "forbidden"
                    runs = route.path.startswith("models/") and verb == "post"
                    noun = "predict" if runs else re.match(r"\w+", route.path)[0]  # type: ignore[index]
                    action = ACTIONS.get((route.path, verb), "read")
                    assert Recorder.asked == [(action, f"superduper:{noun}")], (verb, route.path)
        Recorder.asked = []
        with pytest.raises(HTTPClientError, match="403"):
            await jp_fetch("superduper")
        assert Recorder.asked == [("read", "superduper:status")]
        assert start.services.calls == []

    async def test_a_websocket_is_asked_for_too(self, running: Any, jp_ws_fetch: Any) -> None:
        Recorder.asked = []
        with pytest.raises(HTTPClientError, match="403"):
            await jp_ws_fetch("superduper/api/v1/events")
        assert Recorder.asked == [("execute", "superduper:events")]


def test_jupyter_finds_no_open_endpoint(request: pytest.FixtureRequest) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", JupyterServerAuthWarning)
        request.getfixturevalue("app")
    assert [str(w.message) for w in caught if is_ours(str(w.message))] == []


def test_all_registered_routes_are_known(jp_serverapp: Any, app: Any) -> None:
    patterns = [
        rule.matcher.regex.pattern
        for group in jp_serverapp.web_app.default_router.rules
        for rule in getattr(group.target, "rules", [])
        if is_ours(getattr(rule.matcher, "regex", re.compile("")).pattern)
    ]
    assert len(patterns) == len(ROUTES) + 3  # the page, its static files, and paths that do not exist


async def test_cookies_alone_change_nothing(running: Any, ask: Any, jp_serverapp: Any, start: SimpleNamespace) -> None:
    provider = jp_serverapp.identity_provider
    cookie = await _cookie(ask, jp_serverapp)
    stranger = {"Authorization": "", "Cookie": cookie}
    assert (await ask("GET", "status", headers=stranger)).status == 200, provider
    body = {"database": "shop"}
    assert (await ask("POST", "jobs", body, headers=stranger)).status == 403
    assert (await ask("POST", "jobs", body, headers={**stranger, "Content-Type": "text/plain"})).status == 403
    elsewhere = {"Origin": "http://evil.example"}
    assert (await ask("POST", "jobs", body, headers={**stranger, **elsewhere})).status in (403, 404)
    assert (await ask("GET", "status", headers={**stranger, **elsewhere})).status == 404
    assert (await ask("GET", "status", headers={**stranger, "Referer": "http://evil.example/x"})).status == 403
    assert start.services is None or start.services.calls == []


async def _cookie(ask: Any, jp_serverapp: Any) -> str:
    """Return the cookie that a browser gets for the token."""
    token = jp_serverapp.identity_provider.token
    assert "Set-Cookie" not in (await ask("GET", "status")).headers  # a program needs none
    answer = await ask("GET", "status", headers={"Authorization": ""}, params={"token": token})
    cookies = [value.partition(";")[0] for value in answer.headers.get_list("Set-Cookie")]
    assert cookies, "no login cookie was set"
    return "; ".join(cookies)


async def test_foreign_hosts_are_refused(running: Any, ask: Any) -> None:
    for host, status in [("evil.example", 403), ("127.0.0.1", 200), ("evil.example", 403), ("127.0.0.1", 200)]:
        assert (await ask("GET", "status", headers={"Host": host})).status == status


async def test_the_token_is_compared_in_every_request(running: Any, ask: Any, jp_serverapp: Any) -> None:
    """A program that was let in once is known by its token and nothing else."""
    provider = jp_serverapp.identity_provider
    own = {"Authorization": f"token {provider.token}"}
    assert (await ask("GET", "status", headers=own)).status == 200
    for wrong in ("", "x", provider.token[:-1], f"{provider.token}x", "ä", "token"):
        assert (await ask("GET", "status", headers={"Authorization": f"token {wrong}"})).status == 403
    assert (await ask("GET", "status", headers=own, params={"token": "x"})).status == 403  # the URL's comes first
    provider.token = "another"
    assert (await ask("GET", "status", headers=own)).status == 403


def test_no_cross_origin_headers_of_our_own() -> None:
    for file in Path(package.__path__[0]).rglob("*.py"):
        assert "Access-Control" not in file.read_text(encoding="utf-8"), file


def test_no_handler_of_ours_reads_bodies_in_its_own_way() -> None:
    for route in ROUTES:
        source = inspect.getsource(route.handler)
        assert "get_json_body" not in source
        assert "request.body" not in source
