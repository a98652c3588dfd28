"""How quick finding is beyond one query at a time: batches, concurrent searches, the HTTP service.

Run it with ``python benchmarks/finding.py [batch] [single] [refined] [http]``; faiss is a peer where it is installed.
Each figure stands beside its yardstick, measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bson
import numpy as np
from bson.binary import Binary
from load import Load, load
from pymongo import MongoClient
from vectors import add_options, given

from superduper_nb.cluster.mongod import Mongod
from superduper_nb.components import ComponentStore
from superduper_nb.search import SearchEngine, SearchRequest
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.measures import Measure

SECONDS = 6.0
QUERIES = 256
CONNECTIONS = 16
ROUNDS = 5
TOKEN = "benchmark"


def median_ms(step: Callable[[int], Any], times: int = 41) -> float:
    """Return the median time of a step, after one to warm up."""
    step(0)
    taken = []
    for i in range(times):
        begin = time.perf_counter()
        step(i)
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken)) * 1000


def say(name: str, figure: float, unit: str, ratio: str = "") -> None:
    """Print a line."""
    print(f"{name:<52} {figure:10.2f} {unit:<6} {ratio}", flush=True)


def filled(vectors: np.ndarray) -> VectorIndex:
    """Return an index with its codes made."""
    index = VectorIndex(Measure("cosine"))
    index.put(range(len(vectors)), vectors)
    index.settle()
    return index


# --- batches -------------------------------------------------------------------------------------------------------


def batch(vectors: np.ndarray, queries: np.ndarray) -> None:
    """Compare batches with faiss, a query's share of the time."""
    index = filled(vectors)
    flat = _faiss(vectors)
    for count in (16, 256):
        some = queries[:count]
        many = list(some)
        peer = median_ms(lambda _: flat(some), 5) / count if flat else float("nan")  # noqa: B023
        exact = median_ms(lambda _: index.search_many(many, 10, exact=True), 5) / count  # noqa: B023
        quick = median_ms(lambda _: index.search_many(many, 10), 5) / count  # noqa: B023
        say(f"batch of {count}: faiss flat", peer, "ms", "yardstick")
        say(f"batch of {count}: exact", exact, "ms", f"{exact / peer:.2f} of faiss")
        say(f"batch of {count}: {index.kind}", quick, "ms", f"{quick / peer:.2f} of faiss")


def _faiss(vectors: np.ndarray) -> Callable[[np.ndarray], Any] | None:
    try:
        import faiss
    except ImportError:
        return None
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return lambda queries: flat.search(queries, 10)


# --- concurrent single queries ---------------------------------------------------------------------------------------


def single(vectors: np.ndarray, queries: np.ndarray) -> None:
    """Search from several threads: throughput and latency of single queries, and what a batch of them would take."""
    index = filled(vectors)
    for exact in (False, True):
        kind = "exact" if exact else index.kind
        many = median_ms(lambda _: index.search_many(list(queries[:16]), 10, exact=exact), 9)  # noqa: B023
        say(f"{kind}: 16 queries as one batch", many, "ms")
        for threads in (1, 2, 4, 16):
            rate, latency = _threads(lambda i: index.search(queries[i % 256], 10, exact=exact), threads)  # noqa: B023
            say(f"{kind}: {threads} threads of single queries", rate, "/s", f"median {latency:.2f} ms")


