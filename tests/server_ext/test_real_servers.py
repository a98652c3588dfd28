"""Two real servers, side by side, and a kernel that one of them starts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from superduper_nb.transport import Transport

T = TypeVar("T")
TOKEN = "t0ken-of-the-tests"
SUPERDUPER = (sys.executable, "-c", "from superduper_nb.server_ext.app import main; main()")
"""What the command ``jupyter superduper`` runs."""
FIND = """
from superduper_nb.cluster.discovery import find_server
from superduper_nb.config import Config
server = find_server(Config.load({}))
print(server.url, server.mongodb_uri == URI, server.how, sep="\\n", end="")
"""


def eventually(look: Callable[[], T], what: str, timeout: float = 60.0) -> T:
    """Return the first true thing that `look` sees."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)
    return seen


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    home: Path
    log: Path

    def info(self) -> dict[str, Any]:
        path = self.home / "runtime" / f"jpserver-{self.process.pid}.json"
        eventually(lambda: path.exists() and path.read_text().endswith("}"), "its runtime file is there")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def ask(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        transport = Transport(self.info()["url"], TOKEN)
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = transport.request(verb, path, body=data, timeout=30)
        finally:
            transport.close()
        return answer.status, json.loads(answer.body) if answer.body else None

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.ask("GET", "superduper/api/v1/status")[1]
        return status

    def ready(self) -> None:
        assert eventually(lambda: (s := self.status())["state"] != "starting" and s, "it is up")["state"] == "ready"

    def family(self) -> list[psutil.Process]:
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]


Launch = Callable[..., Running]


@pytest.fixture
def launch(home: Path, mongo_uri: str) -> Iterator[Launch]:
    """Return what starts a server; all are gone after the test."""
    enabled = {"ServerApp": {"jpserver_extensions": {"superduper_nb": True}}}
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(enabled))
    servers: list[Running] = []

    def start(*command: str, **environment: str) -> Running:
        log = home / f"server-{len(servers)}.log"
        options = [
            "--port=0",
            "--no-browser",
            "--allow-root",
            f"--IdentityProvider.token={TOKEN}",
            f"--notebook-dir={home}",
        ]
        environment = {"SUPERDUPER_MONGODB__URI": mongo_uri, "SUPERDUPER_JOBS__WORKERS": "1", **environment}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*(command or (sys.executable, "-m", "jupyter", "server")), *options],
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        servers.append(Running(process, home, log))
        return servers[-1]

    yield start
    for server in servers:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = server.family()
        server.process.terminate()
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        server.process.wait()


@pytest.mark.slow
def test_a_kernel_finds_the_server_that_started_it(launch: Launch, mongo_uri: str) -> None:
    first, second = launch(), launch()
    first.ready()
    second.ready()
    _, kernel = second.ask("POST", "api/kernels", {"name": "python3"})
    connection = second.home / "runtime" / f"kernel-{kernel['id']}.json"
    client = BlockingKernelClient(connection_file=str(connection))
    client.load_connection_file()
    client.start_channels(hb=False)  # its beat stumbles on a busy machine, and the kernel would be called dead
    try:
        client.wait_for_ready(timeout=60)
        hide = "import os; os.environ.pop('SUPERDUPER_MONGODB__URI'); URI = " + repr(mongo_uri)
        assert said(client, hide + FIND) == [second.info()["url"], "True", "the server that started this kernel"]
        lost = "os.environ.pop('JPY_PARENT_PID')"
        assert said(client, lost + FIND) == [second.info()["url"], "True", "the running server that owns this kernel"]
    finally:
        client.stop_channels()
    text = second.log.read_text()
    assert mongo_uri not in text
    assert "Traceback" not in text, text


def said(client: BlockingKernelClient, code: str) -> list[str]:
    """Run code in the kernel and return the lines it printed."""
    printed: list[str] = []

    def note(message: dict[str, Any]) -> None:
        content = message["content"]
        assert message["msg_type"] != "error", "\n".join(content["traceback"])
        if message["msg_type"] == "stream":
            printed.append(content["text"])

    client.execute_interactive(code, output_hook=note, timeout=60)
    return "".join(printed).splitlines()


@pytest.mark.slow
def test_a_stopped_server_leaves_nothing_behind(launch: Launch) -> None:
    server = launch()
    server.ready()
    family = server.family()
    assert len(family) > 1
    private = server.home / "runtime" / f"superduper-{server.process.pid}.json"
    assert private.exists()
    server.process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == []
    assert not private.exists()
    assert not list((server.home / "runtime").glob("jpserver-*.json"))


@pytest.mark.slow
def test_a_killed_server_leaves_no_process_either(launch: Launch) -> None:
    server = launch()
    server.ready()
    family = server.family()
    server.process.kill()
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == []


@pytest.mark.slow
def test_jupyter_superduper_reads_the_clusters_file(launch: Launch, mongo_uri: str, tmp_path: Path) -> None:
    host, port = mongo_uri.rpartition("@")[2].partition("/")[0].split(":")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"mongodb": {"uri": mongo_uri}, "jobs": {"workers": 1}, "redis": {"port": 6379}}))
    file.chmod(0o600)
    server = launch(*SUPERDUPER, "--config", str(file), SUPERDUPER_MONGODB__URI="")
    server.ready()
    assert server.status()["components"]["mongodb"]["where"] == f"{host}:{port}"


@pytest.mark.slow
def test_jupyter_superduper_refuses_a_wrong_file_before_anything_starts(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"mongdb": {"uri": "mongodb://ana:s3cr3t@h/"}}))
    file.chmod(0o600)
    command = [*SUPERDUPER, "--config", str(file), "--allow-root", "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "mongdb" in done.stderr
    assert str(file) in done.stderr
    assert "s3cr3t" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_mongodb_that_refuses_keeps_the_notebook_server_alive(launch: Launch) -> None:
    server = launch(SUPERDUPER_MONGODB__URI="mongodb://ana:s3cr3t@127.0.0.1:1/")
    status = eventually(lambda: (s := server.status())["state"] != "starting" and s, "it gave up")
    assert status["state"] == "failed"
    assert "127.0.0.1:1" in status["error"]
    code, body = server.ask("POST", "superduper/api/v1/search", {"database": "a", "collection": "b", "id": 1})
    assert (code, body["code"], body["message"]) == (503, "mongodb_unavailable", status["error"])
    assert server.ask("GET", "api/status")[0] == 200
    assert "s3cr3t" not in server.log.read_text() + json.dumps(status)
