"""Bring the outputs of one watcher up to date for some documents: the effect of an ``outputs`` job.

Exactly-once effects out of at-least-once execution: beside each output the document keeps a token ``{v, h}``, the
model's version and a hash of the input. A document whose token is right is left alone; a write asks that the token is
still the one that was read, so that of two computations that race one loses, reads again, and finds what is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import bson
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError

from superduper_nb.components.store import plain_database
from superduper_nb.documents.codec import Codec
from superduper_nb.documents.paths import BASE, get_path, token_path
from superduper_nb.errors import ModelError, SuperduperError
from superduper_nb.jobs.watchers import Watcher
from superduper_nb.models.apply import ItemError, Predictor
from superduper_nb.models.loading import Loader

__all__ = ["Outcome", "Refresh", "fields_read", "input_of"]

_ROUNDS: Final = 5
_PRIVATE: Final = ("_outputs", "_sddb", "_like", "_fold", "_score", "_distance")
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of some documents.

    Attributes
    ----------
    done : int
        Looked at: computed now, or found to be current, or not concerned.
    failures : tuple of dict
        ``{"_id", "error"}`` of each that failed.
    """

    done: int
    failures: tuple[dict[str, Any], ...] = ()

    @property
    def failed(self) -> int:
        """Number of documents that failed."""
        return len(self.failures)


@dataclass(frozen=True, slots=True)
class _Task:
    """One document to compute: what was read, and the token that its output will carry."""

    id: Any
    seen: Any
    token: dict[str, Any]
    input: Any


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
    """

    def __init__(
        self, database: Database[Any], loader: Loader, watcher: Watcher, *, retry_failed: bool = False
    ) -> None:
        self.collection: Collection[dict[str, Any]] = plain_database(database)[watcher.collection]
        self.watcher = watcher
        self.predictor, self.model = loader.model(watcher.model)
        if watcher.batch_size:
            self.predictor = _with_batch_size(self.predictor, watcher.batch_size)
        self.codec: Codec = loader.codec()
        self.parents = {key: loader.store.get("model", model) for key, model in watcher.features.items()}
        self.retry_failed = retry_failed

    def run(self, ids: Sequence[Any]) -> Outcome:
        """Compute what is missing or out of date among these documents.

        Raises
        ------
        ModelError
            Documents kept changing faster than they could be computed.
        """
        left = list(ids)
        failures: list[dict[str, Any]] = []
        for _ in range(_ROUNDS):
            tasks, drops = self._look(left)
            computed = self._compute(tasks)
            failures += [{"_id": task.id, "error": str(out)} for task, out in computed if isinstance(out, ItemError)]
            lost, broken = self._write(computed, drops)
            failures += broken
            if not lost:
                return Outcome(done=len(ids), failures=tuple(failures))
            again = set(map(_key, lost))
            failures = [failure for failure in failures if _key(failure["_id"]) not in again]
            left = lost
        raise ModelError(
            f"{len(left)} documents changed each time they were computed; the next write of them starts a new job."
        )

    def _look(self, ids: list[Any]) -> tuple[list[_Task], list[tuple[Any, Any]]]:
        """Read documents; return those to compute, and (id, token) of those whose output has to go."""
        watcher, inside = self.watcher, self._inside(ids)
        tasks, drops = [], []
        for document in self.collection.find({"_id": {"$in": ids}}, fields_read(watcher)):
            seen = _token(document, watcher)
            wanted = inside is None or _key(document["_id"]) in inside
            value = self._input(document) if wanted else _MISSING
            if value is _MISSING:
                if seen is not _MISSING:
                    drops.append((document["_id"], seen))
                continue
            token = {"v": self.model.version, "h": _hash(value)}
            if not self._current(seen, token):
                tasks.append(_Task(document["_id"], seen, token, value))
        return tasks, drops

    def _inside(self, ids: list[Any]) -> set[Any] | None:
        """Return which documents the watcher's filter selects; None where there is no filter."""
        if not self.watcher.filter:
            return None
        query = {"$and": [{"_id": {"$in": ids}}, self.watcher.filter]}
        return {_key(document["_id"]) for document in self.collection.find(query, {"_id": 1})}

    def _input(self, document: dict[str, Any]) -> Any:
        return input_of(document, self.watcher, {key: model.version for key, model in self.parents.items()}, _MISSING)

    def _current(self, seen: Any, token: dict[str, Any]) -> bool:
        if seen is _MISSING or (seen["v"], seen["h"]) != (token["v"], token["h"]):
            return False
        return not (self.retry_failed and "error" in seen)

    def _compute(self, tasks: list[_Task]) -> list[tuple[_Task, Any]]:
        decode = partial(self.codec.decode, strict=True)  # content that is not there yet is no input
        inputs = [_attempt(decode, task.input) for task in tasks]
        good = [i for i, value in enumerate(inputs) if not isinstance(value, ItemError)]
        for i, output in zip(good, self.predictor.predict_many([inputs[i] for i in good]), strict=True):
            inputs[i] = output if isinstance(output, ItemError) else _attempt(self._encode, output)
        return list(zip(tasks, inputs, strict=True))

    def _encode(self, output: Any) -> Any:
        type_id = self.model.definition["type"]
        return self.codec.encode(output) if type_id is None else self.codec.encode_as(type_id, output)

    def _write(
        self, computed: list[tuple[_Task, Any]], drops: list[tuple[Any, Any]]
    ) -> tuple[list[Any], list[dict[str, Any]]]:
        """Write outputs; return the ids whose token had changed meanwhile, and those MongoDB refused."""
        token_at, output_at = self.watcher.token_path, self.watcher.output_path
        updates, ids = [], []
        for task, output in computed:
            if isinstance(output, ItemError):
                change: dict[str, Any] = {
                    "$set": {token_at: {**task.token, "error": str(output)}},
                    "$unset": {output_at: ""},
                }
            else:
                change = {"$set": {output_at: output, token_at: task.token}}
            updates.append(UpdateOne({"_id": task.id, token_at: _same(task.seen)}, change))
            ids.append(task.id)
        for id, seen in drops:
            updates.append(UpdateOne({"_id": id, token_at: _same(seen)}, {"$unset": {output_at: "", token_at: ""}}))
            ids.append(id)
        if not updates:
            return [], []
        return self._bulk(updates, ids)

    def _bulk(self, updates: list[UpdateOne], ids: list[Any]) -> tuple[list[Any], list[dict[str, Any]]]:
        try:
            matched = self.collection.bulk_write(updates, ordered=False).matched_count
            refused = []
        except BulkWriteError as error:
            matched = error.details["nMatched"]
            refused = [{"_id": ids[e["index"]], "error": e["errmsg"]} for e in error.details["writeErrors"]]
        if matched + len(refused) == len(updates):
            return [], refused
        # Which ones lost the race is not said: look at all of them again, those that are current drop out at once.
        out = {_key(failure["_id"]) for failure in refused}
        return [id for id in ids if _key(id) not in out], refused


