"""The effect of a ``layout`` job: documents as points of a plane by UMAP, stored beside the jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from bson import json_util

from superduper_nb.jobs.outputs import Control, Outcome
from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.whole import RunStore, WholeWork
from superduper_nb.search.measures import Floats
from superduper_nb.search.plane import Umap
from superduper_nb.search.reading import read_vectors

__all__ = ["LAYOUTS", "LayoutStore", "LayoutWork"]

LAYOUTS: Final = "_sddb.layouts"
_BATCH: Final = 10_000


class LayoutStore(RunStore):
    """The layouts of a database: their points are in documents of thousands."""

    called, collection = "layout", LAYOUTS

    def plan(self, job: str, filter: Mapping[str, Any], limit: int) -> None:
        """Note which documents a job is to lay out."""
        told = json_util.dumps(dict(filter), json_options=json_util.CANONICAL_JSON_OPTIONS)
        self._plan(job, {"filter": told, "limit": limit})

    def run(self, job: str) -> dict[str, Any]:
        """Return which documents a job is to lay out."""
        run = super().run(job)
        return {**run, "filter": json_util.loads(run["filter"], json_options=json_util.CANONICAL_JSON_OPTIONS)}

    def write(self, job: str, ids: Sequence[Any], places: Floats) -> None:
        """Store the points, in the place of what an earlier attempt stored."""
        common = self._begin(job)
        for n, start in enumerate(range(0, len(ids), _BATCH)):
            stop = start + _BATCH
            rows = np.ascontiguousarray(places[start:stop], dtype="<f4").tobytes()
            self._runs.insert_one({**common, "n": n, "ids": ids[start:stop], "places": rows})

    def read(self, job: str) -> tuple[list[Any], Floats]:
        """Return the identifiers of the documents, and an array of their places."""
        parts = list(self._runs.find({"job": job}).sort("n", 1))
        places = np.frombuffer(b"".join(part["places"] for part in parts), dtype="<f4").reshape(-1, 2)
        return [id for part in parts for id in part["ids"]], places


class LayoutWork(WholeWork):
    """Lays out the documents of one semantic index."""

    called = "layout"

    def run(self, ids: Sequence[Any], control: Control | None = None) -> Outcome:
        """Compute the layout; store it, when all is done."""
        control, store, id = control or Control(), LayoutStore(self._database), self._job["_id"]
        run, index = store.run(id), self._component("semantic_index")
        documents = self._database[index.collection]
        found, vectors = read_vectors(documents, self._loader, index, filter=run["filter"], limit=run["limit"])
        layout, notes = Umap(vectors), JobStore(self._database)
        told = ""
        for done, total in layout.look():
            part = len(found) * done // total if total else 0
            control.tell(part)
            if (note := f"epoch {done} of {total}" if total else "who is near whom") != told:
                notes.note(id, told := note)
            if control.stopped():
                return Outcome(part)
        assert layout.places is not None  # it was looked at to the end
        store.write(id, found, layout.places)
        return Outcome(len(found))
