"""Who writes during a drill, and what is counted after it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from pymongo.errors import PyMongoError

from superduper_nb.errors import SuperduperError
from superduper_nb.jobs.watchers import Watcher
from tests.drills.drill_rig import DATABASE, Rig
from tests.jobs.job_world import GOOD, Effects, Oracle, World

BATCH: Final = 50
UPDATED: Final = 5
CLEAN: Final = {**GOOD, "unseen": 0, "doubled": 0, "unsuccessful": 0}


def embed(x: int) -> np.ndarray[Any, Any]:
    """Apply the model of the drills: another vector for each number."""
    return np.cos(np.arange(1, 9) * (x + 1)).astype(np.float32)


def slow_embed(x: int) -> np.ndarray[Any, Any]:
    time.sleep(0.001)
    return embed(x)


class Writer(threading.Thread):
    """Inserts batches, evenly over a time, and updates some of each; what was acknowledged is written down here.

    Parameters
    ----------
    docs : pymongo.collection.Collection
        Where: through our client, or as a program writes that knows nothing of us.
    start, count : int
        Its identifiers: so many from there on.
    seconds : float
        How long it takes, if nobody hinders it.
    """

    def __init__(self, docs: Any, start: int, count: int, seconds: float, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._docs, self._rng, self._pause = docs, rng, seconds * BATCH / count
        self._batches = [list(range(at, min(at + BATCH, start + count))) for at in range(start, start + count, BATCH)]
        self.attempted: set[int] = set()
        self.acknowledged: set[int] = set()
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        begun = time.monotonic()
        for n, ids in enumerate(self._batches):
            time.sleep(max(0.0, begun + n * self._pause - time.monotonic()))
            self.attempted |= set(ids)
            try:
                self._docs.insert_many([{"_id": id, "x": id} for id in ids])
                self.acknowledged |= set(ids)
                self._docs.update_many({"_id": {"$in": self._rng.sample(ids, UPDATED)}}, {"$inc": {"x": 1}})
            except (PyMongoError, SuperduperError) as error:
                self.errors[type(error).__name__] += 1


class Count:
    """What is counted, in MongoDB itself: documents, outputs and jobs, and from now on each effect."""

    def __init__(self, rig: Rig) -> None:
        world, watcher = World(rig.mongo[DATABASE]), Watcher("docs", "m", "x")
        self._docs, self._jobs = world.docs, world.database["_sddb.jobs"]
        codec = world.loader.codec()
        self._oracle = Oracle(world, watcher, lambda x: codec.encode_as("vector", embed(x)))
        self._effects = Effects(world.database, watcher)

    def settle(self, timeout: float = 240) -> float:
        """Wait until no job is under way and no output is wrong, or no longer; return the seconds that it took."""
        begun = time.monotonic()
        while time.monotonic() - begun < timeout and not self._settled():
            time.sleep(0.5)
        return time.monotonic() - begun

    def _settled(self) -> bool:
        try:
            return not self._jobs.find_one(_in("pending", "running")) and not self._oracle.check(())["wrong"]
        except PyMongoError:
            return False

    def wrong(self, writers: Sequence[Writer], known: Iterable[int] = ()) -> dict[str, int]:
        """Count what is wrong; a document that was attempted and not acknowledged may be there or not."""
        acknowledged = set(known).union(*(writer.acknowledged for writer in writers))
        attempted = set[int]().union(*(writer.attempted for writer in writers))
        unknown = [document["_id"] for document in self._docs.find({"_id": {"$in": list(attempted - acknowledged)}})]
        return {
            **self._oracle.check([*acknowledged, *unknown]),
            **self._effects.count(),
            "unsuccessful": self._jobs.count_documents(_in("failed", "blocked", "cancelled")),
        }

    def reasons(self) -> set[str]:
        """Return why jobs failed."""
        return {job["error"]["message"] for job in self._jobs.find({"state": "failed"})}

    def wrong_searches(self, docs: Any, queries: int = 20) -> int:
        """Count the searches that differ from brute force over the numbers that MongoDB holds."""
        vectors = np.array([embed(document["x"]) for document in self._docs.find()], dtype=np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        wrong = 0
        for x in random.Random(1).sample(range(10**6), queries):
            query = embed(x).astype(np.float64)
            best = np.sort(vectors @ (query / np.linalg.norm(query)))[::-1][:10]
            scores = [hit["_score"] for hit in docs.find(like={"x": x}, n=10)]
            wrong += len(scores) != 10 or not np.allclose(scores, best, atol=1e-6)
        return wrong


def _in(*states: str) -> dict[str, Any]:
    return {"state": {"$in": list(states)}}


def strike(moments: Iterable[float], fault: Callable[[], object]) -> None:
    """Strike at these moments (seconds from now), or as soon after as the last blow was dealt."""
    begun = time.monotonic()
    for moment in moments:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        fault()
