"""Runs: what each training found, and from where it goes on should it be killed (``_sddb.runs``, ``_sddb.history``)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import DESCENDING, UpdateOne, WriteConcern
from pymongo.database import Database

from superduper_nb.components import Component, artifacts
from superduper_nb.components.store import plain_database
from superduper_nb.training.results import Result

__all__ = ["HISTORY", "PLACE", "RUNS", "RunRecorder", "RunStore", "Told", "sketch"]

RUNS: Final = "_sddb.runs"
HISTORY: Final = "_sddb.history"
_WIDTH: Final = 20
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_WRITE_EVERY_S: Final = 0.5
_KEEP: Final = 100
"""So many runs of one task are kept, with their histories."""
_SHOWN: Final = 80
"""So many points of a curve does a job show at most."""
PLACE: Final = frozenset({"step", "epoch", "time"})
"""Where a point of the curves is, beside its values."""
Record = dict[str, Any]
Told = Callable[[str, Sequence[Mapping[str, Any]]], None]
"""``(line, curves)``: how a training goes, in words and as ``{"name", "steps", "values"}`` each."""


class RunStore:
    """The runs of one database; each has the identifier of its job.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose runs.
    """

    def __init__(self, database: Database[Any]) -> None:
        self.database = plain_database(database)
        self._runs = self.database[RUNS]
        # What a killed run had found since its last checkpoint, it finds again.
        self._history = self.database.get_collection(HISTORY, write_concern=WriteConcern(w=1))

    def plan(self, id: str, task: Component, starts: Mapping[str, int]) -> None:
        """Record a run that is to come: of which task, from which versions of its models."""
        self._runs.create_index([("kind", 1), ("collection", 1), ("task", 1), ("_id", -1)])
        self._history.create_index([("run", 1), ("step", 1)], unique=True)
        self._runs.insert_one(
            {
                "_id": id,
                "kind": task.kind,
                "collection": task.collection,
                "task": task.id,
                "version": task.version,
                "starts": dict(starts),
                "ends": {},
                "training": task.definition["training"],
                "created": datetime.now(UTC),
                "checkpoint": None,
            }
        )
        for old in self._of(task.kind, task.collection, task.id).skip(_KEEP):
            self._forget(old)

    def get(self, id: str) -> Record | None:
        """Return a run, or None."""
        return self._runs.find_one({"_id": id})

    def last(self, kind: str, collection: str, task: str) -> Record | None:
        """Return the newest run of a task, or None."""
        return next(iter(self._of(kind, collection, task).limit(1)), None)

    def of(self, kind: str, collection: str, task: str) -> list[Record]:
        """List the runs of a task, oldest first."""
        return list(self._of(kind, collection, task))[::-1]

    def _of(self, kind: str, collection: str, task: str) -> Any:
        return self._runs.find({"kind": kind, "collection": collection, "task": task}).sort("_id", DESCENDING)

    def history(self, id: str) -> list[Record]:
        """List the points of a run's curves: ``step``, ``epoch``, ``time`` and the values."""
        points = self._history.find({"run": id}, {"_id": 0, "run": 0}).sort("step", 1)
        return [{"step": p["step"], "epoch": p["epoch"], **named(p["values"]), "time": p["time"]} for p in points]

    def add_points(self, id: str, points: Sequence[UpdateOne], last: Mapping[str, Any]) -> None:
        """Keep points of the curves, and the newest values."""
        self._history.bulk_write(list(points), ordered=False)
        self._runs.with_options(write_concern=WriteConcern(w=1)).update_one({"_id": id}, {"$set": last})

    def update(self, id: str, **values: Any) -> None:
        """Note something of a run."""
        self._runs.update_one({"_id": id}, {"$set": values})

    def finish(self, id: str, result: Result, ends: Mapping[str, int], skipped: Mapping[str, int]) -> None:
        """Note how a run ended, and forget its checkpoint."""
        found = asdict(result)
        found["values"] = {_field(name): value for name, value in result.values.items()}
        reasons = [{"why": why, "count": count} for why, count in skipped.items()]
        found |= {"ends": dict(ends), "skipped": reasons, "ended": datetime.now(UTC), "checkpoint": None}
        if before := self._runs.find_one_and_update({"_id": id}, {"$set": found}):
            self._drop_checkpoint(before)

    def forget(self, kind: str, collection: str, task: str) -> None:
        """Delete the runs of a task."""
        for run in self._of(kind, collection, task):
            self._forget(run)

    def _forget(self, run: Record) -> None:
        self._history.delete_many({"run": run["_id"]})
        self._runs.delete_one({"_id": run["_id"]})
        self._drop_checkpoint(run)

    # --- checkpoints -------------------------------------------------------------------------------------------

    def save_checkpoint(self, id: str, state: Mapping[str, Any]) -> None:
        """Keep a state instead of the one before; whenever this is cut off, one of the two is whole."""
        before = self.get(id)
        packed = artifacts.pack(dict(state), what="The training's checkpoint")
        self.update(id, checkpoint=artifacts.seal(_identity(id), artifacts.save(self.database, packed)))
        artifacts.save(self.database, packed)
        if before:
            self._drop_checkpoint(before)

    def load_checkpoint(self, id: str) -> Mapping[str, Any] | None:
        """Return the state that was kept, or None."""
        record = self.get(id)
        if record is None or record["checkpoint"] is None:
            return None
        state: Mapping[str, Any] = artifacts.load(self.database, _identity(id), record["checkpoint"])
        return state

    def _drop_checkpoint(self, record: Record) -> None:
        if record["checkpoint"] is not None:
            artifacts.discard(self.database, record["checkpoint"])


