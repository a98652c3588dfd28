"""Which notebook server a kernel takes for its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import UnixStreamServer
from typing import Any

import pytest

from superduper_nb.cluster import discovery
from superduper_nb.cluster.discovery import Server, find_server
from superduper_nb.config import Config
from superduper_nb.errors import ServerUnavailableError

TOKEN = "t0ken-of-jupyter"
READY = {"state": "ready", "error": None, "pid": 4711, "instance": "abc"}


@pytest.fixture(autouse=True)
def _no_own_server(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("JPY_", "JUPYTERHUB_"))]:
        monkeypatch.delenv(name)


class FakeServer:
    """What a Jupyter server answers to a kernel that looks for its own."""

    def __init__(self, address: Any = ("127.0.0.1", 0), kernels: tuple[str, ...] = ()) -> None:
        self.status: dict[str, Any] | None = dict(READY)
        self.kernels = kernels
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.asked.append(self.path)
                body = fake.answer(self.path)
                allowed = self.headers["Authorization"] == f"token {TOKEN}"
                self.send_response((200 if body is not None else 404) if allowed else 403)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def address_string(self) -> str:
                return "?"

            def log_message(self, *args: Any) -> None:
                pass

        class UnixServer(UnixStreamServer):
            server_port = 0

        kind: Any = UnixServer if isinstance(address, str) else ThreadingHTTPServer
        self.http = kind(address, Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/a%40b/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def answer(self, path: str) -> Any:
        if path.startswith("/a%40b/api/kernels"):
            return [{"id": id} for id in self.kernels]
        return self.status if path.startswith("/a%40b/superduper/api/v1/status") else None

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeServer]]:
    made: list[FakeServer] = []

    def make(*args: Any, **options: Any) -> FakeServer:
        made.append(FakeServer(*args, **options))
        return made[-1]

    yield make
    for server in made:
        server.close()


def announce(home: Path, server: FakeServer, pid: int | None = None, **more: Any) -> Path:
    """Write the file that a Jupyter server writes."""
    pid = os.getpid() if pid is None else pid
    info = {"url": server.url, "base_url": "/a%40b/", "token": TOKEN, "pid": pid, "sock": "", "password": False, **more}
    path = home / "runtime" / f"jpserver-{pid}.json"
    path.write_text(json.dumps(info))
    return path


def found(**settings: Any) -> Server:
    server = find_server(Config.load({}, **settings))
    assert server is not None
    return server


def test_the_url_given_wins(home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, given = fake(), fake()
    announce(home, own)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    server = found(url=given.url, token=TOKEN)
    assert (server.url, server.token) == (given.url, TOKEN)
    assert own.asked == []
    assert TOKEN not in repr(server)


@pytest.mark.parametrize(
    "page", ["lab?token={}", "tree/a/b.ipynb?token={}", "?token={}", "superduper?token={}", "lab/tree/x?token={}"]
)
def test_a_url_copied_from_the_browser(fake: Any, page: str) -> None:
    given = fake()
    server = found(url=given.url + page.format(TOKEN))
    assert (server.url, server.token) == (given.url, TOKEN)


def test_a_url_that_leads_nowhere_is_an_error(fake: Any) -> None:
    given = fake()
    with pytest.raises(ServerUnavailableError, match="refuses the token"):
        find_server(Config.load({}, url=given.url, token="wr0ng"))
    given.status = None
    with pytest.raises(ServerUnavailableError, match="superduper_nb enabled"):
        find_server(Config.load({}, url=given.url, token=TOKEN))


def test_jupyterhub(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = fake()
    monkeypatch.setenv("JUPYTERHUB_SERVICE_URL", hub.url.replace("127.0.0.1", "0.0.0.0"))
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
    server = found()
    assert server.url == hub.url
    assert "JupyterHub" in server.how


def test_the_parent(home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = fake()
    announce(home, parent)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    server = found()
    assert (server.url, server.token) == (parent.url, TOKEN)
    assert server.mongodb_uri is None


def test_the_mongodb_of_that_very_server(home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = fake()
    announce(home, parent)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    private = home / "runtime" / "superduper-4711.json"
    private.write_text(json.dumps({"instance": "abc", "mongodb_uri": "mongodb://ana:s3cr3t@h/"}))
    assert found().mongodb_uri == "mongodb://ana:s3cr3t@h/"
    assert "s3cr3t" not in repr(found())
    private.write_text(json.dumps({"instance": "of another container", "mongodb_uri": "mongodb://ana:s3cr3t@h/"}))
    assert found().mongodb_uri is None


def test_a_unix_socket(home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any) -> None:
    path = str(tmp_path_factory.mktemp("s") / "s")
    parent = fake(path)
    announce(home, parent, url="http+unix://x/", sock=path)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    assert found().url.startswith("http+unix://%2F")


@pytest.mark.parametrize(
    "change", [{"pid": 2**22 + 1}, {"token": ""}, {"token": "wr0ng"}, {"url": "http://127.0.0.1:1/"}]
)
def test_a_parent_that_can_not_be_used(home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    announce(home, fake(), **{**change, "pid": change.get("pid", os.getpid())}).rename(
        home / "runtime" / "jpserver-1.json"
    )
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert find_server(Config.load({})) is None
    with pytest.raises(ServerUnavailableError, match="remote=True"):
        find_server(Config.load({}, remote=True))


def test_files_left_behind_or_half_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "runtime" / "jpserver-1.json").write_text('{"url": "http')
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert find_server(Config.load({})) is None


def test_the_one_that_owns_this_kernel(home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other, own = fake(kernels=("k1",)), fake(kernels=("k2", "k3"))
    announce(home, other, pid=os.getppid())
    announce(home, own)
    monkeypatch.setattr(discovery, "_kernel_id", lambda: "k3")
    assert found().url == own.url
    monkeypatch.setattr(discovery, "_kernel_id", lambda: "of nobody")
    assert find_server(Config.load({})) is None


def test_running_servers_are_not_taken_by_those_who_are_no_kernel(home: Path, fake: Any) -> None:
    announce(home, fake(kernels=("k1",)))
    assert find_server(Config.load({})) is None


def test_it_is_waited_for(home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = fake()
    parent.status["state"] = "starting"
    announce(home, parent)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))

    def ready_after_the_second(path: str, answer: Any = parent.answer) -> Any:
        if len(parent.asked) == 2:
            parent.status["state"] = "ready"
        return answer(path)

    monkeypatch.setattr(parent, "answer", ready_after_the_second)
    assert found().url == parent.url
    assert len(parent.asked) == 2


def test_a_server_whose_engines_failed_is_not_passed_over(
    home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = fake()
    parent.status = {**READY, "state": "failed", "error": "No MongoDB answers at db.example."}
    announce(home, parent)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    with pytest.raises(ServerUnavailableError, match=r"No MongoDB answers at db\.example\."):
        find_server(Config.load({}))


def test_remote_false_asks_nobody(home: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = fake()
    announce(home, parent)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))
    assert find_server(Config.load({}, remote=False)) is None
    assert parent.asked == []


def test_it_is_light() -> None:
    heavy = ["jupyter_server", "tornado", "pymongo", "torch", "numpy", "distributed", "IPython"]
    code = f"import sys, superduper_nb.cluster.discovery; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
