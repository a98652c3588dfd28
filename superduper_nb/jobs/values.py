"""What a job is, as values: its states, a new one, how far one is."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from bson import ObjectId

__all__ = ["ACTIVE_STATES", "FINAL_STATES", "FRESH", "STATES", "NewJob", "Progress"]

STATES: Final = ("pending", "running", "succeeded", "failed", "cancelled", "blocked")
ACTIVE_STATES: Final = ("pending", "running")
FINAL_STATES: Final = ("succeeded", "failed", "cancelled", "blocked")

FRESH: Final[dict[str, Any]] = {
    "state": "pending",
    "owner": None,
    "resume": {"cursor": None, "done": 0, "failed": 0},
    "progress": {"done": 0, "failed": 0, "rate": None, "eta": None},
    "failures": {"count": 0, "first": []},
    "finished": None,
    "error": None,
    "blocked_by": None,
    "hold": None,
}
"""What a job that is queued again forgets."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be recorded.

    Attributes
    ----------
    kind : str
        What the executor does; ``"outputs"`` applies a watcher's model.
    name : str
        What users see; a watcher's identifier, say.
    work : dict
        ``{"ids": [...]}``, ``{"batch": id, "chunks": n}`` or ``{"filter": Extended JSON}``; of a training with the
        ``resources`` that its workers must have.
    total : int or None
        Documents, where known.
    parents : tuple of str
        Jobs that must succeed first.
    """

    kind: str
    name: str
    collection: str
    component: str
    work: dict[str, Any]
    total: int | None = None
    parents: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: str(ObjectId()))

    def record(self) -> dict[str, Any]:
        """Return the document of a new job."""
        return {
            "_id": self.id,
            "kind": self.kind,
            "name": self.name,
            "collection": self.collection,
            "component": self.component,
            **FRESH,
            "parents": list(self.parents),
            "work": self.work,
            "progress": {**FRESH["progress"], "total": self.total},
            "attempts": 0,
            "retry_failed": False,
            "created": datetime.now(UTC),
            "started": None,
            "worker": None,
            "logged": 0,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes
    ----------
    resume : dict
        Where another executor goes on: ``cursor`` (everything up to here is done: the number of the last chunk, or the
        last ``_id``), with the ``done`` and ``failed`` documents up to there.
    done, failed : int
        All documents so far.
    first : tuple of dict
        The first failures: ``{"_id", "error"}``.
    rate : float or None
        Documents a second, lately.
    eta : float or None
        Seconds that it will still take.
    worker : str or None
        Who did the last of it.
    """

    resume: dict[str, Any]
    done: int
    failed: int
    first: tuple[dict[str, Any], ...]
    rate: float | None = None
    eta: float | None = None
    worker: str | None = None
