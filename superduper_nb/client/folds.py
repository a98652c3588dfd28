"""Which documents are for training, which for validation (field ``_fold``)."""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["folds"]


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
