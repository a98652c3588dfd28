"""How near: cosine, dot product, l2 or a function of the user's own. A higher score is always nearer.

Scores come twice: quickly in float32 to choose candidates, then in float64 for the few that are shown, so that what is
returned does not depend on where in the array a vector stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from superduper_nb.errors import InvalidInputError, ModelError, did_you_mean

__all__ = ["BUILTIN", "Measure", "check_query"]

BUILTIN: Final = ("cosine", "dot", "l2")

Floats = NDArray[np.floating[Any]]


class Measure:
    """A measure of nearness.

    Parameters
    ----------
    name : str
        ``"cosine"``, ``"dot"``, ``"l2"``, or the name of a registered one.
    function : callable, optional
        Of a registered one: ``(queries (m, d), vectors (n, d)) -> scores (m, n)``.
    """

    def __init__(self, name: str, function: Callable[[Any, Any], Any] | None = None) -> None:
        if function is None and name not in BUILTIN:
            raise InvalidInputError(f"No measure is called {name!r}.{did_you_mean(name, BUILTIN)}")
        self.name, self.function = name, function

    def rough(self, query: Floats, vectors: Floats, norms: Floats) -> Floats:
        """Score vectors in float32, in an order that may differ from the exact one in the last bits.

        Parameters
        ----------
        query : array of shape (d,)
        vectors : array of shape (n, d)
        norms : array of shape (n,)
            Euclidean norms of the vectors.

        Returns
        -------
        array of shape (n,), float32
        """
        if self.function is not None:
            return self._own(query, vectors)
        products = vectors @ query
        if self.name == "cosine":
            return np.asarray(products / norms, dtype=np.float32)
        if self.name == "l2":
            return np.asarray(2 * products - norms * norms, dtype=np.float32)
        return products

    def exact(self, query: Floats, vectors: Floats) -> tuple[Floats, Floats | None]:
        """Score vectors in float64.

        Returns
        -------
        tuple of arrays of shape (n,)
            Scores, and for ``l2`` the distances.
        """
        if self.function is not None:
            return self._own(query, vectors).astype(np.float64), None
        wide, q = vectors.astype(np.float64), query.astype(np.float64)
        if self.name == "l2":
            distances = np.sqrt(np.sum((wide - q) ** 2, axis=1))
            return 1 / (1 + distances), distances
        products = np.sum(wide * q, axis=1)  # not @: its result for a row depends on the rows beside it
        if self.name == "cosine":
            products = products / (np.sqrt(np.sum(wide * wide, axis=1)) * np.sqrt(np.sum(q * q)))
        return products, None

    def slack(self, rough: Floats) -> float:
        """Return by how much a rough score of this size may be off."""
        if self.function is not None:
            return 0.0
        return float(np.abs(rough).max(initial=1.0)) * 1e-5

    def _own(self, query: Floats, vectors: Floats) -> Floats:
        assert self.function is not None
        scores = np.asarray(self.function(query[None, :], vectors), dtype=np.float32)
        if scores.shape != (1, len(vectors)):
            raise ModelError(
                f"The measure {self.name!r} answered an array of shape {scores.shape} "
                f"to 1 query and {len(vectors)} vectors; it must be (1, {len(vectors)})."
            )
        return np.asarray(np.nan_to_num(scores[0], nan=-np.inf))


def check_query(vector: Any, dimension: int | None, measure: Measure) -> Floats:
    """Return a query vector as float32, or raise `InvalidInputError` saying what is wrong with it."""
    try:
        query = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError("The query vector holds something that is no number.") from None
    if query.ndim != 1:
        raise InvalidInputError(f"The query vector has shape {query.shape}: it must be one-dimensional.")
    if dimension is not None and len(query) != dimension:
        raise InvalidInputError(f"The query vector has {len(query)} numbers, those of the index have {dimension}.")
    if not np.isfinite(query).all():
        raise InvalidInputError("The query vector holds NaN or infinity.")
    if measure.name == "cosine" and not query.any():
        raise InvalidInputError("The query vector is zero: it has no direction, so no cosine.")
    return query
