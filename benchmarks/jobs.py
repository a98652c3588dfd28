"""How fast jobs are, each figure beside its limit in the same run: ``python benchmarks/jobs.py [WHICH ...]``.

Everything is as a user has it: a notebook server with its workers in processes of their own, and this process as its
kernel. ``--scale 0.1`` makes all collections smaller. Absolute figures drift with the machine and its neighbours; the
ratios are what counts.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
from bson.binary import Binary

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "peers"), str(HERE.parent)]

import bare  # noqa: E402
import serving_models  # noqa: E402
from texts import docstrings  # noqa: E402

from superduper_nb.cluster.mongod import Mongod  # noqa: E402
from tests.serving.live import Live, running  # noqa: E402

WORKERS = 2
cloudpickle.register_pickle_by_value(serving_models)  # workers don't have it


@dataclass
class Stage:
    """A notebook server, a client of it, and a client of pymongo's."""

    live: Live
    plain: Any
    scale: float

    @property
    def ours(self) -> Any:
        """The database of the client."""
        return self.live.client["bench"]

    def count(self, documents: int) -> int:
        """Return a number of documents at the scale of this run."""
        return max(100, round(documents * self.scale))


@contextmanager
def stage(scale: float) -> Iterator[Stage]:
    """Start everything."""
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # mongod may still be writing its last
    with temporary as folder, Mongod.attach(Path(folder) / "mongodb", cache_gb=1) as mongod:
        (home := Path(folder) / "home").mkdir()
        with running(home, mongod.uri, workers=WORKERS) as live, bare.plain_client(mongod.uri) as plain:
            live.client["bench"].create_model("double", _double)
            yield Stage(live, plain["bench"], scale)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _double(x: Any) -> Any:
    return x * 2


# --- rates -----------------------------------------------------------------------------------------------------------


def minilm(stage: Stage) -> None:
    """Compare MiniLM over real texts, from MongoDB to MongoDB, with the bare encode loop's rate.

    The loop has a fifth of the texts before the job and another fifth after it: with all of them it takes as long as
    the job, in which time the machine changes.
    """
    texts = docstrings(stage.count(20_000))
    random.Random(0).shuffle(texts)
    stage.plain["texts"].insert_many([{"text": text} for text in texts])
    docs = stage.ours["texts"]
    docs.create_model("minilm", serving_models.Encoder(), type="vector")
    warm = stage.ours["warm_texts"]
    warm.insert_many([{"text": text} for text in texts[:400]])
    warm.create_watcher("minilm", "text").wait()
    loop, sample = bare.EncodeLoop(WORKERS), len(texts) // 5
    before = loop.seconds(texts[:sample])
    jobs = timed(lambda: docs.create_watcher("minilm", "text").wait())
    after = loop.seconds(texts[-sample:])
    loop.close()
    rate, limit = len(texts) / jobs, 2 * sample / (before + after)
    parts = f"{sample / before:.0f} before, {sample / after:.0f} after"
    print(f"MiniLM, {len(texts)} texts: {rate:.0f}/s; bare loop over {2 * sample} of them {limit:.0f}/s ({parts})")
    print(f"  ratio {rate / limit:.2f} (limit 0.9)")


def linear(stage: Stage) -> None:
    """Compare ``Linear(64, 16)`` over all documents with reading and writing the same bytes by pymongo."""
    import torch

    vectors = np.random.default_rng(0).random((stage.count(200_000), 64), np.float32)
    rows = [{"_id": i, "v": Binary(b"'\x00" + vector.tobytes(), 9)} for i, vector in enumerate(vectors)]
    for name in ("vectors", "vectors_plain", "warm_vectors"):
        stage.plain[name].insert_many(rows[:2000] if name == "warm_vectors" else rows)
    docs = stage.ours["vectors"]
    docs.create_model("linear", torch.nn.Linear(64, 16), type="vector", batch_size=256)
    stage.ours["warm_vectors"].create_watcher("linear", "v").wait()
    output = Binary(b"'\x00" + vectors[0, :16].tobytes(), 9)
    limit = timed(lambda: bare.read_and_write(stage.plain["vectors_plain"], output))
    jobs = timed(lambda: docs.create_watcher("linear", "v").wait())
    rates = f"{len(rows) / jobs:,.0f}/s; pymongo read + write {len(rows) / limit:,.0f}/s"
    print(f"Linear(64, 16), {len(rows)} documents: {rates}; ratio {limit / jobs:.2f} (limit 0.6)")


def insert(stage: Stage) -> None:
    """Compare `insert_many` with a watcher to pymongo's, in turns: of texts, and of tiny documents."""
    count = stage.count(50_000)
    texts = list(itertools.islice(itertools.cycle(docstrings(min(count, 20_000))), count))
    stage.ours["inserted"].create_watcher("double", "x")
    for name, more in (("documents with a text", [{"text": text} for text in texts]), ("tiny documents", [{}] * count)):
        ours, limit, total = [], [], []
        for _ in range(5):
            rows = [{"x": i, **fields} for i, fields in enumerate(more)]
            limit.append(timed(lambda rows=rows: stage.plain["bare"].insert_many([dict(row) for row in rows])))  # type: ignore[misc]
            limit[-1] -= timed(lambda rows=rows: [dict(row) for row in rows])  # type: ignore[misc]
            begun = time.perf_counter()
            result = stage.ours["inserted"].insert_many(rows)
            ours.append(time.perf_counter() - begun)
            result.jobs.wait()
            total.append(time.perf_counter() - begun)
        ratio, rate = statistics.median(limit) / statistics.median(ours), count / statistics.median(total)
        print(f"insert_many of {count} {name} with a watcher: {ratio:.2f} of pymongo's rate (limit 0.9)")
        print(f"  {count / statistics.median(limit):,.0f}/s by pymongo; with outputs, {rate:,.0f}/s")


