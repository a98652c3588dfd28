"""How searches do beside MongoDB: under filters, with their documents, while documents come in, loaded and restarted.

Run it with ``python benchmarks/keeping.py [filters] [find] [inserts] [load]``; it starts a MongoDB of its own. Each
figure stands beside its yardstick, measured in the same run. ``--peers FOLDER`` has ``find`` measure other libraries
beside pymongo, too, in the environments that ``search.py --install FOLDER`` made; ``--only NAME …`` some of them. Of
graphs, the least effort counts that finds ``--recall``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pymongo
from finding import engine_of, fill, median_ms, output, say, settled
from pymongo import CursorType, MongoClient
from search import HERE, ONE_THREAD, PACKAGES, nearest
from vectors import add_options, given

import superduper_nb as sd
from superduper_nb.cluster.mongod import Mongod
from superduper_nb.search import SearchEngine, SearchReply, SearchRequest

N = 10
QUERIES = 100
SHARES = (0.5, 0.1, 0.01, 0.001)
RATE, SECONDS = 10_000, 8.0


def asked(vector: Any, **options: Any) -> SearchRequest:
    """Return a search of the benchmark's index."""
    return SearchRequest(database="bench", collection="docs", vector=vector, n=N, **options)


# --- filters


def filters(uri: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Search under filters that so many documents pass: how long, how complete, beside no filter and the exact way."""
    with engine_of(uri, len(vectors)) as engine:
        plain = median_ms(lambda i: engine.search(asked(queries[i])))
        say("no filter", plain, "ms", "yardstick")
        for share in SHARES:
            only = {"p": {"$lt": share}}
            truth = [engine.search(asked(query, filter=only, exact=True)) for query in queries]
            found = [engine.search(asked(query, filter=only)) for query in queries]
            subset = median_ms(lambda i: engine.search(asked(queries[i], filter=only, exact=True)), 15)  # noqa: B023
            took = median_ms(lambda i: engine.search(asked(queries[i], filter=only)))  # noqa: B023
            limit = max(plain, subset)
            said = f"{took / limit:.2f} of the larger of both; exact subset {subset:.2f} ms; {recall(found, truth)}"
            say(f"{share:.1%} match: {found[-1].strategy}", took, "ms", said)


def recall(found: list[SearchReply], truth: list[SearchReply]) -> str:
    """Say which share of the nearest was found, and how many answers were short."""
    share = np.mean([len({*some.ids} & {*true.ids}) / len(true.ids) for some, true in zip(found, truth, strict=True)])
    short = sum(len(some.ids) < len(true.ids) for some, true in zip(found, truth, strict=True))
    return f"recall {share:.4f}, {short} short"


# --- find


def find(uri: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Find documents, with the model (one that costs nothing), MongoDB and all, in one process."""
    with sd.connect(remote=False, mongodb={"uri": uri}) as client:
        docs = client["bench"]["docs"]
        settled(lambda: client.services.describe_index("bench", "docs", "near"), len(vectors))
        plain = median_ms(lambda i: list(docs.find({"_id": {"$in": list(range(i, i + N))}})))
        say(f"pymongo: find {N} documents by _id", plain, "ms", "yardstick")
        for share in (1.0, *SHARES):
            only = {"p": {"$lt": share}} if share < 1 else {}
            took = median_ms(lambda i: list(docs.find(only, like={"x": queries[i]}, n=N)))  # noqa: B023
            say(f"find(like=), {share:.1%} match", took, "ms", f"{took / plain:.1f} x find by _id")
            if only:  # others that as many pass: nothing is known of any
                others = [{"p": {"$lt": share + i * 1e-9}} for i in range(len(queries))]
                took = median_ms(lambda i: list(docs.find(others[i], like={"x": queries[i]}, n=N)))  # noqa: B023
                say("  each time another filter", took, "ms")


def peers(uri: str, vectors: np.ndarray, queries: np.ndarray, options: argparse.Namespace) -> None:
    """Find documents by other libraries and pymongo."""
    shares = (1.0, *SHARES)
    found = MongoClient[dict[str, Any]](uri)["bench"]["docs"].find({}, {"p": 1}).sort("_id")
    p = np.array([document["p"] for document in found])
    truths = {str(share): np.flatnonzero(p < share) for share in shares}
    for share, rows in truths.items():
        truths[share] = rows[nearest(vectors[rows], queries, N)]
    with tempfile.TemporaryDirectory(prefix="bench-") as made:
        np.save(Path(made) / "vectors.npy", vectors)
        np.save(Path(made) / "queries.npy", queries)
        (Path(made) / "truths.json").write_text(json.dumps({share: t.tolist() for share, t in truths.items()}))
        for name, package in PACKAGES.items():
            python = options.peers / package / "bin" / "python"
            if python.exists() and (not options.only or name in options.only):
                for share, figures in peer(name, [python, name, made, uri, options.recall], made).items():
                    said = f"recall {figures['recall']:.3f}"
                    say(f"{name} + pymongo, {float(share):.1%} match", figures["ms"], "ms", said)


def peer(name: str, command: list[Any], folder: str) -> Mapping[str, Any]:
    """Measure a library in a process of its own; return what was found for each share."""
    script, packages = HERE / "peers" / "search_documents.py", Path(pymongo.__file__).parents[1]
    environment = {**os.environ, **ONE_THREAD, "BENCH_FOLDER": folder}
    words = [command[0], script, *map(str, command[1:]), packages]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return {}
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- documents that come in


def inserts(uri: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Insert while searching: how soon a document is found, and what becomes of the searches."""
    client = MongoClient[dict[str, Any]](uri)
    docs = client["bench"]["docs"]
    made, number = dict(docs.find_one({"_id": 0}) or {}), itertools.count()
    with engine_of(uri, len(vectors)) as engine:

        def step(i: int) -> None:
            docs.insert_one({**made, "_id": f"new{next(number)}"})
            now = client["bench"].command("ping")["operationTime"]
            engine.search(asked(queries[i], after=now))

        insert = median_ms(lambda _: docs.insert_one({**made, "_id": f"new{next(number)}"}), 40)
        took = median_ms(step, 40)
        say("insert_one", insert, "ms", "yardstick")
        say("insert_one, until a search has seen it", took, "ms", f"{took - insert:+.1f} ms")
        idle, _ = searches(engine, queries, SECONDS / 2)
        elsewhere = client["bench"]["elsewhere"]
        elsewhere.create_index([("text", "text")])
        elsewhere.create_index("p")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(abs, (1,))  # it is up
            written = pool.apply_async(keep_inserting, (uri, vectors.shape[1], elsewhere.name))
            left, _ = searches(engine, queries, SECONDS)
            written.get()
            elsewhere.drop()
            written = pool.apply_async(keep_inserting, (uri, vectors.shape[1], docs.name))
            busy, slowest = searches(engine, queries, SECONDS)
            count, seconds = written.get()
            begin, size = time.perf_counter(), docs.count_documents({})
            settled(lambda: engine.describe("bench", "docs", "near"), size, pause=0.02)
            behind = time.perf_counter() - begin
        say("searches, idle, one thread", idle, "/s", "yardstick")
        say("  beside as many inserts that no index follows", left, "/s", f"{left / idle:.2f} of idle: the limit")
        said = f"{busy / idle:.2f} of idle, {busy / left:.2f} of the limit"
        say(f"  beside {count / seconds:,.0f} inserts a second that it follows", busy, "/s", said)
        say("  the slowest of 100", slowest, "ms")
        say("  the last insert is in the index after", behind * 1000, "ms")
    docs.delete_many({"_id": {"$not": {"$lt": len(vectors)}}})


def searches(engine: SearchEngine, queries: np.ndarray, seconds: float) -> tuple[float, float]:
    """Search for so long; return searches a second, and how long the slowest of a hundred took, in ms."""
    taken, end = [], time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        engine.search(asked(queries[len(taken) % len(queries)]))
        taken.append(time.perf_counter() - begin)
    return len(taken) / seconds, float(np.percentile(taken, 99)) * 1000


def keep_inserting(uri: str, dimension: int, collection: str) -> tuple[int, float]:
    """Insert at a rate, for as long as the searches go on; return how many, and in how long."""
    database = MongoClient[dict[str, Any]](uri)["bench"]
    docs, made = database[collection], dict(database["docs"].find_one({"_id": 0}) or {})
    rows = np.random.default_rng(7).standard_normal((1000, dimension)).astype(np.float32)
    outputs = [output(row) for row in rows]
    begin, count = time.perf_counter(), 0
    while (now := time.perf_counter() - begin) < SECONDS:
        if count > now * RATE:
            time.sleep(0.001)
            continue
        some = [{**made, "_id": f"more{count + i}", "_outputs": each} for i, each in enumerate(outputs)]
        docs.insert_many(some, ordered=False)
        count += len(some)
    return count, time.perf_counter() - begin


# --- loading


def load(uri: str, vectors: np.ndarray, _: np.ndarray) -> None:
    """Load an index from MongoDB and from its snapshot, until the first answer."""
    docs = MongoClient[dict[str, Any]](uri)["bench"]["docs"]

    def read(kind: int) -> None:
        for _ in docs.find_raw_batches({}, {"_outputs.x.m": 1}, batch_size=2000, cursor_type=kind):
            pass

    def first(engine: SearchEngine) -> None:
        assert engine.search(asked(vectors[3])).ids[0] == 3

    yardstick = min(timed(lambda: read(CursorType.NON_TAILABLE)) for _ in range(2))
    quickest = min(timed(lambda: read(CursorType.EXHAUST)) for _ in range(2))
    say("pymongo: read the bytes of all vectors", yardstick, "s", "yardstick")
    say("  by an exhaust cursor", quickest, "s", "yardstick")
    with tempfile.TemporaryDirectory() as folder:
        with engine(uri, Path(folder)) as fresh:
            took = timed(lambda: first(fresh))
            said = f"{took / yardstick:.2f} of pymongo, {took / quickest:.2f} of an exhaust cursor"
            say("loaded from MongoDB, first answer", took, "s", said)
            settled(lambda: fresh.describe("bench", "docs", "near"), len(vectors))
        with engine(uri, Path(folder)) as again:
            took = timed(lambda: first(again))
            state = again.describe("bench", "docs", "near")["snapshot"]
            say("restarted from its snapshot, first answer", took, "s", f"snapshot {state}")


def timed(step: Callable[[], Any]) -> float:
    """Return how long a step takes, in seconds."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


@contextmanager
def engine(uri: str, folder: Path) -> Iterator[SearchEngine]:
    """Yield an engine with snapshots that has loaded nothing yet."""
    made = SearchEngine(MongoClient(uri), lambda *_: [], lambda *_: 0, snapshots=folder)
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {part.__name__: part for part in (filters, find, inserts, load)}
    parser.add_argument("parts", nargs="*", choices=[*parts, "all"], default="all")
    add_options(parser)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--recall", type=float, default=0.99)
    options = parser.parse_args()
    vectors, queries = given(options, QUERIES)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Mongod.attach(Path(folder), cache_gb=2.0) as mongod,
    ):
        fill(mongod.uri, vectors)
        for name in parts if "all" in options.parts else options.parts:
            parts[name](mongod.uri, vectors, queries)
            if name == "find" and options.peers:
                peers(mongod.uri, vectors, queries, options)


if __name__ == "__main__":
    main()
