"""Vectors of a collection as points of a plane: read, and laid out by principal components or UMAP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import InvalidInputError, NotFoundError
from superduper_nb.widgets.clean import shorten, spell, visible

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from superduper_nb.client import Collection

    Floats = NDArray[np.float32]

__all__ = ["LIMIT", "Points", "principal", "read_points", "umap"]

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
    groups : list of str
        Values of the field that colours them; empty where there is none.
    model, key : str
        What the output is of.
    """

    ids: list[Any]
    vectors: Floats
    labels: list[str]
    groups: list[str]
    model: str
    key: str


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

    model, key, version = _source(collection, semantic_index)
    output, token = output_path(key, model), token_path(model, key)
    label = label or key
    shown = {path: 1 for path in (label, color) if path and path != "_base"}
    query = {"$and": [dict(filter or {}), {f"{token}.v": version}]}
    ids, vectors, labels, groups = [], [], [], []
    for document in collection.find(query, {output: 1, token: 1, **_apart(shown)}, raw=True, limit=limit):
        if (vector := stored_vector(get_path(document, output))) is None:
            continue
        ids.append(document["_id"])
        vectors.append(vector)
        labels.append(_told(get_path(document, label)) if label in shown else spell(document["_id"]))
        if color:
            groups.append(_told(get_path(document, color)))
    if len(ids) < 3:
        raise NotFoundError(
            f"{len(ids)} documents of {collection.full_name} match and have a vector of {model!r} on {key!r}: a map "
            "needs three. %sddb jobs tells whether they are still computed."
        )
    return Points(ids, np.stack(vectors), labels, groups, model, key)


def _apart(paths: Mapping[str, int]) -> dict[str, int]:
    """Leave out what another path holds already: MongoDB refuses both."""
    return {path: 1 for path in paths if not any(path.startswith(f"{other}.") for other in paths)}


def _source(collection: Collection[dict[str, Any]], semantic_index: str | None) -> tuple[str, str, int]:
    known = list(collection.semantic_indexes)
    if semantic_index is None and len(known) != 1:
        told = f"{collection.full_name} has {', '.join(known) or 'none'}"
        raise InvalidInputError(f"a map is of one semantic index, and {told}: name one (--index, semantic_index=).")
    facts = collection.semantic_indexes.describe(semantic_index or known[0])
    model, key = facts["models"][0], facts["keys"][0]
    return model, key, collection.database.models.describe(model)["version"]


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else spell(value)
    return " ".join(visible(shorten(text, LABEL)).split())


def principal(vectors: Floats) -> tuple[Floats, float]:
    """Return the first two principal components, and the share of the variance that they hold."""
    import numpy as np

    centred = vectors - vectors.mean(axis=0)
    if centred.shape[1] == 1:
        centred = np.hstack([centred, np.zeros_like(centred)])
    values, axes = np.linalg.eigh(centred.T @ centred)
    first = axes[:, [-1, -2]]
    first = first * np.where(np.take_along_axis(first, np.abs(first).argmax(axis=0)[None], 0) < 0, -1, 1)
    share = float(values[-2:].sum() / total) if (total := values.sum()) > 0 else 1.0
    return (centred @ first).astype(np.float32), share


def umap(vectors: Floats) -> Floats:
    """Return UMAP's layout: neighbours stay neighbours.

    Raises
    ------
    InvalidInputError
        The package is missing.
    """
    import warnings

    import numpy as np

    try:
        package = import_module("umap")
    except ImportError:
        raise InvalidInputError("this layout needs umap-learn: pip install 'superduper-nb[map]'.") from None
    # More than 50 components change no neighbours and take most of the time.
    reduced = vectors if vectors.shape[1] <= 50 else _reduced(vectors, 50)
    neighbours = min(15, len(vectors) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of its own threads and spectra
        laid = package.UMAP(n_neighbors=neighbours, init="pca" if len(vectors) > 50 else "random").fit_transform(
            reduced
        )
    return np.asarray(laid, dtype=np.float32)


def _reduced(vectors: Floats, dimensions: int) -> Floats:
    import numpy as np

    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ axes[:, -dimensions:], dtype=np.float32)
