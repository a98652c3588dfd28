"""What jobs whose work is one piece have in common, and the runs that some of them store beside the jobs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from pymongo import IndexModel
from pymongo.collection import Collection
from pymongo.database import Database

from superduper_nb.components.store import Component, Kind
from superduper_nb.errors import ModelError, NotFoundError
from superduper_nb.jobs.records import KEEP_S
from superduper_nb.models.loading import Loader

__all__ = ["RunStore", "WholeWork"]


class WholeWork:
    """Work that is one piece and lasts.

    Parameters
    ----------
    database : pymongo.database.Database
        Where everything is.
    loader : Loader
        Gives components.
    job : dict
        The job's record.
    """

    called: ClassVar[str]

    def __init__(self, database: Database[Any], loader: Loader, job: dict[str, Any]) -> None:
        self._database, self._loader, self._job = database, loader, job

    def condemn(self, id: Any, message: str) -> None:
        """Say that it ends its worker each time."""
        raise ModelError(f"The {self.called} was given up: {message}.")

    def _component(self, kind: Kind, id: str | None = None) -> Component:
        """Return a component of the job's collection: the one that it is about, or another."""
        return self._loader.store.get(kind, id or self._job["component"], collection=self._job["collection"])


class RunStore:
    """What the jobs of one kind are to do, and what they found.

    A run is a document with the job's identifier; what was found is in documents beside it. Runs are deleted as ended
    jobs are.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose.
    """

    called: ClassVar[str]
    collection: ClassVar[str]

    def __init__(self, database: Database[Any]) -> None:
        self._runs: Collection[dict[str, Any]] = database[self.collection]

    def _plan(self, job: str, asked: Mapping[str, Any]) -> None:
        numbered = IndexModel([("job", 1), ("n", 1)])
        self._runs.create_indexes([numbered, IndexModel("created", expireAfterSeconds=KEEP_S)])
        self._runs.insert_one({"_id": job, "created": datetime.now(UTC), **asked})

    def run(self, job: str) -> dict[str, Any]:
        """Return what a job is to do."""
        run = self._runs.find_one({"_id": job})
        if run is None:
            raise NotFoundError(f"No {self.called} {job!r}: those that ended are deleted after two weeks.")
        return run

    def _begin(self, job: str) -> dict[str, Any]:
        """Delete what an earlier attempt stored; return what each document of this one has."""
        created = self.run(job)["created"]
        self._runs.delete_many({"job": job})
        return {"job": job, "created": created}
