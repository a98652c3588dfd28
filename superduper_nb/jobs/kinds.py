"""The kinds of jobs: for each, what carries out its parts. A new kind is one entry of `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from pymongo.database import Database

from superduper_nb.components.store import ComponentStore
from superduper_nb.documents.download import DownloadPolicy
from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.jobs.downloads import DownloadWork
from superduper_nb.jobs.duplicates import DuplicatesWork
from superduper_nb.jobs.layouts import LayoutWork
from superduper_nb.jobs.neighbours import NeighboursWork
from superduper_nb.jobs.outputs import Control, Outcome, Refresh
from superduper_nb.jobs.training import TrainingWork
from superduper_nb.jobs.watchers import Watcher
from superduper_nb.models.loading import Loader

__all__ = ["KINDS", "WHOLE", "Work", "resources_of", "work_of"]


class Work(Protocol):
    """What the parts of a job have in common, read once for each attempt and worker."""

    def run(self, ids: Sequence[Any], control: Control | None = None) -> Outcome:
        """Do a part; what is done already costs nothing, for a part may be run twice."""

    def condemn(self, id: Any, message: str) -> None:
        """Note that a document ends its worker each time, so that nobody tries it again."""


Record = dict[str, Any]


def _outputs(database: Database[Any], loader: Loader, job: Record, policy: DownloadPolicy) -> Work:
    watcher = loader.store.get("watcher", job["component"], collection=job["collection"])
    return Refresh(database, loader, Watcher.from_component(watcher), retry_failed=job["retry_failed"])


def _download(database: Database[Any], loader: Loader, job: Record, policy: DownloadPolicy) -> Work:
    return DownloadWork(database, job["collection"], policy, retry_failed=job["retry_failed"])


KINDS: Final[dict[str, Callable[[Database[Any], Loader, Record, DownloadPolicy], Work]]] = {
    "outputs": _outputs,
    "download": _download,
    "neighbours": lambda database, loader, job, policy: NeighboursWork(database, loader, job),
    "duplicates": lambda database, loader, job, policy: DuplicatesWork(database, loader, job),
    "layout": lambda database, loader, job, policy: LayoutWork(database, loader, job),
    "training": lambda database, loader, job, policy: TrainingWork(database, loader, job),
}
"""For each kind, how its work is made of the database, its components, the job's record and what may be fetched."""

WHOLE: Final = frozenset({"duplicates", "layout", "neighbours", "training"})
"""Kinds whose work is one piece that lasts: a lost worker means another attempt, for which nobody else has to wait."""


def work_of(database: Database[Any], loader: Loader, job: Record, policy: DownloadPolicy | None = None) -> Work:
    """Return what carries out a job.

    Parameters
    ----------
    policy : DownloadPolicy, optional
        What may be fetched, where that is its work.

    Raises
    ------
    InvalidInputError
        A kind that a newer version recorded.
    NotFoundError
        The component was deleted.
    """
    make = KINDS.get(job["kind"])
    if make is None:
        raise InvalidInputError(f"This version knows no job of kind {job['kind']!r}. Update superduper_nb here.")
    return make(database, loader, job, policy or DownloadPolicy())


def resources_of(store: ComponentStore, job: Record) -> dict[str, float]:
    """Return what a worker must have to carry out a job: what the models that it works with were registered with."""
    if job["kind"] != "outputs":
        return dict(job["work"].get("resources", {}))
    try:
        watcher = store.get("watcher", job["component"], collection=job["collection"])
        return dict(store.get("model", watcher.definition["model"]).definition.get("resources", {}))
    except NotFoundError:  # it was deleted: whoever carries it out says so
        return {}