def _identity(id: str) -> dict[str, Any]:
    return {"kind": "checkpoint", "collection": "", "id": id, "version": 0}


class RunRecorder:
    """Where the loop of one run leaves what it finds.

    Parameters
    ----------
    store : RunStore
        Of its database.
    id : str
        The run's; one that goes on finds its curves there.
    told : callable
        ``(line, curves)``: hears, now and then, how it goes.
    """

    def __init__(self, store: RunStore, id: str, told: Told) -> None:
        self._store, self._id, self._told = store, id, told
        self._curves: dict[str, dict[int, float]] = {}
        self._points: list[UpdateOne] = []
        self._last: dict[str, Any] = {}
        self._written = time.monotonic()
        for point in store.history(id):
            found = {name: value for name, value in point.items() if name not in PLACE}
            self._remember(point["step"], found)

    def point(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Keep values of a step; those of the same step replace them."""
        found = {name: value for name, value in values.items() if not math.isnan(value)}
        self._remember(step, found)
        change = {f"values.{_field(name)}": value for name, value in found.items()}
        point = {"epoch": epoch, "time": datetime.now(UTC), **change}
        self._points.append(UpdateOne({"run": self._id, "step": step}, {"$set": point}, upsert=True))
        self._last |= {"step": step, "epoch": epoch, **{f"last.{_field(k)}": v for k, v in found.items()}}
        if time.monotonic() - self._written > _WRITE_EVERY_S:
            self.flush()

    def _remember(self, step: int, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            self._curves.setdefault(name, {})[step] = value

    def flush(self) -> None:
        """Write what was kept: a quick loop has more to say than MongoDB should be told one by one."""
        if self._points:
            self._store.add_points(self._id, self._points, self._last)
            self._told(self._line(), [_thinned(name, curve) for name, curve in self._curves.items()])
        self._points, self._last, self._written = [], {}, time.monotonic()

    def _line(self) -> str:
        results = [f"{name} {list(curve.values())[-1]:.4g}" for name, curve in self._curves.items()]
        curve = self._curves.get("loss")
        return " · ".join([sketch(list(curve.values())), *results] if curve else results)

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep the state from which the run goes on."""
        self.flush()
        self._store.save_checkpoint(self._id, state)


def _thinned(name: str, curve: Mapping[int, float]) -> dict[str, Any]:
    """Return a curve as a job shows it: few points, the last among them."""
    every = -(-len(curve) // _SHOWN)
    points = list(curve.items())[::-1][::every][::-1]
    return {"name": name, "steps": [step for step, _ in points], "values": [value for _, value in points]}


def sketch(values: Sequence[float]) -> str:
    """Draw a curve in twenty characters.

    Examples
    --------
    >>> sketch([4.0, 3.0, 2.0, 1.0])
    '█▆▃▁'
    """
    size = -(-len(values) // _WIDTH)
    means = [sum(part) / len(part) for part in (values[at : at + size] for at in range(0, len(values), size))]
    low, high = min(means), max(means)
    return "".join(_LEVELS[round((mean - low) / ((high - low) or 1.0) * 7)] for mean in means)


def named(values: Mapping[str, float]) -> dict[str, float]:
    """Return values under their names."""
    return {name.replace("/", "."): value for name, value in values.items()}


def _field(name: str) -> str:
    """Return a name as one field of a MongoDB document: dots would nest."""
    return name.replace(".", "/")
