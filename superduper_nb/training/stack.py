"""All samples of a training as one batch, from which others are picked row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch

__all__ = ["Stack", "memory"]

_OVERHEAD: Final = 128
"""Bytes of a tensor or an array beside its elements."""


class Stack:
    """A batch of everything.

    Parameters
    ----------
    whole : nested tensors
        The batch.
    """

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    @classmethod
    def of(cls, samples: list[Any], collate: Callable[[list[Any]], Any]) -> Stack | None:
        """Return the stack of samples; None where they are not of one kind, or make no tensors of one row each."""
        kinds = set(map(_kind, samples[:1]))
        if not kinds or None in kinds or any(_kind(sample) not in kinds for sample in samples):
            return None
        whole = collate(samples)
        return cls(whole) if all(_has_rows(leaf, len(samples)) for leaf in _leaves(whole)) else None

    def take(self, rows: torch.Tensor) -> Any:
        """Return the batch of some rows: a copy, that a model may write on."""
        return _picked(self._whole, rows)


def _kind(sample: Any) -> Any:
    """Return what has to be the same for samples to be rows of one tensor; None: they can't be."""
    if isinstance(sample, torch.Tensor):
        return None if sample.requires_grad else (sample.dtype, sample.shape, sample.device)
    if isinstance(sample, (np.ndarray, np.generic)):
        return sample.dtype, sample.shape
    if isinstance(sample, (bool, int, float)):
        return type(sample)
    parts = sample.items() if isinstance(sample, dict) else enumerate(sample) if _is_row(sample) else None
    if parts is None:
        return None
    kinds = tuple((name, _kind(part)) for name, part in parts)
    return None if any(kind is None for _, kind in kinds) else (type(sample), kinds)


def _is_row(sample: Any) -> bool:
    return isinstance(sample, (list, tuple))


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping) or _is_row(batch):
        for part in _parts(batch):
            yield from _leaves(part)
    else:
        yield batch


def _parts(batch: Any) -> Iterable[Any]:
    return batch.values() if isinstance(batch, Mapping) else batch


def _has_rows(leaf: Any, count: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == count


def _picked(batch: Any, rows: torch.Tensor) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.index_select(0, rows)
    if isinstance(batch, Mapping):
        return {name: _picked(part, rows) for name, part in batch.items()}
    parts = [_picked(part, rows) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)


def memory(sample: Any) -> int:
    """Estimate the memory of a sample."""
    if isinstance(sample, torch.Tensor):
        return int(sample.element_size() * sample.nelement()) + _OVERHEAD
    if isinstance(sample, np.ndarray):
        return int(sample.nbytes) + _OVERHEAD
    if isinstance(sample, dict):
        return 64 + sum(memory(key) + memory(value) for key, value in sample.items())
    if isinstance(sample, (list, tuple)):
        return 64 + sum(map(memory, sample))
    return 64 + (len(sample) if isinstance(sample, (str, bytes)) else 0)
