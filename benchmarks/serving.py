"""How fast models are served, beside their limits and beside other servers: ``python benchmarks/serving.py MODEL``.

``MODEL`` is ``mlp`` or ``minilm``, or both. Same model, one process with one thread for it, batches of up to 32, a
closed loop of clients in a process of its own, everything in one run: absolute figures drift with the machine, the
ratios count.

Other servers are measured where their environments are: ``--install FOLDER`` makes one for each (they see this
environment's torch), ``--peers FOLDER`` uses them. They are nobody's dependency. ``--only tornado neighbours mosec``
measures these beside us, and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "peers"), str(HERE.parent)]

import cloudpickle  # noqa: E402
import psutil  # noqa: E402
import serving_models  # noqa: E402

from superduper_nb.cluster.mongod import Mongod  # noqa: E402
from tests.serving.live import API, TOKEN, running  # noqa: E402

CLIENTS = (1, 8, 32, 128)
PEERS = {
    "mosec": ["mosec"], "litserve": ["litserve"], "bentoml": ["bentoml"], "ray": ["ray[serve]"],
    "mlserver": ["mlserver", "uvloop<0.22"],  # it can't do with a newer one
}  # fmt: skip
PATHS = {"mosec": "/inference", "mlserver": "/v2/models/m/infer"}

Figures = dict[int, dict[str, Any]]


def install(folder: Path) -> None:
    """Make an environment for each of the other servers."""
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    for peer, packages in PEERS.items():
        venv.create(folder / peer, with_pip=True)
        (target,) = (folder / peer).glob("lib/python*/site-packages")
        (target / "zz_project.pth").write_text(f"{site}\n")
        subprocess.run([folder / peer / "bin" / "pip", "install", "--quiet", *packages], check=True)


def loop_limit(model: str, seconds: float) -> dict[int, float]:
    """Return the inputs a second of a loop that does nothing but run the model, in batches."""
    apply, inputs = serving_models.load(model), serving_models.BODIES[model]
    rates = {}
    for size in sorted({min(count, 32) for count in CLIENTS}):
        stream = itertools.cycle(inputs)
        apply(list(itertools.islice(stream, size)))
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            apply(list(itertools.islice(stream, size)))
            done += size
        rates[size] = done / seconds
    return rates


def bare_call(model: str, seconds: float) -> float:
    """Return the median time in ms of the model called with one input, in a process of its own."""
    command = [sys.executable, str(HERE / "peers" / "serving_models.py"), model, str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)


def clients(url: str, bodies: list[str], seconds: float, *header: str, pid: int | None = None) -> Figures:
    """Measure a server with each number of clients; of a process, its processor time an answer in µs, too."""
    return {count: _with_cpu(pid, lambda c=count: _load(url, bodies, c, seconds, *header)) for count in CLIENTS}  # type: ignore[misc]


def _with_cpu(pid: int | None, load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if pid is None:
        return load()
    before = psutil.Process(pid).cpu_times()
    figures = load()
    after = psutil.Process(pid).cpu_times()
    figures["cpu"] = 1e6 * (after.user + after.system - before.user - before.system) / max(figures["answers"], 1)
    return figures


def _load(url: str, bodies: list[str], count: int, seconds: float, *header: str) -> dict[str, Any]:
    script = str(HERE / "peers" / "serving_load.py")
    command = [sys.executable, script, url, json.dumps(bodies), str(count), str(seconds), *header]
    figures: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    print(url, count, figures, file=sys.stderr, flush=True)  # for when the next server hangs
    return figures


def body(server: str, x: Any) -> str:
    """Return what a client of a server sends for one input."""
    if server != "mlserver":
        return json.dumps({"inputs": [x]})
    text = isinstance(x, str)
    tensor = {"shape": [1, 1] if text else [1, len(x)], "datatype": "BYTES" if text else "FP32"}
    return json.dumps({"inputs": [{"name": "x", "data": [x] if text else x, **tensor}]})


@contextmanager
def serving(server: str, python: str, model: str, **environment: str) -> Iterator[tuple[str, list[str], int]]:
    """Run a server of `benchmarks/peers` until it answers; give its URL, what to send, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"BENCH_MODEL": model, "BENCH_PORT": str(port), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [python, str(HERE / "peers" / f"serve_{server}.py")],
            env={**os.environ, **variables, **environment},
            cwd=folder,  # some leave files where they are started
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}{PATHS.get(server, '/predict')}"
        bodies = [body(server, x) for x in serving_models.BODIES[model]]
        try:
            _wait(url, bodies[0])
            yield url, bodies, process.pid
        finally:
            for kind in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, kind)
                time.sleep(1)
            process.wait()


