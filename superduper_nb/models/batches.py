"""Batches: from a list of items to what a model takes, and from what it answers back to rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from superduper_nb.errors import InvalidInputError

__all__ = ["check_device", "collate", "place", "rows", "size", "stack", "to_device"]


def place(module: Any, device: str) -> Any:
    """Put a module on its device, in evaluation mode; return the device."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidInputError(f"device={device!r}, but torch sees no GPU here. Use device='auto' or 'cpu'.")
    try:
        chosen = torch.device(device)
        module.to(chosen).eval()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidInputError(f"The model can't be put on device={device!r}: {error}") from error
    return chosen


def check_device(device: object, *, here: bool) -> None:
    """Raise `InvalidInputError` unless `device` names a torch device; with `here`, one of this machine."""
    import torch

    try:
        chosen = torch.device(device) if isinstance(device, str) else None
    except RuntimeError:
        chosen = None
    if chosen is None:
        raise InvalidInputError(f"device={device!r:.80} is no torch device. Use 'auto', 'cpu', 'cuda' or 'cuda:1'.")
    try:
        if here:
            torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InvalidInputError(
            f"device={device!r}, but torch sees no such device here. Use device='auto' or 'cpu'; "
            "if workers elsewhere have it, say which: resources={'GPU': 1}."
        ) from None


def collate(items: list[Any]) -> Any:
    """Build a batch: tensors, arrays and numbers are stacked, dicts and tuples by their parts, strings stay a list."""
    from torch.utils.data import default_collate

    return default_collate(items)


def stack(items: list[Any]) -> Any:
    """Build what an estimator takes: one array where the items are arrays or rows of numbers, else the list."""
    first = items[0]
    if isinstance(first, np.ndarray) or (isinstance(first, (list, tuple)) and all(map(_is_number, first))):
        return np.stack([np.asarray(item) for item in items])
    return items


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, np.number))


def to_device(batch: Any, device: Any) -> Any:
    """Move the tensors of a nested batch; leave everything else as it is."""
    if device is None:
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple takes its parts one by one
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def rows(output: Any) -> list[Any]:
    """Split a model's answer to a batch into one answer for each input."""
    if getattr(output, "ndim", None) == 0:
        raise InvalidInputError(
            "the model answered a 0-d value, a single number, to a batch: it must answer one row an input"
        )
    if hasattr(output, "detach"):
        return _tensor_rows(output.detach().cpu())
    if hasattr(output, "toarray"):  # a sparse matrix
        output = output.toarray()
    elif hasattr(output, "to_numpy"):  # a data frame: iterated it would give its columns
        output = output.to_numpy()
    if isinstance(output, np.ndarray):
        return [row.copy() if isinstance(row, np.ndarray) else row.item() for row in output]
    if isinstance(output, Mapping):
        return _named_rows(output)
    if isinstance(output, tuple):
        return _transpose(list(output))
    if isinstance(output, list):
        return output
    raise InvalidInputError(f"the model answered a {type(output).__name__} to a batch: it must answer one row an input")


def _tensor_rows(output: Any) -> list[Any]:
    """Return one copy a row: a view would keep the whole batch alive as long as any of its rows."""
    import torch

    if (
        output.dtype == torch.float32 and output.ndim == 2 and output.layout == torch.strided
    ):  # half of what clone costs
        return [torch.from_numpy(row.copy()) for row in output.numpy()]
    return [row.clone() for row in output]


def _named_rows(output: Mapping[Any, Any]) -> list[Any]:
    columns = {}
    for name, column in output.items():
        try:
            columns[name] = rows(column)
        except InvalidInputError as error:
            raise InvalidInputError(f"{name!r}: {error}") from None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _transpose(columns: list[Any]) -> list[Any]:
    return list(zip(*(rows(column) for column in columns), strict=True))


def size(item: Any) -> int:
    """Measure an item by the elements of its largest part (a text's tokens, say)."""
    if hasattr(item, "numel"):
        return int(item.numel())
    if isinstance(item, np.ndarray):
        return int(item.size)
    if isinstance(item, Mapping):
        return max(map(size, item.values()), default=0)
    if isinstance(item, (list, tuple, str)):
        return len(item)
    return 1
