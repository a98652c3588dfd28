"""Documents as batches: streamed from MongoDB in ranges of ``_id``, shuffled by buffers, the same for the same seed.

The collection is never in memory as a whole. One look at the identifiers cuts it into blocks; an epoch draws the blocks
in a random order and shuffles a buffer of them at a time. What was prepared stays, up to a bound, for the next epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from pymongo.collection import Collection
from pymongo.database import Database

from superduper_nb.components.validation import COPIES
from superduper_nb.errors import SuperduperError

__all__ = ["Block", "Documents", "FrozenDocuments", "Samples", "Skipped"]

_BLOCK: Final = 128
_BUFFER_BYTES: Final = 64 * 2**20
_BUFFER_DOCUMENTS: Final = 4096
_FIRST: Final = 20
_END: Final = object()

Block = tuple[Any, Any, int]
"""The first ``_id`` of a range, the first after it (None: there is none), and how many documents it held."""


@dataclass(slots=True)
class Skipped:
    """Documents that could not be learnt from.

    Attributes
    ----------
    reasons : Counter
        How many for which reason.
    first : list of dict
        The first of them: ``{"_id", "error"}``.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, Any]] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)

    def add(self, id: Any, error: Exception) -> None:
        """Count one; once, though each epoch meets it again."""
        import bson

        if (key := bson.encode({"": id})) in self._seen:
            return
        self._seen.add(key)
        why = str(error) if isinstance(error, SuperduperError) else f"{type(error).__name__}: {error}"
        self.reasons[why[:200] if len(self.reasons) < _FIRST else "other reasons"] += 1
        if len(self.first) < _FIRST:
            self.first.append({"_id": id, "error": why[:1000]})

    def __len__(self) -> int:
        return len(self._seen)


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
            elif size == _BLOCK:
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


class Samples:
    """Prepared documents, in the order in which an epoch takes them.

    Parameters
    ----------
    documents : Documents
        What they are made of.
    prepare : callable
        ``document -> sample``; a document for which it raises is skipped, and counted.
    skipped : Skipped
        Counts them.
    seed : int
        Of the shuffling.
    buffer : int, optional
        So many documents are shuffled together; default: as many as fit into 64 MB.
    cache_bytes : int, default 0
        So much of what was prepared is kept.
    """

    def __init__(
        self,
        documents: Documents,
        prepare: Callable[[dict[str, Any]], Any],
        skipped: Skipped,
        *,
        seed: int = 0,
        buffer: int | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.documents, self.skipped = documents, skipped
        self.buffer = buffer or max(_BLOCK, min(_BUFFER_DOCUMENTS, _BUFFER_BYTES // documents.document_bytes))
        self._prepare, self._seed, self._left = prepare, seed, cache_bytes
        self._keeps = cache_bytes > 0
        self._cache: dict[int, list[Any]] = {}

    def epoch(self, epoch: int) -> Iterator[Any]:
        """Yield the samples of an epoch, shuffled."""
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self.documents.blocks)).tolist()
        each = max(1, self.buffer // _BLOCK)
        for samples in self._groups([order[at : at + each] for at in range(0, len(order), each)]):
            for row in rng.permutation(len(samples)).tolist():
                yield samples[row]

    def in_order(self) -> Iterator[Any]:
        """Yield the samples by ``_id``."""
        for samples in self._groups([[number] for number in range(len(self.documents.blocks))]):
            yield from samples

    def _groups(self, groups: list[list[int]]) -> Iterator[list[Any]]:
        """Yield the samples of each group of blocks."""
        if len(self._cache) == len(self.documents.blocks):
            return (self._read(group)() for group in groups)
        return self._read_ahead(groups)

    def _read_ahead(self, groups: list[list[int]]) -> Iterator[list[Any]]:
        """Yield the samples of each group; the next one is read while one is worked on.

        It is prepared beside the training, too, unless nothing is to be kept: then `preprocess` may draw at random, and
        draws from the training's own generators, in its order.
        """

        def ahead(group: list[int]) -> Callable[[], list[Any]]:
            prepare = self._read(group)
            if not self._keeps:
                return prepare
            samples = prepare()
            return lambda: samples

        with ThreadPoolExecutor(1, thread_name_prefix="superduper-training-reader") as reader:
            coming = [reader.submit(ahead, group) for group in groups[:1]]
            for n in range(len(groups)):
                samples = coming.pop().result()
                coming = [reader.submit(ahead, group) for group in groups[n + 1 : n + 2]]
                yield samples()

    def _read(self, group: list[int]) -> Callable[[], list[Any]]:
        """Read what is not kept; return what prepares it."""
        blocks = self.documents.blocks
        read = [(n, None if n in self._cache else self.documents.read(blocks[n])) for n in group]
        return lambda: [sample for number, documents in read for sample in self._prepared(number, documents)]

    def _prepared(self, number: int, documents: list[dict[str, Any]] | None) -> list[Any]:
        if documents is None:
            return self._cache[number]
        samples = []
        for document in documents:
            try:
                samples.append(self._prepare(document))
            except Exception as error:
                self.skipped.add(document["_id"], error)
        if (size := sum(map(_bytes, samples))) <= self._left:
            self._left -= size
            self._cache[number] = samples
        return samples


def _bytes(sample: Any) -> int:
    """Estimate the memory of a sample."""
    if hasattr(sample, "element_size"):
        return int(sample.element_size() * sample.nelement()) + 128
    if isinstance(sample, np.ndarray):
        return int(sample.nbytes) + 128
    if isinstance(sample, dict):
        return 64 + sum(_bytes(key) + _bytes(value) for key, value in sample.items())
    if isinstance(sample, (list, tuple)):
        return 64 + sum(map(_bytes, sample))
    return 64 + (len(sample) if isinstance(sample, (str, bytes)) else 0)