def _wait(url: str, data: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            request = Request(url, data.encode(), {"Content-Type": "application/json"})
            with urlopen(request, timeout=30):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextmanager
def ours(model: str) -> Iterator[tuple[str, list[str], str, Any]]:
    """Run a notebook server with the model registered; give URL, bodies, the URI of its MongoDB and the server."""
    cloudpickle.register_pickle_by_value(serving_models)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,  # its keeper stops mongod a moment later
        Mongod.attach(Path(folder, "mongodb"), cache_gb=0.5) as mongod,
        running(Path(folder, "home"), mongod.uri) as live,
    ):
        made = {"mlp": serving_models.Mlp, "minilm": serving_models.Encoder}[model]()
        live.client["bench"].create_model(model, made)
        live.client["bench"].load_model(model, example=serving_models.BODIES[model][0])
        bodies = [body("ours", x) for x in serving_models.BODIES[model]]
        yield f"{live.url}{API}models/bench/{model}/predict", bodies, mongod.uri, live


def neighbours(live: Any, work: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Return median and 99th percentile, in ms, of another handler and of a cell's round trip while `work` runs."""
    from jupyter_client.blocking.client import BlockingKernelClient

    kernel = json.loads(live.transport.request("POST", "api/kernels", body=b"{}").body)
    file = live.log.parent / "runtime" / f"kernel-{kernel['id']}.json"
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels(hb=False)
    client.wait_for_ready(timeout=60)
    probes: dict[str, Callable[[], object]] = {
        "another handler": lambda: live.transport.request("GET", "api/status"),
        "a cell": lambda: client.execute_interactive("1", output_hook=lambda message: None, timeout=60),
    }
    times: dict[str, list[float]] = {name: [] for name in probes}
    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        for name, probe in probes.items():
            begin = time.perf_counter()
            probe()
            times[name].append(1000 * (time.perf_counter() - begin))
            time.sleep(0.01)
    client.stop_channels()
    live.transport.request("DELETE", f"api/kernels/{kernel['id']}")
    return {name: (statistics.median(ms), sorted(ms)[int(0.99 * (len(ms) - 1))]) for name, ms in times.items()}


def _send_long_bodies(live: Any) -> None:
    """Send ten thousand inputs at a time, of numbers that make them ten megabytes."""
    row = ", ".join(f"{0.1 * i:.60f}" for i in range(16))
    data = ('{"inputs": [' + ", ".join([f"[{row}]"] * 10_000) + "]}").encode()
    for _ in range(5):
        answer = live.send("POST", "models/bench/mlp/predict", data, headers={"Content-Type": "application/json"})
        assert answer.status == 200, answer.body


def measure(model: str, seconds: float, peers: Path | None, only: list[str]) -> None:
    """Measure a model, served by us and beside us, and print a table."""
    rows: dict[str, Figures] = {}
    beside: dict[str, tuple[Any, Any]] = {}
    limit = loop_limit(model, seconds / 2)
    with ours(model) as (url, bodies, uri, live):
        token = ("Authorization", f"token {TOKEN}")
        calls = [bare_call(model, seconds)]  # with all the rest up and idle, as it is between a client's requests
        rows["superduper_nb"] = clients(url, bodies, seconds, *token, pid=live.process.pid)
        calls.append(bare_call(model, seconds))
        if "neighbours" in only:
            idle = neighbours(live, lambda: time.sleep(2 * seconds))
            beside["32 clients"] = idle, neighbours(live, partial(_load, url, bodies, 32, 2 * seconds, *token))
        if "long" in only and model == "mlp":
            idle = neighbours(live, lambda: time.sleep(seconds))
            beside["bodies of 10 MB"] = idle, neighbours(live, lambda: _send_long_bodies(live))
        if "tornado" in only:
            with serving("tornado", sys.executable, model, BENCH_URI=uri) as (bare_url, bare_bodies, pid):
                rows["bare tornado, same batcher"] = clients(bare_url, bare_bodies, seconds, pid=pid)
                if "neighbours" in only:  # what the machine itself does to the notebook, with nothing of ours in it
                    load = partial(_load, bare_url, bare_bodies, 32, 2 * seconds)
                    beside["32 clients of the bare tornado server"] = idle, neighbours(live, load)
    for peer in [peer for peer in PEERS if peers and peer in only]:
        assert peers
        with serving(peer, str(peers / peer / "bin" / "python"), model) as (peer_url, peer_bodies, _):
            rows[peer] = clients(peer_url, peer_bodies, seconds)
    report(model, limit, rows, calls)
    for load, (idle, busy) in beside.items():
        report_neighbours(load, idle, busy)


def report(model: str, limit: dict[int, float], rows: dict[str, Figures], calls: list[float]) -> None:
    """Print a table in Markdown: answers a second (p50 / p99 ms), and the ratios."""
    print(f"\n| {model} | " + " | ".join(f"c = {count}" for count in CLIENTS) + " |\n|---" * 1 + "|---" * 4 + "|")
    for name, figures in rows.items():
        cells = [f"{one['rate']:,.0f} ({one['p50']:.1f} / {one['p99']:.1f})" for one in figures.values()]
        wrong = {code: n for one in figures.values() for code, n in one["wrong"].items() if n}
        print(f"| {name} | " + " | ".join(cells) + f" |{f' wrong: {wrong}' if wrong else ''}")
    print("| bare loop | " + " | ".join(f"{limit[min(count, 32)]:,.0f}" for count in CLIENTS) + " |")
    for name, figures in rows.items():
        if all("cpu" in one for one in figures.values()):
            cells = [f"{one['cpu']:.0f} µs" for one in figures.values()]
            print(f"| processor time an answer, {name} | " + " | ".join(cells) + " |")
    own = rows.pop("superduper_nb")
    for name, figures in rows.items():
        ratios = " | ".join(f"{own[count]['rate'] / max(figures[count]['rate'], 1e-9):.2f}" for count in CLIENTS)
        print(f"| ours / {name} | {ratios} |")
    print("| ours / bare loop | " + " | ".join(f"{own[c]['rate'] / limit[min(c, 32)]:.2f}" for c in CLIENTS) + " |")
    bare = f"{calls[0]:.2f} ms before and {calls[1]:.2f} ms after"
    print(f"\nOne client: median {own[1]['p50']:.2f} ms, the bare call {bare}.", flush=True)


def report_neighbours(load: str, idle: dict[str, Any], busy: dict[str, Any]) -> None:
    """Print what others notice of a load."""
    for name, (median, last) in busy.items():
        was = " / ".join(f"{ms:.1f}" for ms in idle[name])
        print(f"{name} with {load}: median {median:.1f} ms, p99 {last:.1f} ms (idle {was}).", flush=True)


if __name__ == "__main__":
    everything = ["neighbours", "long", "tornado", *PEERS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", metavar="mlp|minilm", nargs="*")
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--only", choices=everything, nargs="*", default=everything)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--install", type=Path)
    arguments = parser.parse_args()
    if arguments.install:
        install(arguments.install)
    for model in arguments.models:
        measure(model, arguments.seconds, arguments.peers or arguments.install, arguments.only)
