"""Vectors of a collection, with what is told of their documents: what a map shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.widgets.clean import shorten, spell, visible

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from superduper_nb.client import Collection

    Floats = NDArray[np.float32]

__all__ = ["LIMIT", "Points", "read_points"]

LIMIT: Final = 100_000
LABEL: Final = 120
"""Characters of a point's label."""


@dataclass(frozen=True, slots=True)
class Points:
    """Documents that carry a current output.

    Attributes
    ----------
    ids : list
        Their ``_id``.
    vectors : array of shape (n, d)
        That output.
    labels : list of str
        What to show when one is pointed at.
    groups : list
        Values of the field that colours them, numbers or texts; empty where there is none.
    semantic_index : str
        Whose vectors they are.
    model, key : str
        What the output is of.
    """

    ids: list[Any]
    vectors: Floats
    labels: list[str]
    groups: list[Any]
    semantic_index: str
    model: str
    key: str

    def among(self, ids: Sequence[Any]) -> tuple[Points, list[int]]:
        """Return those of some documents, and for each its place among `ids`."""
        from superduper_nb.search.ids import id_key

        at = {id_key(id): place for place, id in enumerate(ids)}
        kept = [n for n, id in enumerate(self.ids) if id_key(id) in at]
        some = replace(
            self,
            ids=[self.ids[n] for n in kept],
            vectors=self.vectors[kept],
            labels=[self.labels[n] for n in kept],
            groups=[self.groups[n] for n in kept] if self.groups else [],
        )
        return some, [at[id_key(id)] for id in some.ids]


def read_points(
    collection: Collection[dict[str, Any]],
    filter: Mapping[str, Any] | None,
    *,
    semantic_index: str | None,
    label: str | None,
    color: str | None,
    limit: int,
) -> Points:
    """Read the vectors that a semantic index searches, of the documents that match.

    Raises
    ------
    NotFoundError
        There is no such index, or no document with a current vector.
    """
    import numpy as np

    from superduper_nb.documents.paths import get_path, output_path, token_path
    from superduper_nb.search.vectors import stored_vector

    index, model, key, query = _source(collection, semantic_index)
    output, token = output_path(key, model), token_path(model, key)
    label = label or key
    shown = {path: 1 for path in (label, color) if path and path != "_base"}
    query = {"$and": [dict(filter or {}), query]}
    ids, vectors, labels, groups = [], [], [], []
    fields = {output: 1, token: 1, **_apart(shown)}
    for document in collection.find(query, fields, raw=True, limit=limit, sort=[("_id", 1)]):
        if (vector := stored_vector(get_path(document, output))) is None:
            continue
        ids.append(document["_id"])
        vectors.append(vector)
        labels.append(_told(get_path(document, label)) if label in shown else spell(document["_id"]))
        if color:
            value = get_path(document, color)
            groups.append(value if type(value) in (int, float) else _told(value))
    if len(ids) < 3:
        raise NotFoundError(
            f"{len(ids)} documents of {collection.full_name} match and have a vector of {model!r} on {key!r}: a map "
            "needs three. %sddb jobs tells whether they are still computed."
        )
    return Points(ids, np.stack(vectors), labels, groups, index, model, key)


def _apart(paths: Mapping[str, int]) -> dict[str, int]:
    """Leave out what another path holds already: MongoDB refuses both."""
    return {path: 1 for path in paths if not any(path.startswith(f"{other}.") for other in paths)}


def _source(collection: Collection[dict[str, Any]], semantic_index: str | None) -> tuple[str, str, str, dict[str, Any]]:
    """Return an index, the model and the key of its vectors, and the filter for the documents that carry one."""
    from superduper_nb.documents.paths import token_path

    known = list(collection.semantic_indexes)
    if semantic_index is None and len(known) != 1:
        told = f"{collection.full_name} has {', '.join(known) or 'none'}"
        raise InvalidInputError(f"a map is of one semantic index, and {told}: name one (--index, semantic_index=).")
    index: str = known[0] if semantic_index is None else semantic_index
    facts = collection.semantic_indexes.describe(index)
    model, key = facts["models"][0], facts["keys"][0]
    models: Mapping[str, Any] = collection.models.describe(model)
    current = {f"{token_path(model, key)}.v": models["version"]}
    within = facts.get("filter") or {}
    return index, model, key, {"$and": [current, within]} if within else current


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else spell(value)
    return " ".join(visible(shorten(text, LABEL)).split())