def fields_read(watcher: Watcher) -> dict[str, int] | None:
    """Return the projection that a watcher's input and token need; None for whole documents."""
    if watcher.key == BASE:
        return None
    paths = {watcher.key, watcher.token_path}
    for key, model in watcher.features.items():
        paths |= {f"_outputs.{key}.{model}", token_path(model, key)}
    return dict.fromkeys(sorted(paths), 1)


def input_of(document: Mapping[str, Any], watcher: Watcher, versions: Mapping[str, int], missing: Any) -> Any:
    """Return the raw input of a watcher: the value at its key, with features in place of raw values.

    Parameters
    ----------
    versions : mapping of str to int
        For each key with a feature, the model version whose output counts; another one's is as good as missing.
    missing : object
        Returned where the key, or an upstream output, is not there.
    """
    outputs = {}
    for key, model in watcher.features.items():
        token = get_path(document, token_path(model, key), None)
        output = get_path(document, f"_outputs.{key}.{model}", missing)
        if output is missing or token is None or token["v"] != versions[key]:
            return missing
        outputs[key] = output
    if watcher.key in outputs:
        return outputs[watcher.key]
    if watcher.key != BASE:
        return get_path(document, watcher.key, missing)
    whole = {name: value for name, value in document.items() if name not in _PRIVATE}
    return {**whole, **outputs}


def _token(document: Mapping[str, Any], watcher: Watcher) -> Any:
    return get_path(document, watcher.token_path, _MISSING)


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


def _with_batch_size(predictor: Predictor, batch_size: int) -> Predictor:
    import copy

    other = copy.copy(predictor)
    other.batch_size = batch_size
    return other
