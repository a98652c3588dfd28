"""Bring the outputs of one watcher up to date for some documents: the effect of an ``outputs`` job.

Exactly-once effects out of at-least-once execution: beside each output the document keeps a token ``{v, h}``, the
model's version and a hash of the input. A document whose token is right is left alone; a write asks that the token is
still the one that was read, so that of two computations that race one loses, reads again, and finds what is left.

One race remains to a check before the write: the input changes and changes back, or leaves the watcher's filter, while
a computation is under way, and whoever looks meanwhile finds nothing to do. So each write over an older token, or under
a filter, is followed by another look.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import WTimeoutError

from superduper_nb.components.store import plain_database
from superduper_nb.documents.codec import Codec
from superduper_nb.documents.inputs import fields_read, input_of
from superduper_nb.documents.paths import BASE, get_path, token_path
from superduper_nb.errors import SuperduperError
from superduper_nb.jobs.watchers import Watcher
from superduper_nb.models import batches
from superduper_nb.models.apply import ItemError, Predictor
from superduper_nb.models.loading import Loader

__all__ = ["Control", "Outcome", "Refresh"]

_ROUNDS: Final = 20
_MISSING: Final = object()
Failures = list[tuple[Any, str]]
"""Identifiers, and why."""
Drop = tuple[Any, Any]
"""An identifier, and the token that was read."""
_SHORT_S: Final = 0.05
_LONG_S: Final = 0.5
"""Between these lies the time of a slice of a chunk: after each, a cancelled job stops and progress is told."""
_FLUSH_S: Final = 2.0
"""What a slow model has computed is written after that long."""
_COMMAND_BYTES: Final = 8 * 2**20
_STATEMENT_BYTES: Final = 16 * 2**20
_MAJORITY: Final = WriteConcern(w="majority", j=True, wtimeout=10_000)


class Control:
    """How whoever asked for a computation looks in on it. This one never stops it and listens to nothing."""

    guard: bool = False
    """Take also exceptions that are no `Exception` (KeyboardInterrupt) for a failure of the document."""

    def turn(self) -> AbstractContextManager[None]:
        """Wait until it may compute: while others write, say."""
        return nullcontext()

    def aside(self) -> AbstractContextManager[None]:
        """Let somebody else compute, within a turn, while one waits for other processes."""
        return nullcontext()

    def stopped(self) -> bool:
        """Say whether to stop: what is computed is still written."""
        return False

    def tell(self, done: int) -> None:
        """Hear how many documents are done."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of some documents.

    Attributes
    ----------
    done : int
        Looked at: computed now, or found to be current, or not concerned.
    failures : tuple of dict
        ``{"_id", "error"}`` of each that failed.
    worker : str or None
        Who did it.
    more : int
        Further ones that failed.
    """

    done: int
    failures: tuple[dict[str, Any], ...] = ()
    worker: str | None = None
    more: int = 0

    @property
    def failed(self) -> int:
        """Number of documents that failed."""
        return len(self.failures) + self.more


@dataclass(frozen=True, slots=True)
class _Task:
    """One document to compute: what was read, and the token that its output will carry."""

    id: Any
    seen: Any
    token: dict[str, Any]
    input: Any
    condition: dict[str, Any]


class Refresh:
    """Brings one watcher's outputs up to date.

    Parameters
    ----------
    database : pymongo.database.Database
        Where the documents are.
    loader : Loader
        Gives the model and the types.
    watcher : Watcher
        What to compute.
    retry_failed : bool, default False
        Compute documents again whose present input failed before.

    Notes
    -----
    Versions are those that are current when it is made. Whoever registers a new one queues a job of its own.
    """

    def __init__(
        self, database: Database[Any], loader: Loader, watcher: Watcher, *, retry_failed: bool = False
    ) -> None:
        self.collection: Collection[dict[str, Any]] = plain_database(database)[watcher.collection]
        self.watcher = watcher
        self.model = loader.store.get("model", watcher.model)
        self.codec: Codec = loader.codec()
        self.versions = {key: loader.store.get("model", model).version for key, model in watcher.features.items()}
        self.retry_failed = retry_failed
        self._loader = loader
        self._upstream = [token_path(model, key) for key, model in watcher.features.items()]
        own = watcher.key != BASE and watcher.key not in watcher.features
        self._present: dict[str, Any] = {watcher.key: {"$exists": True}} if own else {}

    @cached_property
    def predictor(self) -> Predictor:
        """The model, loaded when it is first needed."""
        return self._loader.predictor(self.model, self.watcher.batch_size)

    def run(self, ids: Sequence[Any], control: Control | None = None) -> Outcome:
        """Compute what is missing or out of date among these documents.

        A document that keeps changing faster than it can be computed is among the failures.
        """
        return _Run(self, control or Control()).run(list(ids))

    def computed(self, ids: Sequence[Any]) -> list[Any]:
        """Return which of these have an output, or a failure, of the current version, whatever its input was."""
        current = {"_id": {"$in": list(ids)}, f"{self.watcher.token_path}.v": self.model.version}
        return [document["_id"] for document in self.collection.find(current, {"_id": 1}, batch_size=len(ids) or 1)]

    def condemn(self, id: Any, message: str) -> None:
        """Note that a document's present input can't be computed, without trying."""
        tasks, _, _ = self.look([id])
        self.write([(task, ItemError("ModelError", message)) for task in tasks], [])

    # --- reading -------------------------------------------------------------------------------------------------

    def look(self, ids: list[Any], *, retry_failed: bool = False) -> tuple[list[_Task], list[Drop], Failures]:
        """Read documents.

        Returns
        -------
        tuple
            Those to compute; (id, token) of those whose output has to go; those that failed and are not tried again.
        """
        watcher, inside = self.watcher, self._inside(ids)
        tasks, drops = [], []
        failed: Failures = []
        fields = fields_read((watcher.key, watcher.token_path), watcher.features)
        for document in self.collection.find({"_id": {"$in": ids}}, fields, batch_size=len(ids)):
            id, seen = document["_id"], get_path(document, watcher.token_path, _MISSING)
            wanted = inside is None or _key(id) in inside
            value = _MISSING
            if wanted:
                value = input_of(document, watcher.key, watcher.features, self.versions, _MISSING)
            if value is _MISSING:
                if seen is not _MISSING:
                    drops.append((id, seen))
                continue
            token = {"v": self.model.version, "h": _hash(value)}
            if seen is _MISSING or (seen["v"], seen["h"]) != (token["v"], token["h"]):
                tasks.append(_Task(id, seen, token, value, self._condition(document)))
            elif "error" in seen:
                if retry_failed:
                    tasks.append(_Task(id, seen, token, value, self._condition(document)))
                else:
                    failed.append((id, seen["error"]))
        return tasks, drops, failed

    def _inside(self, ids: list[Any]) -> set[Any] | None:
        """Return which documents the watcher's filter selects; None where there is no filter."""
        if not self.watcher.filter:
            return None
        query = {"$and": [{"_id": {"$in": ids}}, self.watcher.filter]}
        return {_key(document["_id"]) for document in self.collection.find(query, {"_id": 1})}

    def _condition(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return what must still hold of the input when the output is written: that it is there."""
        return self._present | {path: {"$eq": get_path(document, path)} for path in self._upstream}

    # --- computing -----------------------------------------------------------------------------------------------

    def compute(self, tasks: Sequence[_Task], control: Control) -> list[tuple[_Task, Any]]:
        """Return each task with its encoded output, or an `ItemError`."""
        decode = partial(self.codec.decode, strict=True)  # content that is not there yet is no input
        inputs = [_attempt(decode, task.input) for task in tasks]
        good = [i for i, value in enumerate(inputs) if not isinstance(value, ItemError)]
        for i, output in zip(good, self._predict([inputs[i] for i in good], control), strict=True):
            inputs[i] = output if isinstance(output, ItemError) else _attempt(self._encode, output)
        return list(zip(tasks, inputs, strict=True))

    def _predict(self, xs: list[Any], control: Control) -> list[Any]:
        try:
            return self.predictor.predict_many(xs) if xs else []
        except Exception:
            raise
        except BaseException as error:  # raised by the model: in a worker nobody presses Ctrl-C
            if not control.guard:
                raise
            if len(xs) == 1:
                return [ItemError.of(error)]
        middle = len(xs) // 2
        return self._predict(xs[:middle], control) + self._predict(xs[middle:], control)

    def _encode(self, output: Any) -> Any:
        type_id = self.model.definition["type"]
        return self.codec.encode(output) if type_id is None else self.codec.encode_as(type_id, output)

    # --- writing -------------------------------------------------------------------------------------------------

    def write(self, computed: Sequence[tuple[_Task, Any]], drops: Sequence[Drop]) -> tuple[list[Any], Failures]:
        """Write outputs; return the ids to look at again, and those that MongoDB refused."""
        token_at, output_at = self.watcher.token_path, self.watcher.output_path
        statements: list[tuple[Any, bytes | ItemError]] = []
        for task, output in computed:
            change: dict[str, Any] = {"$set": {output_at: output, token_at: task.token}}
            if isinstance(output, ItemError):
                failed = {**task.token, "error": str(output)}
                change = {"$set": {token_at: failed}, "$unset": {output_at: ""}}
            query = {"_id": task.id, token_at: _same(task.seen), **task.condition}
            statements.append((task.id, _attempt(bson.encode, {"q": query, "u": change})))
        for id, seen in drops:
            query = {"_id": id, token_at: _same(seen)}
            statements.append((id, bson.encode({"q": query, "u": {"$unset": {output_at: "", token_at: ""}}})))
        again: list[Any] = [task.id for task, _ in computed if task.seen is not _MISSING or self.watcher.filter]
        refused: Failures = []
        for group in _groups(statements, refused):
            again += self._send(group, refused)
        return again, refused

    def _send(self, group: list[tuple[Any, bytes]], refused: Failures) -> list[Any]:
        """Send one ``update`` command; return the ids to look at again because one of them had changed."""
        # A raw command costs half of what bulk_write does. The driver does not retry it: the token makes it safe
        # that whoever runs the job does it again.
        command = {
            "update": self.collection.name,
            "updates": [RawBSONDocument(data) for _, data in group],
            "ordered": False,
            "writeConcern": _MAJORITY.document,
        }
        reply = self.collection.database.command(command)
        errors = {error["index"]: error["errmsg"] for error in reply.get("writeErrors", ())}
        refused += [(group[index][0], message) for index, message in errors.items()]
        if problem := reply.get("writeConcernError"):
            raise WTimeoutError(problem.get("errmsg"), problem.get("code"), problem)
        if reply["n"] + len(errors) == len(group):
            return []
        # Which ones lost the race is not said: look at all of them again, those that are current drop out at once.
        return [id for index, (id, _) in enumerate(group) if index not in errors]


class _Run:
    """One call of `Refresh.run`."""

    def __init__(self, refresh: Refresh, control: Control) -> None:
        self._refresh, self._control = refresh, control
        self._failures: dict[Any, dict[str, Any]] = {}
        self._stopped = False

    def run(self, ids: list[Any]) -> Outcome:
        left = ids
        for round in range(_ROUNDS):
            retry_failed = self._refresh.retry_failed and round == 0
            tasks, drops, failed = self._refresh.look(left, retry_failed=retry_failed)
            for id in left:
                self._failures.pop(_key(id), None)
            self._fail(failed)
            left = self._compute(tasks, drops, len(ids) - len(tasks))
            if self._stopped or not left:
                break
        else:
            self._fail([(id, "it changed each time it was computed; its next change queues it again") for id in left])
        return Outcome(len(ids), tuple(self._failures.values()))

    def _compute(self, tasks: list[_Task], drops: list[Drop], done: int) -> list[Any]:
        """Compute and write slice by slice, the small inputs first; return the ids to look at again."""
        ordered = sorted(tasks, key=lambda task: batches.size(task.input))
        ready: list[tuple[_Task, Any]] = []
        again, flushed, at = self._write([], drops), time.monotonic(), 0
        size = self._batch_size() if tasks else 0
        while at < len(ordered) and not self._stopped:
            with self._control.turn():
                begun = time.monotonic()
                ready += self._refresh.compute(ordered[at : at + size], self._control)
                now = time.monotonic()
            at += size
            size = max(1, size // 2) if now - begun > _LONG_S else size * 2 if now - begun < _SHORT_S else size
            self._stopped = self._control.stopped()
            if len(ready) >= 1000 or now - flushed > _FLUSH_S:
                again += self._write(ready, [])
                ready, flushed = [], now
            self._control.tell(done + min(at, len(ordered)))
        return again + self._write(ready, [])

    def _batch_size(self) -> int:
        with self._control.turn():  # a model that is loaded here takes as much as one that computes
            return self._refresh.predictor.batch_size

    def _write(self, computed: list[tuple[_Task, Any]], drops: list[Drop]) -> list[Any]:
        if not computed and not drops:
            return []
        again, refused = self._refresh.write(computed, drops)
        self._fail([(task.id, str(output)) for task, output in computed if isinstance(output, ItemError)])
        self._fail(refused)
        return again

    def _fail(self, failures: Failures) -> None:
        self._failures.update({_key(id): {"_id": id, "error": why} for id, why in failures})


def _groups(statements: list[tuple[Any, bytes | ItemError]], refused: Failures) -> Iterator[list[tuple[Any, bytes]]]:
    """Cut statements into commands of a bounded size, leaving out those that can't be sent."""
    group: list[tuple[Any, bytes]] = []
    size = 0
    for id, data in statements:
        if isinstance(data, ItemError) or len(data) > _STATEMENT_BYTES:
            refused.append((id, str(data) if isinstance(data, ItemError) else "its output is larger than 16 MB"))
            continue
        if group and size + len(data) > _COMMAND_BYTES:
            yield group
            group, size = [], 0
        group.append((id, data))
        size += len(data)
    if group:
        yield group


def _same(seen: Any) -> Any:
    return {"$exists": False} if seen is _MISSING else {"$eq": seen}


def _hash(value: Any) -> bytes:
    return hashlib.blake2b(bson.encode({"": value}), digest_size=12).digest()


def _key(id: Any) -> Any:
    return id if isinstance(id, (str, bson.ObjectId)) else bson.encode({"": id})


def _attempt(step: Any, value: Any) -> Any:
    try:
        return step(value)
    except (SuperduperError, ValueError, TypeError, OverflowError, bson.errors.BSONError) as error:
        return ItemError.of(error)
