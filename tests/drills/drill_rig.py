"""A whole cluster whose parts may be killed: a mongod, notebook servers, and clients of them in this process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from pymongo import MongoClient

import superduper_nb as sd
from superduper_nb.cluster.ending import wait_for_end
from superduper_nb.cluster.mongod import Mongod, connect_options
from superduper_nb.errors import SuperduperError
from superduper_nb.transport import Transport
from tests.serving.live import OTHERS
from tests.waiting import until

TOKEN: Final = "t0ken-of-the-drills"
DATABASE: Final = "drill"


class Server:
    """A notebook server with the extension, on a port that it keeps when it is started again.

    Parameters
    ----------
    home : Path
        Its Jupyter folders, which this process shares (and with them the trust in models).
    settings : str
        Environment variables of it alone.
    """

    def __init__(self, home: Path, **settings: str) -> None:
        self._home, self._settings = home, settings
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = home / f"server-{self.port}.log"
        self.start()

    def start(self) -> None:
        options = [f"--port={self.port}", "--ServerApp.port_retries=0", "--no-browser", "--allow-root"]
        options += [f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={self._home}"]
        extensions = {"superduper_nb": True, **OTHERS}
        options += [f"--ServerApp.jpserver_extensions={extensions}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyter", "server", *options],
                env={**os.environ, **self._settings},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def status(self) -> dict[str, Any]:
        """Return what it says of itself; nothing where it does not answer."""
        transport = Transport(self.url, TOKEN)
        try:
            return dict(json.loads(transport.request("GET", "superduper/api/v1/status").body))
        except (SuperduperError, ValueError):
            return {}
        finally:
            transport.close()

    def ready(self) -> None:
        until(lambda: self.status().get("state") == "ready", "the server is ready", timeout=120)

    def kill(self) -> None:
        """End it alone: what it started has to notice."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    def dask_host(self) -> int | None:
        """Return the process of the scheduler."""
        return next((p.pid for p in self.family() if "superduper_nb.cluster.dask_host" in command_line(p)), None)

    def workers(self) -> list[int]:
        """Return the processes that compute."""
        host = self.dask_host()
        return workers_below(host) if host else []

    def close(self) -> None:
        family = self.family()
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        for left in wait_for_end(family, timeout=20):
            left.kill()
        self.process.wait()


def workers_below(host: int) -> list[int]:
    """Return the processes that compute: those that are forked below the process of the scheduler."""
    found: list[int] = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(host).children():
            if "multiprocessing.forkserver" in command_line(child):
                found += [worker.pid for worker in child.children() if command_line(worker)]
    return found


def command_line(process: psutil.Process) -> str:
    """Return a process's command line; nothing of one that ended, be it collected or not."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Rig:
    """A mongod, and the notebook servers that work on it."""

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        self._home = folder
        self.mongod = Mongod.attach(data or folder / "mongodb", cache_gb=0.25)
        self.mongo: MongoClient[dict[str, Any]] = MongoClient(self.mongod.uri, **connect_options())
        self.servers: list[Server] = []
        self._clients: list[sd.Client[Any]] = []

    def server(self, **settings: str) -> Server:
        """Start a notebook server."""
        given = {"SUPERDUPER_MONGODB__URI": self.mongod.uri, "SUPERDUPER_JOBS__WORKERS": "2", **settings}
        self.servers.append(Server(self._home, **given))
        return self.servers[-1]

    def docs(self, server: Server) -> Any:
        """Return the collection of a new client that works through a server."""
        client = sd.connect(server.url, token=TOKEN, mongodb={"uri": self.mongod.uri})
        self._clients.append(client)
        return client[DATABASE]["docs"]

    def kill_mongod(self) -> None:
        os.kill(until(lambda: self.mongod.status()["pid"], "there is a mongod to kill"), signal.SIGKILL)

    def close(self) -> None:
        for part in (*self._clients, *self.servers, self.mongo, self.mongod):
            part.close()


@contextmanager
def rig_in(folder: Path, data: Path | None = None) -> Iterator[Rig]:
    """Run a rig whose files are in a folder, and mongod's perhaps elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("data", "runtime", "config"):
            (folder / kind).mkdir(mode=0o700, parents=True)
            patch.setenv(f"JUPYTER_{kind.upper()}_DIR", str(folder / kind))
        rig = Rig(folder, data)
        try:
            yield rig
        finally:
            rig.close()
