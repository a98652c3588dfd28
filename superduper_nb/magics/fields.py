"""Which fields the documents of a collection have, judged by a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from superduper_nb.client import Collection

__all__ = ["SAMPLE", "Field", "sampled"]

SAMPLE: Final = 100
DEEPEST: Final = 4
MOST: Final = 200
PATIENCE_MS: Final = 5_000
_PRIVATE: Final = ("_fold", "_sddb", "_like")


@dataclass(slots=True)
class Field:
    """A field, by its name with dots.

    Attributes
    ----------
    kinds : Counter
        How often it holds which type.
    example : Any
        The first value that is not null.
    """

    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    example: Any = None

    @property
    def found(self) -> int:
        """How many documents of the sample have it."""
        return self.kinds.total()


def sampled(collection: Collection[dict[str, Any]], size: int = SAMPLE) -> tuple[list[Field], int]:
    """Return the fields of `size` documents taken at random, and how many documents that were."""
    stages = [{"$sample": {"size": size}}, {"$unset": list(_PRIVATE)}]
    fields: dict[str, Field] = {}
    count = 0
    with collection.aggregate(stages, maxTimeMS=PATIENCE_MS) as cursor:
        for document in cursor:
            count += 1
            for name, value in _fields(document):
                if name in fields or len(fields) < MOST:
                    _add(fields.setdefault(name, Field(name)), value)
    return sorted(fields.values(), key=lambda each: (-each.found, each.name)), count


def _add(seen: Field, value: Any) -> None:
    seen.kinds[_kind(value)] += 1
    if seen.example is None:
        seen.example = value


def _fields(document: Mapping[str, Any], prefix: str = "", depth: int = DEEPEST) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and depth > 1 and "_content" not in value:
            yield from _fields(value, f"{path}.", depth - 1)
        else:
            yield path, value


def _kind(value: Any) -> str:
    name = type(value).__name__
    return {"NoneType": "null", "str": "text", "dict": "document", "list": "array"}.get(name, name)
