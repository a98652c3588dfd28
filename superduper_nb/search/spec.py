"""What an index is of, as a value that travels to where it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from superduper_nb.search.index import VectorIndex
from superduper_nb.search.keeper import Keeper
from superduper_nb.search.live import LiveIndex
from superduper_nb.search.measures import Measure
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.source import Source

__all__ = ["IndexSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """All that it takes to make an index, in whatever process.

    Attributes
    ----------
    database, collection, id : str
        Its name; `id` is that of a part, where it is one.
    definition : str
        What tells it from others of that name.
    measure : Measure
    options : IndexOptions
    model, key, version
        Whose outputs.
    filter : mapping
        Only documents that match it.
    """

    database: str
    collection: str
    id: str
    definition: str
    measure: Measure
    options: IndexOptions
    model: str
    key: str
    version: int
    filter: Mapping[str, Any]

    def part(self, number: int, of: int) -> IndexSpec:
        """Return one of several that together are this one: documents by the hash of their ``_id``, as MongoDB has it.

        References
        ----------
        https://www.mongodb.com/docs/manual/reference/operator/aggregation/toHashedIndexKey/ (MongoDB 6.0.5)
        """
        if of == 1:
            return self
        rest = {"$mod": [{"$toHashedIndexKey": "$_id"}, of]}  # of a negative hash it is negative
        mine = {"$expr": {"$in": [rest, [number, number - of]]}}
        filter = {"$and": [self.filter, mine]} if self.filter else mine
        return replace(self, id=f"{self.id}#{number + 1}/{of}", filter=filter)

    def opened(self, client: MongoClient[dict[str, Any]], snapshots: Path | None) -> LiveIndex:
        """Make it; it is loaded when it is started."""
        collection = client[self.database][self.collection]
        identity = {"definition": self.definition, "model": self.model, "version": self.version}
        return LiveIndex(
            VectorIndex(self.measure, self.options, folder=snapshots),
            Source(collection, model=self.model, key=self.key, version=self.version, filter=self.filter),
            keeper=None if snapshots is None else Keeper(snapshots, collection, self.id, identity),
        )
