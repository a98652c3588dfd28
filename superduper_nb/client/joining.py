"""Read documents with their neighbours in the place of the neighbours' identifiers: ``find(similar_join="near")``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from superduper_nb.client.features import excludes, head
from superduper_nb.documents.paths import get_path, set_path
from superduper_nb.jobs.neighbours import like_path
from superduper_nb.search.ids import id_key, id_keys

__all__ = ["Join"]

_LIKE = "_like"

Read = Callable[[dict[str, Any], dict[str, Any]], Iterable[dict[str, Any]]]
"""``(query, projection) -> documents``."""


class Join:
    """Which lists are expanded.

    Parameters
    ----------
    neighbourhood : str
        Whose.
    """

    def __init__(self, neighbourhood: str) -> None:
        self._path = like_path(neighbourhood)

    def projection(self, projection: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return what to ask MongoDB for: the list, beside what was asked for."""
        if projection is None:
            return None
        others = _without_lists(projection)
        return (others or None) if excludes(projection) else {**others, self._path: 1}

    def put(self, documents: Iterable[dict[str, Any]], projection: Mapping[str, Any] | None, read: Read) -> None:
        """Put documents in the place of identifiers, read by one query; those that are gone are left out.

        Parameters
        ----------
        projection : mapping or None
            Of the neighbours, as it was asked for.
        """
        lists = [(document, get_path(document, self._path)) for document in documents]
        lists = [(document, near) for document, near in lists if isinstance(near, list)]
        wanted = {key: id for _, near in lists for key, id in zip(id_keys(near), near, strict=True)}
        hidden, asked = _for_neighbours(projection)
        found: dict[Any, dict[str, Any]] = {}
        for neighbour in read({"_id": {"$in": list(wanted.values())}}, asked) if wanted else ():
            neighbour.pop("_sddb", None)
            neighbour.pop(_LIKE, None)
            found[id_key(neighbour.pop("_id") if hidden else neighbour["_id"])] = neighbour
        given: set[Any] = set()
        for document, near in lists:
            keys = [key for key in id_keys(near) if key in found]
            set_path(document, self._path, [_own(found[key], again=key in given) for key in keys])
            given.update(keys)


def _own(document: dict[str, Any], *, again: bool) -> dict[str, Any]:
    """Return a document that is in no other place."""
    return copy.deepcopy(document) if again else document


def _without_lists(projection: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in projection.items() if head(path) != _LIKE}


def _for_neighbours(projection: Mapping[str, Any] | None) -> tuple[bool, dict[str, Any]]:
    """Return whether ``_id`` is to be hidden, and the projection with which neighbours are read."""
    if projection is None:
        return False, {_LIKE: 0}
    hidden = projection.get("_id", 1) in (0, False)
    others = {path: value for path, value in _without_lists(projection).items() if path != "_id"}
    if excludes(projection) or not others:
        return hidden, {**others, _LIKE: 0} if excludes(projection) else {"_id": 1}
    return hidden, others
