from __future__ import annotations

from typing import Any

import pytest

from superduper_nb.errors import InvalidInputError, NotFoundError, ServerUnavailableError
from superduper_nb.magics.session import Connections, Target
from superduper_nb.magics.table import run


class FakeClient:
    def __init__(self, **settings: Any) -> None:
        self.settings, self.open, self.reachable = settings, True, True
        self.how = "a fake"

    def status(self) -> dict[str, Any]:
        if not self.reachable:
            raise ServerUnavailableError("gone")
        return {"components": {"mongodb": {"state": "running", "where": "here:1", "version": "6.0.5"}}}

    def close(self) -> None:
        self.open = False


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeClient]:
    """Return the clients that `connect` made, in order."""
    clients: list[FakeClient] = []

    def connect(**settings: Any) -> FakeClient:
        clients.append(FakeClient(**settings))
        return clients[-1]

    monkeypatch.setattr("superduper_nb.client.connect", connect)
    return clients


def test_connect_says_where(made: list[FakeClient]) -> None:
    connections = Connections()
    told = run("connect http://localhost:8888/lab --name lab", connections=connections).value
    assert repr(told) == "connected as 'lab': a fake; MongoDB 6.0.5 at here:1"
    assert made[0].settings == {"url": "http://localhost:8888/lab"}


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("connect", {}),
        ("connect --local", {"remote": False}),
        ("connect --config a.json", {"config": "a.json"}),
        ("connect mongodb://host:1/ --local", {"mongodb": {"uri": "mongodb://host:1/"}, "remote": False}),
    ],
)
def test_the_line_becomes_arguments_of_connect(made: list[FakeClient], line: str, settings: dict[str, Any]) -> None:
    run(line, connections=Connections())
    assert made[0].settings == settings


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://user:hunter2@host/db",
        "mongodb+srv://user:hunter2@host",
        "http://user:hunter2@host:8888/",
        "http://host:8888/?token=hunter2",
        "http://host:8888/lab?a=1&token=hunter2",
    ],
)
def test_a_secret_on_the_line_is_refused_and_not_repeated(made: list[FakeClient], url: str) -> None:
    with pytest.raises(InvalidInputError, match="SUPERDUPER_TOKEN") as caught:
        run(f"connect '{url}'", connections=Connections())
    assert "hunter2" not in str(caught.value)
    assert made == []


@pytest.mark.parametrize("url", ["localhost:8888", "ftp://host/", "http://", "http://[/"])
def test_what_is_no_url_is_refused(made: list[FakeClient], url: str) -> None:
    with pytest.raises(InvalidInputError, match="URL"):
        run(f"connect {url}", connections=Connections())


def test_connecting_again_keeps_a_living_client_and_replaces_a_dead_one(made: list[FakeClient]) -> None:
    connections = Connections()
    run("connect", connections=connections)
    connections.get().target = Target("shop", "products")
    run("connect", connections=connections)
    assert len(made) == 1
    made[0].reachable = False
    run("connect", connections=connections)
    assert len(made) == 2
    assert not made[0].open
    assert connections.get().target == Target("shop", "products")


def test_connecting_elsewhere_under_the_same_name_closes_the_old_client(made: list[FakeClient]) -> None:
    connections = Connections()
    run("connect", connections=connections)
    run("connect --local", connections=connections)
    assert [client.open for client in made] == [False, True]
    run("connect", connections=connections)
    assert len(made) == 2  # nothing asked for: what there is


def test_named_connections(made: list[FakeClient]) -> None:
    connections = Connections()
    run("connect --name a", connections=connections)
    run("connect --name b --local", connections=connections)
    assert connections.get().name == "b"
    assert connections.get("a").client is made[0]  # type: ignore[comparison-overlap]
    run("connect --name a", connections=connections)
    assert connections.get().name == "a"
    listed = run("connections", connections=connections).value
    assert [(row["name"], row["current"]) for row in listed] == [("a", "●"), ("b", "")]
    run("connections --close a", connections=connections)
    assert not made[0].open
    assert connections.get().name == "b"
    with pytest.raises(NotFoundError, match="Did you mean 'b'"):
        run("status --on bb", connections=connections)
    run("connections --close b", connections=connections)
    assert "%sddb connect" in repr(run("connections", connections=connections).value)
    with pytest.raises(NotFoundError, match="%sddb connect --name x"):
        run("status --on x", connections=connections)


def test_the_first_command_that_needs_a_connection_opens_one(made: list[FakeClient]) -> None:
    connections = Connections()
    run("status", connections=connections)
    assert [client.settings for client in made] == [{}]


def test_a_connection_that_fails_leaves_the_old_one(made: list[FakeClient], monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections()
    run("connect", connections=connections)

    def refuse(**_: Any) -> Any:
        raise ServerUnavailableError("no")

    monkeypatch.setattr("superduper_nb.client.connect", refuse)
    with pytest.raises(ServerUnavailableError):
        run("connect --local", connections=connections)
    assert made[0].open
    assert connections.get().client is made[0]  # type: ignore[comparison-overlap]


def test_targets() -> None:
    assert Target.parse("shop.products") == Target("shop", "products")
    assert Target.parse("shop.a.b") == Target("shop", "a.b")
    assert Target.parse("shop") == Target("shop")
    assert str(Target("shop", "a.b")) == "shop.a.b"
    for wrong in ("", ".products", "shop."):
        with pytest.raises(InvalidInputError, match=r"database\.collection"):
            Target.parse(wrong)


def test_no_secret_in_the_repr_of_a_connection(made: list[FakeClient]) -> None:
    connections = Connections()
    connections.open("x", {"token": "hunter2"})
    assert "hunter2" not in repr(connections.get("x"))
