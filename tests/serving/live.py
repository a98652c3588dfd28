"""A real notebook server in a process of its own, with a real MongoDB, and a client of it in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import superduper_nb as sd
from superduper_nb.cluster.ending import wait_for_end
from superduper_nb.transport import Answer, Transport
from tests.waiting import until

API = "superduper/api/v1/"
TOKEN = "t0ken-of-the-tests"
OTHERS = dict.fromkeys(("jupyter_lsp", "jupyter_server_terminals", "jupyterlab", "notebook", "notebook_shim"), False)
"""The other extensions that are installed: a server starts a second sooner without them."""


@dataclass
class Live:
    """The server, and a client that is connected to it."""

    url: str
    client: Any
    process: subprocess.Popen[bytes]
    log: Path
    transport: Transport

    def send(self, verb: str, path: str, body: bytes | None = None, **options: Any) -> Answer:
        """Send a request to the API and return the answer as it came."""
        return self.transport.request(verb, API + path, body=body, timeout=60, **options)

    def ask(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send and receive JSON."""
        data = None if body is None else json.dumps(body).encode()
        answer = self.send(verb, path, data, headers={"Content-Type": "application/json"})
        return answer.status, json.loads(answer.body)

    def model_process(self) -> int | None:
        """Return the process that runs the models."""
        pid: int | None = self.ask("GET", "status")[1]["components"]["model_server"].get("pid")
        return pid


@contextmanager
def running(home: Path, mongo_uri: str, *, workers: int = 1) -> Iterator[Live]:
    """Run a server whose files are in `home`; this process shares them meanwhile, and with them the trust in models."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("data", "runtime", "config"):
            (home / kind).mkdir(mode=0o700, parents=True)
            patch.setenv(f"JUPYTER_{kind.upper()}_DIR", str(home / kind))
        enabled = {"ServerApp": {"jpserver_extensions": {"superduper_nb": True, **OTHERS}}}
        (home / "config" / "jupyter_server_config.json").write_text(json.dumps(enabled))
        with _process(home, mongo_uri, workers) as process:
            url = _url(home / "runtime" / f"jpserver-{process.pid}.json")
            client = sd.connect(url, token=TOKEN, mongodb={"uri": mongo_uri})
            live = Live(url, client, process, home / "server.log", Transport(url, TOKEN, connections=32))
            try:
                until(lambda: live.ask("GET", "status")[1]["state"] == "ready", "the engines are up")
                yield live
            finally:
                live.transport.close()
                client.close()


@contextmanager
def _process(home: Path, mongo_uri: str, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    options = [
        "--port=0",
        "--no-browser",
        "--allow-root",
        f"--IdentityProvider.token={TOKEN}",
        f"--notebook-dir={home}",
    ]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "server", *options],
            env={**os.environ, "SUPERDUPER_MONGODB__URI": mongo_uri, "SUPERDUPER_JOBS__WORKERS": str(workers)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        process.wait(30)
        for left in wait_for_end(family, timeout=10):
            left.kill()


def _url(runtime_file: Path) -> str:
    until(lambda: runtime_file.exists() and runtime_file.read_text().endswith("}"), "its runtime file is there")
    url: str = json.loads(runtime_file.read_text())["url"]
    return url
