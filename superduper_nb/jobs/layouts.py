"""The effect of a ``layout`` job: documents as points of a plane by UMAP, stored beside the jobs.

A run is a document with the job's identifier; its points are in documents beside it, thousands in each. Runs are
deleted as ended jobs are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from bson import json_util
from pymongo.collection import Collection
from pymongo.database import Database

from superduper_nb.errors import ModelError, NotFoundError
from superduper_nb.jobs.outputs import Control, Outcome
from superduper_nb.jobs.records import KEEP_S, JobStore
from superduper_nb.models.loading import Loader
from superduper_nb.search.measures import Floats
from superduper_nb.search.plane import Umap
from superduper_nb.search.reading import read_vectors

__all__ = ["LAYOUTS", "LayoutStore", "LayoutWork"]

LAYOUTS: Final = "_sddb.layouts"
_BATCH: Final = 10_000


class LayoutStore:
    """The layouts of a database.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose.
    """

    def __init__(self, database: Database[Any]) -> None:
        self._layouts: Collection[dict[str, Any]] = database[LAYOUTS]

    def plan(self, job: str, filter: Mapping[str, Any], limit: int) -> None:
        """Note which documents a job is to lay out."""
        self._layouts.create_index([("job", 1), ("n", 1)])
        self._layouts.create_index("created", expireAfterSeconds=KEEP_S)
        told = json_util.dumps(dict(filter), json_options=json_util.CANONICAL_JSON_OPTIONS)
        self._layouts.insert_one({"_id": job, "created": datetime.now(UTC), "filter": told, "limit": limit})

    def run(self, job: str) -> dict[str, Any]:
        """Return which documents a job is to lay out."""
        run = self._layouts.find_one({"_id": job})
        if run is None:
            raise NotFoundError(f"No layout {job!r}: those that ended are deleted after two weeks.")
        return {**run, "filter": json_util.loads(run["filter"], json_options=json_util.CANONICAL_JSON_OPTIONS)}

    def write(self, job: str, ids: Sequence[Any], places: Floats) -> None:
        """Store the points, in the place of what an earlier attempt stored."""
        self._layouts.delete_many({"job": job})
        created = self.run(job)["created"]
        for n, start in enumerate(range(0, len(ids), _BATCH)):
            stop = start + _BATCH
            rows = np.ascontiguousarray(places[start:stop], dtype="<f4").tobytes()
            self._layouts.insert_one({"job": job, "n": n, "created": created, "ids": ids[start:stop], "places": rows})

    def read(self, job: str) -> tuple[list[Any], Floats]:
        """Return the identifiers of the documents, and an array of their places."""
        parts = list(self._layouts.find({"job": job}).sort("n", 1))
        places = np.frombuffer(b"".join(part["places"] for part in parts), dtype="<f4").reshape(-1, 2)
        return [id for part in parts for id in part["ids"]], places


class LayoutWork:
    """Lays out the documents of one semantic index.

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
        """Compute the layout; store it, when all is done."""
        control, store, id = control or Control(), LayoutStore(self._database), self._job["_id"]
        run, collection = store.run(id), self._job["collection"]
        index = self._loader.store.get("semantic_index", self._job["component"], collection=collection)
        documents = self._database[collection]
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

    def condemn(self, id: Any, message: str) -> None:
        """Say that it ends its worker each time."""
        raise ModelError(f"The layout was given up: {message}.")
