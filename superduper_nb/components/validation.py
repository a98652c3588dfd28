"""Validation sets: copies of documents, frozen, to measure on (collection ``_sddb.validation``).

A copy is a document of its own with the copied one inside, so a document may be in several sets, and nothing that
watches a collection sees it. Each version of a set has its own copy; the documents are written first, then the set is
registered, so a set that can be seen is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from bson import ObjectId
from pymongo.collection import Collection
from pymongo.database import Database
from toolz import partition_all

from superduper_nb.components.store import Component, plain_database
from superduper_nb.errors import InvalidInputError

__all__ = ["COPIES", "ValidationStore"]

COPIES: Final = "_sddb.validation"
_BATCH: Final = 500

Split = Callable[[dict[str, Any]], Any]
"""``document -> (query part, rest)``, all as it is stored."""


class ValidationStore:
    """The copies of one database.

    Parameters
    ----------
    database : pymongo.database.Database
        Whose.
    """

    def __init__(self, database: Database[Any]) -> None:
        self.database = plain_database(database)
        self._copies: Collection[dict[str, Any]] = self.database[COPIES]

    def copy(
        self, collection: str, id: str, filter: Mapping[str, Any], sample_size: int | None, split: Split | None
    ) -> tuple[str, int]:
        """Copy documents; return the name of the copy, and how many it holds."""
        self._copies.create_index([("copy", 1), ("n", 1)])
        sample: list[dict[str, Any]] = [{"$sample": {"size": sample_size}}] if sample_size else [{"$sort": {"_id": 1}}]
        stages = [{"$match": filter}, *sample, {"$unset": _OWN}]
        found = self.database[collection].aggregate(stages, allowDiskUse=True)
        name, count = str(ObjectId()), 0
        try:
            for part in partition_all(_BATCH, enumerate(_rows(found, split))):
                rows = [{"set": {"collection": collection, "id": id}, "copy": name, "n": n, **row} for n, row in part]
                self._copies.insert_many(rows, ordered=False)
                count += len(rows)
        except BaseException:
            self._copies.delete_many({"copy": name})
            raise
        return name, count

    def documents(self, component: Component, skip: int = 0, limit: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the rows of a set in their order: ``document``, and ``split`` where it has a splitter."""
        mine = {"copy": component.definition["copy"]}
        yield from self._copies.find(mine, {"_id": 0, "document": 1, "split": 1}).sort("n", 1).skip(skip).limit(limit)

    def forget(self, collection: str, id: str) -> None:
        """Delete all copies of a set."""
        self._copies.delete_many({"set": {"collection": collection, "id": id}})


_OWN: Final = ["_sddb", "_like"]
"""Bookkeeping of the package, which is no part of a copy. (Outputs are: a copy is what the document was.)"""


def _rows(documents: Iterable[dict[str, Any]], split: Split | None) -> Iterator[dict[str, Any]]:
    for document in documents:
        if split is None:
            yield {"document": document}
            continue
        parts = split(document)
        if not isinstance(parts, (list, tuple)) or len(parts) != 2:
            raise InvalidInputError(
                f"The splitter must return (query part, rest) for a document; it made {parts!r:.80}."
            )
        yield {"document": document, "split": list(parts)}
