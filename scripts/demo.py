"""Run the quickstart in a kernel of a real notebook server (``make demo``), or open it in JupyterLab (``make lab``).

The server gets its own data, runtime and config folders below ``build/``: it meets nothing of yours and leaves nothing.
Every process that it starts inherits ``SUPERDUPER_DEMO``; by that mark they are found again at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import nbformat
import psutil
import urllib3
from jupyter_client.asynchronous.client import AsyncKernelClient
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
BUILD = ROOT / "build"
MARK = "SUPERDUPER_DEMO"

T = TypeVar("T")


def main() -> int:
    """Run what the command line names."""
    match sys.argv[1:]:
        case []:
            return demo()
        case ["lab", *more]:
            lab(more)
        case _:
            print("usage: demo.py [lab [JupyterLab's own options]]", file=sys.stderr)
            return 2


def lab(options: list[str]) -> NoReturn:
    """Become a JupyterLab, open on a copy of the quickstart; ``build/lab`` keeps it and its documents."""
    home = BUILD / "lab"
    copy = home / "work" / NOTEBOOK.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not copy.exists():
        shutil.copy(NOTEBOOK, copy)
    command = server_command("lab", [str(copy), f"--ServerApp.root_dir={copy.parent}", *options])
    os.execve(sys.executable, command, environment(home))


def demo() -> int:
    """Run the quickstart from an empty folder, show its result, stop everything, look for what is left."""
    home = BUILD / "demo"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    mark = secrets.token_hex(8)
    began = time.monotonic()
    try:
        with running_server(home, mark) as (url, token):
            notebook, error = asyncio.run(run_notebook(url, token, home))
    except TimeoutError as timeout:
        notebook, error = None, str(timeout)
    left = processes_left(mark)
    if notebook is not None:
        page = export(notebook)
        if not error:
            show_results(notebook)
        print(f"\nRan at    {url}lab/tree/{NOTEBOOK.name}   (stopped again; `make lab` opens it)")
        print(f"Saved as  {page.as_uri()}")
    if error:
        print(f"\nFAILED: {error}\n\nThe server's last words ({home / 'server.log'}):", file=sys.stderr)
        print("\n".join((home / "server.log").read_text().splitlines()[-25:]), file=sys.stderr)
    for process in left:
        print(f"STILL RUNNING, killed now: {process}", file=sys.stderr)
        process.kill()
    if error or left:
        return 1
    print(f"Stopped   no process is left; {time.monotonic() - began:.0f} s in all")
    return 0


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a server that keeps everything below `home`."""
    folders = {f"JUPYTER_{name.upper()}_DIR": str(home / name) for name in ("config", "data", "runtime")}
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("SUPERDUPER_", "JPY_", "JUPYTER"))}
    return {**mine, **folders, "IPYTHONDIR": str(home / "ipython"), **more}


def server_command(app: str, options: list[str]) -> list[str]:
    """Return the command that starts a Jupyter app on loopback."""
    as_root = ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    return [sys.executable, "-m", "jupyter", app, "--ServerApp.ip=127.0.0.1", *as_root, *options]


@contextlib.contextmanager
def running_server(home: Path, mark: str) -> Iterator[tuple[str, str]]:
    """Start a Jupyter server with the extension; give its URL and token; stop it."""
    token = secrets.token_urlsafe(24)
    options = ["--no-browser", f"--ServerApp.port={free_port()}", f"--ServerApp.root_dir={NOTEBOOK.parent}"]
    env = environment(home, JUPYTER_TOKEN=token, **{MARK: mark})
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(server_command("server", options), env=env, stdout=log, stderr=log)
        try:
            with step("Starting a notebook server with the extension"):
                url = wait_for(lambda: server_url(home, server), 60, "the notebook server to start")
            yield url, token
        finally:
            with step("Stopping the server"):
                stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to stop; kill it where it doesn't."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def free_port() -> int:
    """Return a port that nobody listens on; where it is taken in between, the server takes the next."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def server_url(home: Path, server: subprocess.Popen[bytes]) -> str | None:
    """Return the URL that the server wrote into its runtime folder, once it answers there."""
    if server.poll() is not None:
        raise TimeoutError(f"the notebook server stopped with exit status {server.returncode}")
    try:
        url: str = json.loads((home / "runtime" / f"jpserver-{server.pid}.json").read_text())["url"]
        urllib3.request("GET", f"{url}api", retries=False, timeout=5)
    except (OSError, ValueError, urllib3.exceptions.HTTPError):
        return None
    return url


async def run_notebook(url: str, token: str, home: Path) -> tuple[Any, str | None]:
    """Run the notebook in a kernel that this server starts; return it, and what failed."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    session = {"path": NOTEBOOK.name, "name": NOTEBOOK.name, "type": "notebook", "kernel": {"name": "python3"}}
    reply = urllib3.request(
        "POST", f"{url}api/sessions", json=session, headers={"Authorization": f"token {token}"}, timeout=60
    )
    if reply.status != 201:
        return notebook, f"the server started no kernel: {reply.status} {reply.data.decode()[:300]}"
    kernel = AsyncKernelClient()
    kernel.load_connection_file(str(home / "runtime" / f"kernel-{reply.json()['kernel']['id']}.json"))
    kernel.hb_channel.time_to_dead = 60.0  # one second, the default, is lost to any import of torch
    kernel.start_channels()
    try:
        await kernel.wait_for_ready(timeout=60)
        await run_cells(notebook, kernel)
    except CellExecutionError as error:
        return notebook, f"a cell raised\n{error}"
    except (RuntimeError, TimeoutError) as error:
        return notebook, str(error)
    finally:
        kernel.stop_channels()
    return notebook, None


async def run_cells(notebook: Any, kernel: AsyncKernelClient) -> None:
    """Run every code cell, saying which one runs and how long it took."""
    runner = NotebookClient(notebook, timeout=180)
    runner.kc = kernel
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            number = runner.code_cells_executed + 1
            with step(f"In [{number:>2}]  {title(cell.source)}"):
                await runner.async_execute_cell(cell, index, execution_count=number)


def title(source: str) -> str:
    """Return the line of a cell that tells what it does: its first one that is no import or comment."""
    lines = [line for line in source.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("import ", "from ", "#"))]
    return (telling or lines)[0][:72]


def export(notebook: Any) -> Path:
    """Save the executed notebook as a page; return its path."""
    page = BUILD / "quickstart.html"
    page.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    return page


def show_results(notebook: Any) -> None:
    """Print the cells tagged ``results``, as text."""
    for cell in notebook.cells:
        if "results" in cell.metadata.get("tags", ()):
            print(f"\n{cell.source}\n")
            for output in cell.get("outputs", ()):
                print(output.get("text") or output.get("data", {}).get("text/plain", ""))


def processes_left(mark: str) -> list[psutil.Process]:
    """Return the processes of this run that don't stop within 20 seconds."""
    with step("Looking for processes that it left"), contextlib.suppress(TimeoutError):
        wait_for(lambda: not marked(mark), 20, "every process to stop")
    return marked(mark)


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that inherited the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for(condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """Return the first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.1)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Show what is being done, and then how long it took."""
    began = time.monotonic()
    print(f"  {what:<82}", end="", flush=True)
    try:
        yield
    finally:
        print(f"{time.monotonic() - began:6.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
