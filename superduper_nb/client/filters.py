"""Filters with values that BSON does not know: numpy's numbers, vectors, objects of registered types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from superduper_nb.documents.codec import Codec

__all__ = ["encoded_filter"]

_TAKE_LISTS: Final = frozenset({"$in", "$nin", "$all", "$mod"})


def encoded_filter(codec: Codec, filter: Any) -> Any:
    """Return a filter as MongoDB takes it: values as they would be stored, and arrays as lists behind ``$in``."""
    if not isinstance(filter, Mapping) or codec.plain(filter):
        return filter
    return codec.encode(_with_lists(filter))


def _with_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _listed(item) if name in _TAKE_LISTS else _with_lists(item) for name, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _listed(value: Any) -> Any:
    return list(value) if getattr(value, "ndim", 0) else value
