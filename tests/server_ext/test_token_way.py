"""A program with the server's token is let in by a shorter way: only where Jupyter's own code would let it in, too."""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_server.auth import Authorizer, IdentityProvider, PasswordIdentityProvider, User
from jupyter_server.auth.security import passwd
from jupyter_server.base.call_context import CallContext
from jupyter_server.base.handlers import JupyterHandler
from tornado.httpclient import HTTPClientError

from superduper_nb.server_ext.handlers.base import ApiBase

BODY = {"database": "shop"}
ELSEWHERE = {"Origin": "http://elsewhere.example"}


@pytest.fixture
def shortly(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the handlers of requests that take the short way, as they do so."""
    taken: list[Any] = []
    let_in = ApiBase._let_in

    def note(self: Any) -> None:
        taken.append(self)
        let_in(self)

    monkeypatch.setattr(ApiBase, "_let_in", note)
    return taken


@pytest.fixture
def token(jp_serverapp: Any) -> str:
    return str(jp_serverapp.identity_provider.token)


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"token {token}"}


def decided(answer: Any) -> tuple[Any, ...]:
    """Return what was decided of a request, and what a browser is told."""
    cors = {name: value for name, value in answer.headers.get_all() if name.startswith("Access-Control")}
    return answer.status, (answer.body or {}).get("code"), cors


CREDENTIALS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "the token": ({"Authorization": "token {}"}, {}),
    "as a bearer": ({"Authorization": "Bearer {}"}, {}),
    "with words after it": ({"Authorization": "token {} x"}, {}),
    "in another scheme": ({"Authorization": "Basic {}"}, {}),
    "a wrong one": ({"Authorization": "token x{}"}, {}),
    "none": ({"Authorization": ""}, {}),
    "in the URL": ({"Authorization": ""}, {"token": "{}"}),
    "a wrong one in the URL": ({"Authorization": "token {}"}, {"token": "x"}),
    "an empty one in the URL": ({"Authorization": "token {}"}, {"token": ""}),
    "with a cookie": ({"Authorization": "token {}", "Cookie": "a=b"}, {}),
    "a cookie alone": ({"Authorization": "", "Cookie": "username-x=y"}, {}),
}
SENT: dict[str, tuple[str, dict[str, str]]] = {
    "read": ("GET", {}),
    "change": ("POST", {}),
    "from elsewhere": ("POST", ELSEWHERE),
    "from a page elsewhere": ("GET", {"Referer": "http://elsewhere.example/x"}),
    "asked beforehand": ("OPTIONS", ELSEWHERE),
    "to a foreign host": ("GET", {"Host": "elsewhere.example"}),
    "an unknown verb": ("PUT", {}),
}
SERVERS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "open to requests without a user": {"allow_unauthenticated_access": True},
    "open to pages": {"allow_origin": "*", "allow_credentials": True},
    "open to some pages": {"allow_origin_pat": r"http://else.*"},
    "open to one page": {"allow_origin": "http://other.example"},
    "open to other hosts": {"allow_remote_access": True},
    "without XSRF checks": {"disable_check_xsrf": True},
}


@pytest.mark.parametrize("server", SERVERS)
async def test_the_short_way_decides_as_jupyter_does(
    server: str, running: Any, ask: Any, jp_serverapp: Any, token: str, shortly: list[Any], monkeypatch: Any
) -> None:
    await running.engine.services(wait=5)
    jp_serverapp.web_app.settings.update(SERVERS[server])
    running.hosts.clear()
    for (credential, (shown, params)), (sent, (verb, headers)) in itertools.product(CREDENTIALS.items(), SENT.items()):
        shown = {name: value.format(token) for name, value in shown.items()}
        options = {
            "headers": {**shown, **headers},
            "params": {name: value.format(token) for name, value in params.items()},
        }
        path, body = ("jobs", BODY) if verb == "POST" else ("status", b"{}" if verb == "PUT" else None)
        before = len(shortly)
        ours = await ask(verb, path, body, **options)
        assert (len(shortly) > before) == (credential in ("the token", "as a bearer")), (credential, sent)
        with monkeypatch.context() as patch:
            patch.setattr(ApiBase, "_shows_the_token", lambda self: False)
            running.hosts.clear()
            jupyters = await ask(verb, path, body, **options)
        assert decided(ours) == decided(jupyters), (credential, sent)


async def test_a_websocket_takes_it_too(running: Any, jp_ws_fetch: Any, token: str, shortly: list[Any]) -> None:
    (await jp_ws_fetch("superduper/api/v1/events", headers=bearing(token))).close()
    assert len(shortly) == 1
    with pytest.raises(HTTPClientError, match="403"):
        await jp_ws_fetch("superduper/api/v1/events", headers=bearing("x"))
    assert len(shortly) == 1


async def test_a_token_in_a_form_comes_before_the_header(running: Any, ask: Any, token: str) -> None:
    """Jupyter looks for it in arguments first, and those of a GET with a form are read before anyone is asked."""
    form = {**bearing(token), "Content-Type": "application/x-www-form-urlencoded"}
    assert (await ask("GET", "events", headers=form)).status == 200
    assert (await ask("GET", "events", b"token=wrong", headers=form)).status == 403


class OtherProvider(IdentityProvider):
    """Knows one user, by a header of its own."""

    async def get_user(self, handler: Any) -> User | None:  # type: ignore[override]
        return User("ana") if handler.request.headers.get("X-User") == "ana" else None


class TestOtherIdentityProvider:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        jp_server_config["ServerApp"]["identity_provider_class"] = OtherProvider
        return jp_server_config

    async def test_it_alone_says_who_comes_in(self, running: Any, ask: Any, token: str, shortly: list[Any]) -> None:
        for own in (bearing(token), {"Authorization": f"Bearer {token}"}):
            assert (await ask("GET", "status", headers=own)).status == 403
        known = {"X-User": "ana", "Authorization": ""}
        assert (await ask("GET", "status", headers=known)).status == 200
        assert (await ask("POST", "jobs", BODY, headers=known)).status == 403  # no token: checked for XSRF
        assert shortly == []


@pytest.mark.parametrize("replaced", ["get_user", "get_user_token", "get_token"])
async def test_a_provider_with_replaced_methods_decides(
    running: Any, ask: Any, jp_serverapp: Any, token: str, monkeypatch: Any, replaced: str
) -> None:
    assert (await ask("GET", "status", headers=bearing(token))).status == 200
    provider = jp_serverapp.identity_provider

    @functools.wraps(getattr(provider, replaced))
    def nobody(handler: Any) -> None:
        return None

    monkeypatch.setattr(provider, replaced, nobody)
    assert (await ask("GET", "status", headers=bearing(token))).status == 403


async def test_a_replaced_way_to_the_user_decides(
    running: Any, ask: Any, jp_serverapp: Any, token: str, shortly: list[Any], monkeypatch: Any
) -> None:
    """As JupyterHub before 3 and single sign-on extensions did it."""
    prepare = JupyterHandler.prepare

    @functools.wraps(prepare)
    async def closed(self: Any, **options: Any) -> None:
        self.current_user = self._jupyter_current_user = None

    monkeypatch.setattr(JupyterHandler, "prepare", closed)
    assert (await ask("GET", "status", headers=bearing(token))).status == 403
    assert shortly == []
    monkeypatch.setattr(JupyterHandler, "prepare", prepare)
    monkeypatch.setattr(JupyterHandler, "get_current_user", lambda self: None)
    await ask("GET", "status", headers=bearing(token))
    assert shortly == []


class TestPasswordOnly:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        password = {"hashed_password": passwd("correct horse", "sha256"), "token": ""}
        return {**jp_server_config, "PasswordIdentityProvider": password}

    async def test_no_token_lets_in(self, running: Any, ask: Any, jp_serverapp: Any, shortly: list[Any]) -> None:
        assert jp_serverapp.identity_provider.token == ""
        for header in ("", "token", "token ", 'token ""', "token None", "Bearer x"):
            assert (await ask("GET", "status", headers={"Authorization": header})).status == 403, header
        assert shortly == []


class Asked(Authorizer):
    """Remembers what it was given; denies those that it is told to."""

    seen: list[SimpleNamespace] = []  # noqa: RUF012
    allows = True

    async def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:  # type: ignore[override]
        context = CallContext.get(CallContext.JUPYTER_HANDLER)
        self.seen.append(SimpleNamespace(handler=handler, user=user, context=context))
        return self.allows


class TestAuthorizer:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        jp_server_config["ServerApp"]["authorizer_class"] = Asked
        return jp_server_config

    async def test_it_is_asked_as_ever(
        self, running: Any, ask: Any, token: str, shortly: list[Any], monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(Asked, "seen", [])
        for allows, status in ((True, 200), (False, 403), (True, 200)):
            monkeypatch.setattr(Asked, "allows", allows)
            assert (await ask("GET", "status", headers=bearing(token))).status == status
        assert [seen.handler for seen in Asked.seen] == shortly
        assert all(isinstance(seen.user, User) and seen.context is seen.handler for seen in Asked.seen)


class NamingProvider(PasswordIdentityProvider):
    """Jupyter's own, but for whom it sees in a program with the token."""

    def generate_anonymous_user(self, handler: Any) -> User:
        return User(handler.request.headers["X-User"])


class TestProviderThatNamesPrograms:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        jp_server_config["ServerApp"].update(identity_provider_class=NamingProvider, authorizer_class=Asked)
        return jp_server_config

    async def test_each_keeps_its_name(
        self, running: Any, ask: Any, token: str, shortly: list[Any], monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(Asked, "seen", [])
        for name in ("ana", "ben"):
            assert (await ask("GET", "status", headers={**bearing(token), "X-User": name})).status == 200
        assert [seen.user.username for seen in Asked.seen] == ["ana", "ben"]
        assert shortly == []
