"""Bring the lists of nearest documents up to date: the effect of a ``neighbours`` job.

What there is to do is read off the documents: beside its list, each notes the output (and the versions of all that went
into it) that the list was made for. So whichever job runs does all that is to be done by then, a job that runs twice
does nothing the second time, and one that died leaves nothing half known.

The lists are exactly those of a search over all pairs. A document that is new or was changed gets a list, and so does
each that had it in its own, or to which it is now among the `n` nearest. A document notes its output last, when all
others know of it; a list is written only over the one that was read, so that of two jobs one looks again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pymongo import UpdateOne, WriteConcern
from pymongo.database import Database
from toolz import partition_all

from superduper_nb.components.store import plain_database
from superduper_nb.documents.paths import get_path, token_path
from superduper_nb.errors import ModelError
from superduper_nb.jobs.outputs import Control, Outcome
from superduper_nb.jobs.whole import WholeWork
from superduper_nb.models.loading import Loader
from superduper_nb.search.blocks import Rows, best_of, blocked_topk, overtaking
from superduper_nb.search.ids import id_keys
from superduper_nb.search.measures import Floats
from superduper_nb.search.reading import current_outputs, measure_of, read_vectors

__all__ = ["NeighboursWork", "like_path", "note_path"]

_ROUNDS: Final = 20
_BATCH: Final = 1000
_MANY: Final = 4
"""Where more than one document in so many has changed, all lists are made anew: that is one product of matrices."""
_MISSING: Final = object()
_MAJORITY: Final = WriteConcern(w="majority", j=True)


def like_path(id: str) -> str:
    """Return where the list of a neighbourhood is in a document."""
    return f"_like.{id}"


def note_path(id: str) -> str:
    """Return where a document notes which output its list was made for."""
    return f"_sddb.like.{id}"


@dataclass(frozen=True, slots=True)
class _Document:
    """A document with a current output, as it was read.

    Attributes
    ----------
    token : dict
        Of the output.
    near : object
        Its list; a mark for none.
    stale : bool
        The list was made for another output, or by other definitions.
    """

    id: Any
    token: dict[str, Any]
    near: Any
    stale: bool


class NeighboursWork(WholeWork):
    """Keeps one neighbourhood."""

    called = "neighbourhood"

    def __init__(self, database: Database[Any], loader: Loader, job: dict[str, Any]) -> None:
        super().__init__(database, loader, job)
        self._documents = plain_database(database)[job["collection"]].with_options(write_concern=_MAJORITY)
        neighbourhood = self._component("neighbourhood")
        self._n = int(neighbourhood.definition["n"])
        self._index = self._component("semantic_index", neighbourhood.definition["semantic_index"])
        own = loader.store.find("measure", self._index.definition["measure"])
        self._version = f"{neighbourhood.version}.{self._index.version}.{own.version if own else 0}"
        self._like, self._note = like_path(neighbourhood.id), note_path(neighbourhood.id)
        self._token = token_path(self._index.definition["models"][0], self._index.definition["keys"][0])

    def run(self, ids: Sequence[Any], control: Control | None = None) -> Outcome:
        """Revise all lists that are not what they should be."""
        control, revised = control or Control(), 0
        for _ in range(_ROUNDS):
            documents = list(self._current())
            gone = self._gone()
            if not gone and not self._stale(documents):
                return Outcome(revised)
            written, undisturbed = self._revise(documents, control)
            revised += written
            if control.stopped():
                return Outcome(revised)
            if undisturbed:
                self._forget(gone)
                return Outcome(revised)
        raise ModelError("The neighbourhood changed each time it was revised; the next change revises it.")

    # --- reading -------------------------------------------------------------------------------------------------

    def _current(self) -> Iterator[_Document]:
        """Yield the documents that have a current output. Read before the vectors, which are never older so."""
        fields = {self._token: 1, self._note: 1, self._like: 1}
        for document in self._documents.find(current_outputs(self._loader, self._index), fields, batch_size=_BATCH):
            token = get_path(document, self._token)
            near = get_path(document, self._like, _MISSING)
            noted = get_path(document, self._note) == {"v": self._version, "of": token}
            yield _Document(document["_id"], token, near, stale=not noted or not isinstance(near, list))

    def _gone(self) -> list[tuple[Any, Any]]:
        """Return the documents that have a list and should have none, with their notes.

        Not those whose output is only out of date: another follows, and the list with it.
        """
        lost: list[dict[str, Any]] = [{self._token: {"$exists": False}}, {f"{self._token}.error": {"$exists": True}}]
        if self._index.definition["filter"]:
            lost.append({"$nor": [self._index.definition["filter"]]})
        found = self._documents.find({self._note: {"$exists": True}, "$or": lost}, {self._note: 1})
        return [(document["_id"], get_path(document, self._note)) for document in found]

    def _stale(self, documents: list[_Document]) -> bool:
        """Say whether there is anything to do: also where a list names a document that is no longer there."""
        if any(document.stale for document in documents):
            return True
        known = set(id_keys(document.id for document in documents))
        return any(not known.issuperset(id_keys(document.near)) for document in documents)

    # --- revising ------------------------------------------------------------------------------------------------

    def _revise(self, documents: list[_Document], control: Control) -> tuple[int, bool]:
        """Make and write the lists that have to be others; return how many, and whether nobody else wrote meanwhile."""
        ids, vectors = read_vectors(self._documents, self._loader, self._index)
        row_of = dict(zip(id_keys(ids), range(len(ids)), strict=True))
        rows = [row_of.get(key, -1) for key in id_keys(document.id for document in documents)]
        by_row = {row: document for row, document in zip(rows, documents, strict=True) if row >= 0}
        lists: dict[int, Rows] = {}
        for found in self._found(vectors, by_row, row_of, control):
            lists |= found
            control.tell(len(lists))
            if control.stopped():
                return 0, False
        changes = [(by_row[row], [ids[other] for other in near.tolist()]) for row, near in lists.items()]
        # What has an output that is no vector, or none with a direction, is near to nothing.
        changes += [(document, []) for document, row in zip(documents, rows, strict=True) if row < 0 and document.stale]
        first = [change for change in changes if not change[0].stale and change[0].near != change[1]]
        written, undisturbed = self._write(first)
        if not undisturbed:
            return written, False
        more, undisturbed = self._write([change for change in changes if change[0].stale])
        return written + more, undisturbed

    def _found(
        self, vectors: Floats, by_row: dict[int, _Document], row_of: dict[Any, int], control: Control
    ) -> Iterator[dict[int, Rows]]:
        """Yield lists, some rows at a time."""
        measure, wanted = measure_of(self._loader, self._index), max(0, min(self._n, len(vectors) - 1))
        changed = {row for row, document in by_row.items() if document.stale}
        kept: dict[int, list[int]] = {}
        if len(changed) * _MANY <= len(vectors):
            kept = dict(self._kept(by_row, row_of, changed, wanted))
        whole = np.array([row for row in by_row if row not in kept], dtype=np.intp)
        for start, near, _ in blocked_topk(vectors, self._n, measure, rows=whole):
            yield dict(zip(whole[start : start + len(near)].tolist(), near, strict=True))
        if not kept or not changed or not wanted:
            return
        last = np.array([near[-1] for near in kept.values()], dtype=np.intp)
        for _, found in overtaking(vectors, np.array(list(kept)), last, np.array(sorted(changed)), measure):
            pools = [(row, np.concatenate([kept[row], near])) for row, near in found]
            yield {row: best_of(vectors, row, pool, wanted, measure)[0] for row, pool in pools}

    def _kept(
        self, by_row: dict[int, _Document], row_of: dict[Any, int], changed: set[int], wanted: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the lists whose members are all as they were: only what has changed can be nearer than those."""
        for row, document in by_row.items():
            if document.stale or len(document.near) != wanted:
                continue
            near = [row_of.get(key, -1) for key in id_keys(document.near)]
            if -1 not in near and changed.isdisjoint(near):
                yield row, near

    # --- writing -------------------------------------------------------------------------------------------------

    def _write(self, changes: list[tuple[_Document, list[Any]]]) -> tuple[int, bool]:
        """Write lists over those that were read; return how many, and whether all were still there."""
        written = 0
        for part in partition_all(_BATCH, changes):
            operations = [
                UpdateOne(
                    {"_id": document.id, self._token: {"$eq": document.token}, self._like: _same(document.near)},
                    {"$set": {self._like: near, self._note: {"v": self._version, "of": document.token}}},
                )
                for document, near in part
            ]
            written += self._documents.bulk_write(operations, ordered=False).matched_count
        return written, written == len(changes)

    def _forget(self, gone: list[tuple[Any, Any]]) -> None:
        fields = {"$unset": {self._like: "", self._note: ""}}
        for part in partition_all(_BATCH, gone):
            operations = [UpdateOne({"_id": id, self._note: {"$eq": note}}, fields) for id, note in part]
            self._documents.bulk_write(operations, ordered=False)


def _same(near: Any) -> Any:
    return {"$exists": False} if near is _MISSING else {"$eq": near}
