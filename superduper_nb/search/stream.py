"""What a change stream tells an index: which documents, and up to when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Timestamp
from pymongo.errors import ConnectionFailure, PyMongoError

from superduper_nb.search.ids import id_key

__all__ = ["PIPELINE", "CollectionGoneError", "News", "may_resume", "time_of"]

_BEGINNING: Final = Timestamp(0, 0)
_NAMES: Final = {"$map": {"input": {"$objectToArray": "$updateDescription.updatedFields"}, "in": "$$this.k"}}
PIPELINE: Final[list[dict[str, Any]]] = [
    {
        "$project": {
            "operationType": 1,
            "clusterTime": 1,
            "documentKey._id": 1,
            "updated": {"$cond": ["$updateDescription", _NAMES, []]},
            "removed": "$updateDescription.removedFields",
        }
    }
]


@dataclass(slots=True)
class News:
    """What the stream told since the last time.

    Attributes
    ----------
    changed : list
        Documents whose own content may have changed.
    computed : list
        Documents of which only outputs changed.
    at : bson.Timestamp
        When the last of the changes was made.
    token : mapping
        Up to where.
    drained : bool
        Everything up to the token has been read; else more may have happened at its very time.
    """

    changed: list[Any] = field(default_factory=list)
    computed: list[Any] = field(default_factory=list)
    at: Timestamp = _BEGINNING
    token: Mapping[str, Any] | None = None
    drained: bool = True

    def __len__(self) -> int:
        return len(self.changed) + len(self.computed)

    @property
    def ids(self) -> dict[Any, Any]:
        """Each document once, by the key of its identifier."""
        return {id_key(id): id for id in (*self.changed, *self.computed)}


class CollectionGoneError(Exception):
    """The collection was dropped or renamed: what the index holds is void."""


def may_resume(error: Exception) -> bool:
    """Say whether a stream that ended so goes on where it was."""
    if not isinstance(error, PyMongoError):
        return False
    return isinstance(error, ConnectionFailure) or error.has_error_label("ResumableChangeStreamError")


def time_of(token: Mapping[str, Any]) -> Timestamp:
    """Read the cluster time in a resume token: the first eight bytes after the type byte of its key string.

    References
    ----------
    MongoDB source, ``src/mongo/db/pipeline/resume_token.h``.
    """
    data = bytes.fromhex(token["_data"][:18])
    return Timestamp(int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:9], "big"))
