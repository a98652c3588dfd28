"""The ranking by words, from MongoDB's text index: the other half of a hybrid search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from superduper_nb.errors import InvalidInputError
from superduper_nb.search.plan import said

__all__ = ["by_words"]

_TIMEOUT_MS: Final = 30_000
_NO_INDEX: Final = 27
_SCORE: Final = {"$meta": "textScore"}


def by_words(
    collection: Collection[dict[str, Any]], filter: Mapping[str, Any], text: str, n: int, key: str
) -> list[Any]:
    """Return the `n` documents that match a filter and say most of what is asked for, best first, ties by ``_id``.

    Parameters
    ----------
    key : str
        The field that a text index would be of, were there one.

    Raises
    ------
    InvalidInputError
        The collection has no text index.
    """
    query = {"$and": [{"$text": {"$search": text}}, dict(filter)]} if filter else {"$text": {"$search": text}}
    with said():
        try:
            found = collection.find(query, {"_id": 1, "score": _SCORE}, max_time_ms=_TIMEOUT_MS)
            return [document["_id"] for document in found.sort([("score", _SCORE), ("_id", 1)]).limit(n)]
        except OperationFailure as error:
            if error.code != _NO_INDEX:
                raise
            raise InvalidInputError(
                f"text= needs a text index, and {collection.full_name} has none. Make one: "
                f'docs.create_index([("{key}", "text")]).'
            ) from None
