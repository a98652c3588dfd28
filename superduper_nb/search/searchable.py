"""What a search asks of an index, in one piece or in many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from bson import Timestamp

from superduper_nb.search.hits import Hits
from superduper_nb.search.measures import Floats, Measure
from superduper_nb.search.subset import Subset

__all__ = ["Following", "Searchable"]


class Searchable(Protocol):
    """Vectors by identifier: a `VectorIndex`, or shards of one for the length of a search."""

    @property
    def measure(self) -> Measure:
        """How near two vectors are."""

    @property
    def dimension(self) -> int | None:
        """Numbers a vector; None while it is empty."""

    def __len__(self) -> int: ...

    def search(
        self, query: Floats, n: int, *, among: Subset | None = None, exact: bool = False, unusual: bool = False
    ) -> Hits:
        """Return the `n` nearest, of all or `among` some identifiers; an `unusual` query is like none of them."""

    def search_many(self, queries: Sequence[Floats], n: int, *, exact: bool = False) -> list[Hits]:
        """Return the `n` nearest of each query."""

    def vector(self, id: Any) -> Floats | None:
        """Return the vector of an identifier, or None."""

    def vectors(self, ids: Sequence[Any]) -> tuple[list[int], Floats]:
        """Return the positions of the identifiers that are there, and their vectors."""

    @property
    def missing(self) -> int:
        """Parts that did not answer: what they hold was not found."""


class Following(Protocol):
    """An index that follows its collection: a `LiveIndex`, or shards of one."""

    version: int

    @property
    def ready(self) -> bool:
        """It is loaded and follows its collection."""

    @property
    def size(self) -> int:
        """Vectors in it."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes in this process."""

    def start(self) -> None:
        """Begin to load."""

    def close(self, *, keep: bool = False) -> None:
        """Stop following; leave a snapshot if it is to be kept."""

    def discard_snapshot(self) -> None:
        """Remove the snapshot, so that the next one is loaded from MongoDB."""

    def seeing(self, after: Timestamp | None, timeout: float) -> Searchable:
        """Return what to search in, once it has seen the writes up to `after`; raises `DeadlineError`."""

    def moment(self) -> object | None:
        """Return an object that stays while nothing in the collection changes; None where that is not known."""

    def older_left(self) -> bool:
        """Say whether there are documents that only an older version has computed."""

    def describe(self) -> dict[str, Any]:
        """Say how large, how fresh and in what state it is."""
