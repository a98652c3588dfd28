"""The documents of a training, in ranges of ``_id``: never all of them in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final

from pymongo.collection import Collection
from pymongo.database import Database

from superduper_nb.components.validation import COPIES

__all__ = ["BLOCK", "Block", "Documents", "FrozenDocuments"]

BLOCK: Final = 128
"""So many documents has a range."""
_END: Final = object()

Block = tuple[Any, Any, int]
"""The first ``_id`` of a range, the first after it (None: there is none), and how many documents it held."""


class Documents:
    """The documents of a query, in blocks.

    Parameters
    ----------
    collection : pymongo.collection.Collection
        Plain pymongo's.
    filter : dict
        Which of them.
    projection : dict, optional
        What is read of each.
    blocks : sequence of Block, optional
        Their ranges, where an earlier look is to be kept.
    """

    def __init__(
        self,
        collection: Collection[dict[str, Any]],
        filter: dict[str, Any],
        projection: dict[str, Any] | None = None,
        *,
        blocks: Sequence[Block] | None = None,
    ) -> None:
        self._collection, self._filter, self._projection = collection, filter, projection
        self._blocks = blocks

    @cached_property
    def blocks(self) -> list[Block]:
        """The ranges: looked for when they are first needed."""
        return list(self._cut() if self._blocks is None else self._blocks)

    def __len__(self) -> int:
        return sum(size for _, _, size in self.blocks)

    def _cut(self) -> Iterator[Block]:
        first: Any = _END
        size = 0
        for document in self._collection.find(self._filter, {"_id": 1}).sort("_id", 1):
            if first is _END:
                first = document["_id"]
            elif size == BLOCK:
                yield first, document["_id"], size
                first, size = document["_id"], 0
            size += 1
        if size:
            yield first, None, size

    def read(self, block: Block) -> list[dict[str, Any]]:
        """Return the documents of a block."""
        low, high, _ = block
        # Bounds of the index, unlike a query, compare identifiers of all types.
        found = self._collection.find(self._filter, self._projection).hint([("_id", 1)]).min([("_id", low)])
        return list(found if high is None else found.max([("_id", high)]))

    def aggregate(self, pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what a pipeline makes of the documents."""
        return list(self._collection.aggregate([{"$match": self._filter}, *pipeline], allowDiskUse=True))

    @property
    def document_bytes(self) -> int:
        """About the size of a document."""
        stats = list(self._collection.aggregate([{"$collStats": {"storageStats": {}}}]))
        return max(1, sum(int(each["storageStats"].get("avgObjSize", 0)) for each in stats) // max(1, len(stats)))


class FrozenDocuments(Documents):
    """The documents of a validation set, in the order in which they were copied.

    Parameters
    ----------
    database : pymongo.database.Database
        Plain pymongo's.
    copy : str
        Which copy.
    target : str, optional
        A path that each must have.
    """

    def __init__(self, database: Database[dict[str, Any]], copy: str, target: str | None = None) -> None:
        wanted = {f"document.{target}": {"$exists": True, "$ne": None}} if target else {}
        super().__init__(database[COPIES], {"copy": copy, **wanted}, {"document": 1})

    def read(self, block: Block) -> list[dict[str, Any]]:
        """Return the documents of a block."""
        return [row["document"] for row in super().read(block)]