# --- one document ----------------------------------------------------------------------------------------------------


def one(stage: Stage, times: int = 40) -> None:
    """Time one inserted document until its output is read, and until a search finds it."""
    docs, plain = stage.ours["single"], stage.plain["single"]
    docs.create_model("point", _point, type="vector")
    docs.create_watcher("point", "x").wait()
    docs.create_semantic_index("near", models=["point"], keys=["x"], measure="l2").wait()

    def readable(i: int) -> None:
        docs.insert_one({"_id": i, "x": i})
        while plain.find_one({"_id": i, "_outputs.x.point": {"$exists": True}}) is None:
            time.sleep(0.001)

    def found(i: int) -> None:
        docs.insert_one({"_id": i, "x": i})
        while next((hit["_id"] for hit in docs.find(like={"x": i}, n=1)), None) != i:
            time.sleep(0.001)

    for what, limit, wait in (("its output readable", 60, readable), ("found by search", 120, found)):
        took = sorted(
            1000 * timed(functools.partial(wait, number)) for number in range(limit * 1000, limit * 1000 + times)
        )
        print(f"one document inserted → {what}: median {statistics.median(took):.0f} ms (limit {limit}), ", end="")
        print(f"p90 {took[int(0.9 * len(took))]:.0f} ms")
    alone = [1000 * timed(lambda: stage.plain["alone"].insert_one({})) for _ in range(times)]
    print(f"  beside it, pymongo's insert_one alone: {statistics.median(alone):.1f} ms")


def _point(x: Any) -> Any:
    return np.array([x, 1], np.float32)


# --- memory and events -----------------------------------------------------------------------------------------------


def memory(stage: Stage) -> None:
    """Compare the memory of each process at N documents and at three times as many.

    Not at fewer: what is bounded is full at some hundred thousand (the follower keeps back 100,000 changes).
    """
    small = stage.count(300_000)
    for name, count in (("warm", small // 10), ("small", small), ("large", 10 * small // 3)):
        docs = stage.ours[f"memory_{name}"]
        numbers = iter(range(count))
        docs.create_watcher("double", "x")
        with peaks(stage.live) as peak:
            while batch := [{"x": i} for i in itertools.islice(numbers, 50_000)]:
                result = docs.insert_many(batch)
            result.jobs.wait()
            docs.create_watcher("double", "_fold").wait()
        if name != "warm":
            shown = ", ".join(f"{process} {size:.0f} MB" for process, size in peak.items())
            print(f"{count} documents inserted, and a second watcher over all of them: at most {shown}")


@contextmanager
def peaks(live: Live) -> Iterator[dict[str, float]]:
    """Fill a mapping with the most memory that each process had meanwhile, in MB."""
    most: dict[str, float] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            for name, size in sizes(live).items():
                most[name] = max(most.get(name, 0.0), size)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def sizes(live: Live) -> dict[str, float]:
    """Return the memory of the server with its dispatcher and follower, of the scheduler, and of the largest worker."""
    server = psutil.Process(live.process.pid)
    found = {"server": server.memory_info().rss / 2**20}
    for child in server.children(recursive=True):
        line, size = " ".join(child.cmdline()), child.memory_info().rss / 2**20
        name = "scheduler" if "dask_host" in line else "worker" if "multiprocessing.forkserver" in line else ""
        if name:
            found[name] = max(found.get(name, 0.0), size)
    return found


def events(stage: Stage) -> None:
    """Count the progress events of a job, and tell how old what they say is when a reader that polls has them.

    The model notes when it has computed each document, so the age of "1,000 are done" is known.
    """
    with tempfile.NamedTemporaryFile() as notes:
        docs = stage.ours["events"]
        docs.create_model("slow", functools.partial(_slow, notes.name))
        stage.plain["events"].insert_many([{"x": i} for i in range(stage.count(6000))])
        since = stage.live.ask("GET", "events?since=-1")[1]["next"]
        (job,) = [job.id for job in docs.create_watcher("slow", "x").values()]
        heard: list[tuple[float, dict[str, Any]]] = []
        while not heard or heard[-1][1]["state"] == "running":
            page = stage.live.ask("GET", f"events?since={since}")[1]
            since, now = page["next"], time.time()
            heard += [(now, event) for event in page["events"] if event.get("job") == job and event["type"] == "job"]
            time.sleep(0.005)
        computed = np.sort(np.frombuffer(Path(notes.name).read_bytes()))
    begun, ended = heard[0][0], heard[-1][0]
    ages = [1000 * (at - computed[event["done"] - 1]) for at, event in heard[:-1] if event["done"]]
    rate = len(heard) / (ended - begun)
    print(f"{len(heard)} events of a job of {ended - begun:.1f} s: {rate:.1f} a second (limit 10)")
    print(f"  what they say is {statistics.median(ages):.0f} ms old (median), {max(ages):.0f} ms at most (limit 200)")


def _slow(notes: str, x: Any) -> Any:
    time.sleep(0.001)
    with Path(notes).open("ab") as file:
        file.write(np.float64(time.time()).tobytes())
    return x


ALL = {"minilm": minilm, "linear": linear, "insert": insert, "one": one, "memory": memory, "events": events}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", metavar="WHICH", help=f"of {', '.join(ALL)}; all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="size of all collections (1: as the limits say)")
    arguments = parser.parse_args()
    with stage(arguments.scale) as running:
        for name in arguments.which or ALL:
            ALL[name](running)


if __name__ == "__main__":
    main()
