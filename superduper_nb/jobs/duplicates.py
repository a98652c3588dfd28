"""The effect of a ``duplicates`` job: the pairs of documents whose vectors are near each other, stored beside the jobs.

A run is a document with the job's identifier; its pairs are documents beside it, best first. The number of pairs is
bounded, and runs are deleted as ended jobs are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pymongo.collection import Collection
from pymongo.database import Database
from toolz import partition_all

from superduper_nb.errors import ModelError, NotFoundError
from superduper_nb.jobs.outputs import Control, Outcome
from superduper_nb.jobs.records import KEEP_S
from superduper_nb.models.loading import Loader
from superduper_nb.search.blocks import BestPairs
from superduper_nb.search.reading import measure_of, read_vectors

__all__ = ["PAIRS", "DuplicatesWork", "PairStore"]

PAIRS: Final = "_sddb.pairs"
_BATCH: Final = 10_000


class PairStore:
    """The runs of a database, and their pairs.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose.
    """

    def __init__(self, database: Database[Any]) -> None:
        self._pairs: Collection[dict[str, Any]] = database[PAIRS]

    def plan(self, job: str, *, min_score: float, limit: int) -> None:
        """Note what a job is to look for."""
        self._pairs.create_index([("job", 1), ("n", 1)])
        self._pairs.create_index("created", expireAfterSeconds=KEEP_S)
        self._pairs.insert_one({"_id": job, "created": datetime.now(UTC), "min_score": min_score, "limit": limit})

    def run(self, job: str) -> dict[str, Any]:
        """Return what a job is to look for and, when it has ended, ``pairs`` (how many) and ``least``."""
        run = self._pairs.find_one({"_id": job})
        if run is None:
            raise NotFoundError(f"No search for duplicates {job!r}: those that ended are deleted after two weeks.")
        return run

    def write(self, job: str, pairs: Iterator[tuple[Any, Any, float]], *, least: float) -> int:
        """Store what was found, in the place of what an earlier attempt stored."""
        self._pairs.delete_many({"job": job})
        created, count = self.run(job)["created"], 0
        for part in partition_all(_BATCH, enumerate(pairs)):
            rows = [{"job": job, "n": n, "created": created, "a": a, "b": b, "score": s} for n, (a, b, s) in part]
            self._pairs.insert_many(rows, ordered=False)
            count += len(rows)
        self._pairs.update_one({"_id": job}, {"$set": {"pairs": count, "least": least}})
        return count

    def read(self, job: str) -> Iterator[dict[str, Any]]:
        """Yield the pairs, best first, as ``{"a": _id, "b": _id, "score": …}``."""
        yield from self._pairs.find({"job": job}, {"_id": 0, "a": 1, "b": 1, "score": 1}).sort("n", 1)


class DuplicatesWork:
    """Finds the pairs of one semantic index.

    Parameters
    ----------
    database : pymongo.database.Database
        Where everything is.
    loader : Loader
        Gives components.
    job : dict
        The job's record.
    """

    def __init__(self, database: Database[Any], loader: Loader, job: dict[str, Any]) -> None:
        self._database, self._loader, self._job = database, loader, job

    def run(self, ids: Sequence[Any], control: Control | None = None) -> Outcome:
        """Compare all pairs in blocks; store the best, when all is done."""
        control, store = control or Control(), PairStore(self._database)
        run = store.run(self._job["_id"])
        collection = self._job["collection"]
        index = self._loader.store.get("semantic_index", self._job["component"], collection=collection)
        found, vectors = read_vectors(self._database[collection], self._loader, index)
        best = BestPairs(vectors, run["min_score"], measure_of(self._loader, index), run["limit"])
        for done in best.look():
            control.tell(done)
            if control.stopped():
                return Outcome(done)
        first, second, scores = (column.tolist() for column in best.found())
        pairs = ((found[a], found[b], score) for a, b, score in zip(first, second, scores, strict=True))
        store.write(self._job["_id"], pairs, least=best.least)
        return Outcome(len(found))

    def condemn(self, id: Any, message: str) -> None:
        """Say that it ends its worker each time."""
        raise ModelError(f"The search for duplicates was given up: {message}.")