def _threads(step: Callable[[int], Any], threads: int, seconds: float = SECONDS / 3) -> tuple[float, float]:
    """Return steps a second, and the median time of one."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    def run(offset: int) -> None:
        i = offset
        while (begin := time.perf_counter()) < end:
            step(i)
            taken.append(time.perf_counter() - begin)
            i += threads

    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(taken) / seconds, float(np.median(taken)) * 1000


# --- the service -----------------------------------------------------------------------------------------------------


def passing(x: Any) -> Any:
    """Return the input."""
    return x


def output(vector: np.ndarray) -> dict[str, Any]:
    """Return an output as documents hold it."""
    return {"x": {"m": Binary(b"\x27\x00" + vector.tobytes(), 9)}}


def fill(uri: str, vectors: np.ndarray) -> None:
    """Write documents whose outputs have been computed, and register their index."""
    database = MongoClient[dict[str, Any]](uri)["bench"]
    store = ComponentStore(database)
    model, _ = store.put(
        "model",
        "m",
        {"type": "vector", "batch_size": None, "device": "auto"},
        obj={"object": passing, "preprocess": None, "postprocess": None},
    )
    definition = {"models": ["m"], "keys": ["x"], "measure": "cosine", "filter": {}}
    store.put("semantic_index", "near", definition, collection="docs")
    token = {"outputs": {"m/x": {"v": model.version, "h": b"h"}}}
    words = [f"word{i}" for i in range(1000)]
    random = np.random.default_rng(2)
    for start in range(0, len(vectors), 5000):
        part = vectors[start : start + 5000]
        rows = [
            {
                "_id": start + i,
                "text": " ".join(words[i] for i in random.integers(0, 1000, 12)),
                "author": int(random.integers(5000)),
                "p": float(random.random()),
                "_outputs": output(row),
                "_sddb": token,
            }
            for i, row in enumerate(part)
        ]
        database["docs"].insert_many(rows, ordered=False)
    database["docs"].create_index([("text", "text")])
    database["docs"].create_index("p")


@contextlib.contextmanager
def engine_of(uri: str, size: int) -> Iterator[SearchEngine]:
    """Yield an engine that has loaded the index, codes and all."""
    engine = SearchEngine(MongoClient(uri), lambda *_: [], lambda *_: 0)
    try:
        settled(lambda: engine.describe("bench", "docs", "near"), size)
        yield engine
    finally:
        engine.close()


def settled(describe: Callable[[], dict[str, Any]], size: int, pause: float = 0.5) -> None:
    """Wait until an index holds so many vectors, and their codes are made."""
    state: dict[str, Any] = {}
    while state.get("size") != size or (state.get("kind") == "exact" and size > 20_000):
        time.sleep(pause)
        state = describe()


def refined(uri: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Measure each option beside the plain search."""
    options: list[dict[str, Any]] = [
        {},
        {"max_score": 0.9},
        {"diversity": 0.5},
        {"group_by": "author"},
        {"text": "word1 word2"},
        {"filter": {"p": {"$lt": 0.1}}},
        {"filter": {"p": {"$lt": 0.1}}, "group_by": "author"},
    ]
    with engine_of(uri, len(vectors)) as engine:
        plain = 0.0
        for option in options:
            took = median_ms(lambda i: engine.search(_request(queries[i % 40], **option)), 15)  # noqa: B023
            plain = plain or took
            say(f"search({', '.join(map(str, option)) or 'nothing more'})", took, "ms", f"{took / plain:.1f} x plain")


def _request(vector: Any, **options: Any) -> SearchRequest:
    return SearchRequest(database="bench", collection="docs", vector=vector, **options)


