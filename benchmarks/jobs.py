"""How fast jobs are, each figure beside its limit in the same run: ``python benchmarks/jobs.py [--documents 20000]``.

Absolute figures drift with the machine and its neighbours; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bson.binary import Binary
from pymongo import MongoClient, UpdateOne

from superduper_nb.client.client import Client
from superduper_nb.cluster.mongod import Mongod, connect_options
from superduper_nb.config import Config
from superduper_nb.services import LocalServices


class Notifier:
    """The cluster, in a process of its own as a notebook server is; told of new jobs through a pipe."""

    def __init__(self, uri: str) -> None:
        environment = {**os.environ, "SUPERDUPER_MONGODB__URI": uri}
        command = [sys.executable, __file__, "--serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process: Any = subprocess.Popen(command, env=environment, **pipes)
        self._process.stdout.readline()

    def notify(self, database: str, jobs: Any) -> None:
        """Say that jobs were written."""
        self._process.stdin.write(f"{database}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Stop it."""
        self._process.communicate()


def serve() -> None:
    """Hold the cluster until standard input ends."""
    services = LocalServices(Config.load())
    print("ready", flush=True)
    for line in sys.stdin:
        services.notify(line.strip(), [])
    services.close()


@contextmanager
def cluster() -> Iterator[tuple[Client[Any], MongoClient[dict[str, Any]]]]:
    """Start MongoDB and everything that a notebook server holds; give a client of it, and a plain one."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JUPYTER_DATA_DIR"] = folder
        with Mongod.attach(Path(folder) / "mongodb", cache_gb=1) as mongod:
            options = connect_options()
            services: Any = Notifier(mongod.uri)
            with Client(mongod.uri, **options) as ours, MongoClient(mongod.uri, **options) as plain:
                ours._use(services, "benchmark", Config.load(mongodb={"uri": mongod.uri}))
                yield ours, plain


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def cheap_model(ours: Any, plain: Any, documents: int) -> None:
    """Compare ``Linear(64, 16)`` over all documents with reading and writing the same bytes by pymongo."""
    import torch

    rng = np.random.default_rng(0)
    vectors = rng.random((documents, 64), np.float32)
    rows = [{"_id": i, "v": Binary(b"'\x00" + vector.tobytes(), 9)} for i, vector in enumerate(vectors)]
    for collection in (plain["bench"]["ours"], plain["bench"]["plain"]):
        collection.insert_many(rows)
    output = Binary(b"'\x00" + vectors[0, :16].tobytes(), 9)

    def read_and_write() -> None:
        collection, batch = plain["bench"]["plain"], []
        for document in collection.find({}, {"v": 1}, batch_size=2000):
            change = {"$set": {"_outputs.v.linear": output, "_sddb.outputs.linear/v": {"v": 1, "h": b"0" * 12}}}
            batch.append(UpdateOne({"_id": document["_id"]}, change))
            if len(batch) == 1000:
                collection.bulk_write(batch, ordered=False)
                batch = []
        if batch:
            collection.bulk_write(batch, ordered=False)

    docs = ours["bench"]["ours"]
    docs.create_model("linear", torch.nn.Linear(64, 16), type="vector", batch_size=256)
    warm = ours["bench"]["warm"]
    warm.insert_many(rows[:2000])
    warm.create_watcher("linear", "v").wait()
    bare = timed(read_and_write)
    jobs = timed(lambda: docs.create_watcher("linear", "v").wait())
    rates = f"{documents / jobs:,.0f}/s; pymongo read + write {documents / bare:,.0f}/s"
    print(f"Linear(64, 16), {documents} documents: {rates}; ratio {bare / jobs:.2f} (limit 0.6)")


def inserting(ours: Any, plain: Any, documents: int) -> None:
    """Compare `insert_many` with a watcher to pymongo's, in turns."""
    docs, raw = ours["bench"]["inserted"], plain["bench"]["bare"]
    docs.create_model("double", _double)
    docs.create_watcher("double", "x")
    with_jobs, bare, total = [], [], []
    for turn in range(3):
        rows = [{"_id": turn * documents + i, "x": i} for i in range(documents)]
        bare.append(timed(lambda rows=rows: raw.insert_many(rows)))  # type: ignore[misc]
        begun = time.perf_counter()
        result = docs.insert_many(rows)
        with_jobs.append(time.perf_counter() - begun)
        result.jobs.wait()
        total.append(time.perf_counter() - begun)
    ratio, rate = statistics.median(bare) / statistics.median(with_jobs), documents / statistics.median(total)
    print(f"insert_many of {documents} with a watcher: {ratio:.2f} of pymongo's rate (limit 0.9)")
    print(f"  its outputs: {rate:,.0f} documents/s, the insert included")


def one_document(ours: Any, plain: Any, times: int = 40) -> None:
    """Time one inserted document until its output is read."""
    docs, raw = ours["bench"]["single"], plain["bench"]["single"]
    docs.create_model("double", _double)
    docs.create_watcher("double", "x")

    def insert(i: int) -> None:
        docs.insert_one({"_id": i, "x": i})
        while raw.find_one({"_id": i, "_outputs.x.double": {"$exists": True}}) is None:
            time.sleep(0.001)

    for i in range(5):
        insert(-i - 1)
    took = [1000 * timed(lambda i=i: insert(i)) for i in range(times)]  # type: ignore[misc]
    alone = [1000 * timed(lambda: plain["bench"]["alone"].insert_one({})) for _ in range(times)]
    late = sorted(took)[int(0.9 * times)]
    middle = statistics.median(took)
    print(f"one document inserted → output readable: median {middle:.0f} ms (limit 60), p90 {late:.0f} ms")
    print(f"  beside it, pymongo's insert_one alone: {statistics.median(alone):.1f} ms")


def _double(x: Any) -> Any:
    return x * 2


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--serve", action="store_true", help="be the notebook server's part")
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    runs = {"cheap": cheap_model, "insert": inserting, "one": one_document}
    with cluster() as (ours, plain):
        for name, run in runs.items():
            if arguments.only in ("", name):
                run(ours, plain, *([] if name == "one" else [arguments.documents]))


if __name__ == "__main__":
    main()
