"""What a change stream tells of documents, as far as jobs follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import bson
from bson.codec_options import DEFAULT_CODEC_OPTIONS, CodecOptions
from toolz import partition_all

from superduper_nb.search.ids import id_key

__all__ = ["Change", "Noted", "changes_of", "untouched"]

_FOLLOWED: Final = ("insert", "update", "replace", "delete")
_PRIVATE: Final = r"^(_outputs|_sddb|_like|_fold|_score|_distance)(\.|$)"


class Change(NamedTuple):
    """A document that changed.

    Attributes
    ----------
    paths : set of str or None
        Which of its paths; None stands for all of them.
    new : bool
        It was inserted, with no bookkeeping of ours in it.
    """

    id: Any
    paths: set[str] | None
    new: bool

    @classmethod
    def of(cls, event: dict[str, Any]) -> Change:
        """Read an event of the stream."""
        paths = set(event["paths"]) if event["operationType"] == "update" else None
        return cls(event["documentKey"]["_id"], paths, event["new"])


class Noted:
    """Changes that are kept back, as BSON: 30 bytes for an insert, where objects would take 200.

    Parameters
    ----------
    options : bson.codec_options.CodecOptions
        Those of the connection that reads the stream.
    """

    def __init__(self, options: CodecOptions[dict[str, Any]] = DEFAULT_CODEC_OPTIONS) -> None:
        self._options, self._bytes, self._count = options, bytearray(), 0

    def __len__(self) -> int:
        return self._count

    def note(self, change: Change) -> None:
        """Add a change."""
        paths = None if change.paths is None else sorted(change.paths)
        self._bytes += bson.encode({"i": change.id, "p": paths, "n": change.new}, codec_options=self._options)
        self._count += 1

    def parts(self, size: int) -> Iterator[tuple[Change, ...]]:
        """Yield the changes in their order, at most so many at a time."""
        found = bson.decode_iter(bytes(self._bytes), self._options)
        changes = (Change(each["i"], None if each["p"] is None else set(each["p"]), each["n"]) for each in found)
        yield from partition_all(size, changes)


def untouched(changes: Sequence[Change]) -> list[Any]:
    """Return the documents that were inserted and not changed since."""
    changed = {id_key(change.id) for change in changes if not change.new}
    return [change.id for change in changes if change.new and id_key(change.id) not in changed]


def changes_of(collections: list[str]) -> list[dict[str, Any]]:
    """Return the pipeline of a stream over these collections.

    It asks for identifiers and paths only (a change may be as large as a document), and not for our own fields.
    """
    names = {"$map": {"input": {"$objectToArray": "$updateDescription.updatedFields"}, "in": "$$this.k"}}
    cut = {"$map": {"input": {"$ifNull": ["$updateDescription.truncatedArrays", []]}, "in": "$$this.field"}}
    paths = {"$concatArrays": [names, "$updateDescription.removedFields", cut]}
    private = {"$regexMatch": {"input": "$$this", "regex": _PRIVATE}}
    theirs = {"$filter": {"input": {"$ifNull": [paths, []]}, "cond": {"$not": private}}}
    new = {"$and": [{"$eq": ["$operationType", "insert"]}, {"$eq": [{"$type": "$fullDocument._sddb"}, "missing"]}]}
    as_they_are = dict.fromkeys(("operationType", "ns", "documentKey", "clusterTime", "wallTime"), 1)
    return [
        {"$match": {"ns.coll": {"$in": collections}, "operationType": {"$in": _FOLLOWED}}},
        {"$project": {**as_they_are, "paths": theirs, "new": new}},
        {"$match": {"$or": [{"operationType": {"$ne": "update"}}, {"paths": {"$ne": []}}]}},
    ]