def http(uri: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Compare 16 connections to the server with 16 threads of the engine; look how others fare meanwhile.

    The engine and the server are measured by turns: the machine is not the same from one minute to the next.
    """
    context = multiprocessing.get_context("spawn")
    with (
        engine_of(uri, len(vectors)) as engine,
        tempfile.TemporaryDirectory() as home,
        server(Path(home), uri) as url,
        context.Pool(1) as loader,
        context.Pool(1) as prober,
    ):
        call = Caller(url)
        settled(lambda: call.json("GET", "superduper/api/v1/indexes/bench/docs/near"), len(vectors))
        requests = [call.request("POST", "superduper/api/v1/search", _body(query)) for query in queries]

        def ask(connections: int, seconds: float) -> Load:
            return loader.apply(load, ((call.host, call.port), requests, connections, seconds))

        def search(i: int) -> Any:
            return engine.search(_request(queries[i % len(queries)]))

        _check([search(i).ids for i in range(len(queries))], ask(CONNECTIONS, 1.0))
        gc.freeze()  # as the server does
        _one(search, ask)
        _many(search, ask)
        idle = prober.apply(probed, (url, 2.0))
        others = prober.apply_async(probed, (url, SECONDS))
        ask(CONNECTIONS, SECONDS)
        busy = others.get()
    say("another handler, idle: p99", float(np.percentile(idle, 99)), "ms")
    say("another handler, meanwhile: p99", float(np.percentile(busy, 99)), "ms", f"median {np.median(busy):.2f}")


def _check(expected: list[list[Any]], got: Load) -> None:
    """See to it that the server answers what the engine does."""
    assert got.answers
    assert all(bson.decode(body)["ids"] == expected[i] for i, body in got.answers.items())


def _one(search: Callable[[int], Any], ask: Callable[[int, float], Load]) -> None:
    """Compare one connection with one thread."""
    pairs = [(median_ms(search, 200), float(np.median(ask(1, 1.0).taken)) * 1000) for _ in range(ROUNDS)]
    say("engine, one thread", float(np.median([alone for alone, _ in pairs])), "ms", "yardstick")
    beside = float(np.median([one - alone for alone, one in pairs]))
    say("POST search, one connection", float(np.median([one for _, one in pairs])), "ms", f"{beside:+.2f} ms beside it")


def _many(search: Callable[[int], Any], ask: Callable[[int, float], Load]) -> None:
    """Compare many connections with as many threads."""
    rounds = [(_threads(search, CONNECTIONS), ask(CONNECTIONS, SECONDS / 3)) for _ in range(ROUNDS)]
    for (rate, latency), got in rounds:
        say(f"engine, {CONNECTIONS} threads", rate, "/s", f"median {latency:.2f} ms, yardstick")
        rest = f"p99 {np.percentile(got.taken, 99) * 1000:.1f} ms"
        say(f"POST search, {CONNECTIONS} connections", got.rate, "/s", f"{got.rate / rate:.2f} of the engine, {rest}")
    ratio = float(np.median([got.rate / rate for (rate, _), got in rounds]))
    say("  median", ratio, "", f"of the engine; the client took {_client(rounds[-1][1]):.0f} us a request")


def _client(got: Load) -> float:
    return got.cpu / len(got.taken) * 1e6


def _body(query: np.ndarray) -> bytes:
    vector = Binary(b"\x27\x00" + query.tobytes(), 9)
    return bson.encode({"database": "bench", "collection": "docs", "vector": vector})


class Caller:
    """Makes requests as bytes, and sends single ones."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self._base = parts.hostname or "", parts.port or 80, parts.path

    def request(self, verb: str, path: str, body: bytes = b"", kind: str = "application/bson") -> bytes:
        """Return a request as it is sent."""
        head = f"{verb} {self._base}{path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: token {TOKEN}\r\n"
        head += f"Content-Type: {kind}\r\nAccept: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
        """Send a request and return the body of the answer."""
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert " 200 " in head.splitlines()[0], head
        return await reader.readexactly(int(head.partition("content-length: ")[2].split("\r\n")[0]))

    def json(self, verb: str, path: str) -> dict[str, Any]:
        """Ask once."""

        async def once() -> bytes:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            answer = await self.send(reader, writer, self.request(verb, path, kind="application/json"))
            writer.close()
            return answer

        return dict(json.loads(asyncio.run(once())))


def probed(url: str, seconds: float) -> list[float]:
    """Ask Jupyter's own ``api/status`` a hundred times a second; return how long each took, in ms."""
    call = Caller(url)

    async def probe() -> list[float]:
        reader, writer = await asyncio.open_connection(call.host, call.port)
        request = call.request("GET", "api/status", kind="application/json")
        taken, end = [], time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            await call.send(reader, writer, request)
            taken.append((time.perf_counter() - begin) * 1000)
            await asyncio.sleep(0.01)
        writer.close()
        return taken

    return asyncio.run(probe())


@contextlib.contextmanager
def server(home: Path, uri: str) -> Iterator[str]:
    """Run a notebook server of its own, and yield its URL."""
    environment = {**os.environ, "SUPERDUPER_MONGODB__URI": uri}
    environment |= {f"JUPYTER_{kind.upper()}_DIR": str(home / kind) for kind in ("runtime", "config")}
    (home / "config").mkdir()
    enabled = {"ServerApp": {"jpserver_extensions": {"superduper_nb": True}}}
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(enabled))
    options = ["--port=0", "--no-browser", "--allow-root", f"--IdentityProvider.token={TOKEN}", "--ip=127.0.0.1"]
    command = [sys.executable, "-m", "jupyter", "server", *options, f"--notebook-dir={home}"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=home)
        try:
            said: Path | None = None
            while said is None or not said.exists():
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.2)
                said = home / "runtime" / f"jpserver-{process.pid}.json"
            time.sleep(0.5)
            url = str(json.loads(said.read_text())["url"])
            while Caller(url).json("GET", "superduper/api/v1/status")["state"] != "ready":
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["batch", "single", "refined", "http", "all"], default="all")
    add_options(parser)
    options = parser.parse_args()
    parts = ["batch", "single", "refined", "http"] if "all" in options.parts else options.parts
    vectors, queries = given(options, QUERIES)
    for part in [batch, single]:
        if part.__name__ in parts:
            part(vectors, queries)
    if {"refined", "http"} & set(parts):
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            Mongod.attach(Path(folder), cache_gb=1.0) as mongod,
        ):
            fill(mongod.uri, vectors)
            for served in [refined, http]:
                if served.__name__ in parts:
                    served(mongod.uri, vectors, queries)


if __name__ == "__main__":
    main()
