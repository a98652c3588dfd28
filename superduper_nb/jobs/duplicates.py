"""The effect of a ``duplicates`` job: the pairs of documents whose vectors are near each other, beside the jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from toolz import partition_all

from superduper_nb.jobs.outputs import Control, Outcome
from superduper_nb.jobs.whole import RunStore, WholeWork
from superduper_nb.search.blocks import BestPairs
from superduper_nb.search.reading import measure_of, read_vectors

__all__ = ["PAIRS", "DuplicatesWork", "PairStore"]

PAIRS: Final = "_sddb.pairs"
_BATCH: Final = 10_000


class PairStore(RunStore):
    """The searches for duplicates of a database: each pair is a document, the best first. Their number is bounded.

    When a search has ended, its run tells ``pairs`` (how many) and ``least``.
    """

    called, collection = "search for duplicates", PAIRS

    def plan(self, job: str, *, min_score: float, limit: int) -> None:
        """Note what a job is to look for."""
        self._plan(job, {"min_score": min_score, "limit": limit})

    def write(self, job: str, pairs: Iterator[tuple[Any, Any, float]], *, least: float) -> int:
        """Store what was found, in the place of what an earlier attempt stored."""
        common, count = self._begin(job), 0
        for part in partition_all(_BATCH, enumerate(pairs)):
            rows = [{**common, "n": n, "a": a, "b": b, "score": score} for n, (a, b, score) in part]
            self._runs.insert_many(rows, ordered=False)
            count += len(rows)
        self._runs.update_one({"_id": job}, {"$set": {"pairs": count, "least": least}})
        return count

    def read(self, job: str) -> Iterator[dict[str, Any]]:
        """Yield the pairs, best first, as ``{"a": _id, "b": _id, "score": …}``."""
        yield from self._runs.find({"job": job}, {"_id": 0, "a": 1, "b": 1, "score": 1}).sort("n", 1)


class DuplicatesWork(WholeWork):
    """Finds the pairs of one semantic index."""

    called = "search for duplicates"

    def run(self, ids: Sequence[Any], control: Control | None = None) -> Outcome:
        """Compare all pairs in blocks; store the best, when all is done."""
        control, store = control or Control(), PairStore(self._database)
        run, index = store.run(self._job["_id"]), self._component("semantic_index")
        found, vectors = read_vectors(self._database[index.collection], self._loader, index)
        best = BestPairs(vectors, run["min_score"], measure_of(self._loader, index), run["limit"])
        for done in best.look():
            control.tell(done)
            if control.stopped():
                return Outcome(done)
        first, second, scores = (column.tolist() for column in best.found())
        pairs = ((found[a], found[b], score) for a, b, score in zip(first, second, scores, strict=True))
        store.write(self._job["_id"], pairs, least=best.least)
        return Outcome(len(found))
