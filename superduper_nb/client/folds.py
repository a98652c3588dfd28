"""Which documents are for training, which for validation (field ``_fold``)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pymongo.collection import Collection

__all__ = ["folds", "give_folds"]

_FEW: Final = 1000
"""Of fewer documents exactly the wanted share gets into each fold; of more, MongoDB draws for each."""


def folds(count: int, valid_fraction: float, rng: random.Random | None = None) -> Sequence[str]:
    """Draw a fold for each of `count` documents inserted together.

    A batch gets its exact share, and at least one of each fold where it has two documents or more; a single document is
    drawn by chance.
    """
    rng = rng or random.Random()
    if count == 1 or not valid_fraction:
        return ["valid" if rng.random() < valid_fraction else "train" for _ in range(count)]
    valid = min(count - 1, max(1, round(count * valid_fraction)))
    chosen = set(rng.sample(range(count), valid))
    return ["valid" if i in chosen else "train" for i in range(count)]


def give_folds(documents: Collection[Any], within: Mapping[str, Any], valid_fraction: float) -> None:
    """Give a fold to the documents that match and have none.

    They were there before anything was registered, or another program wrote them.
    """
    none: dict[str, Any] = {"_fold": {"$exists": False}}
    without = {"$and": [within, none]}
    first = [document["_id"] for document in documents.find(without, {"_id": 1}).limit(_FEW)]
    if len(first) == _FEW:
        valid = {"$lt": [{"$rand": {}}, valid_fraction]}
        documents.update_many(without, [{"$set": {"_fold": {"$cond": [valid, "valid", "train"]}}}])
        return
    drawn = folds(len(first), valid_fraction) if first else []
    for fold in sorted(set(drawn)):
        chosen = [id for id, its in zip(first, drawn, strict=True) if its == fold]
        documents.update_many({"_id": {"$in": chosen}, **none}, {"$set": {"_fold": fold}})
