"""How near: cosine, dot product, l2 or a function of the user's own. A higher score is always nearer.

Scores come twice: quickly in float32, with a bound on their error, to choose candidates; then in float64 for the few
that are shown. So what is returned is what float64 over all vectors would return.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from superduper_nb.errors import InvalidInputError, ModelError, SuperduperError, did_you_mean

__all__ = ["BUILTIN", "Floats", "Measure", "check_query", "tame"]

BUILTIN: Final = ("cosine", "dot", "l2")

_HALF_ULP: Final = 2.0**-24
_TAME: Final = (1e-15, 1e15)
"""Between these norms no product of float32 under- or overflows enough to matter."""
_BLOCK: Final = 4096

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

    def rough(self, query: Floats, vectors: Floats, norms: Floats) -> tuple[Floats, Floats | float]:
        """Score vectors in float32.

        Parameters
        ----------
        query : array of shape (d,)
        vectors : array of shape (n, d)
        norms : array of shape (n,)
            Euclidean norms of the vectors; under cosine none of them is 0.

        Returns
        -------
        scores : array of shape (n,)
            For ``l2``: in the order of the scores, not the scores themselves.
        error : float or array of shape (n,)
            By how much each may be off, at most.
        """
        if self.function is not None:
            return self._own(query, vectors), 0.0
        wide = query.astype(np.float64)
        length = float(np.sqrt(wide @ wide))
        if self.name == "cosine":
            query, length = np.asarray(wide / length, dtype=np.float32), 1.0
        # A sum of d products, in whatever order (Higham, Accuracy and Stability, 3.1), and a few roundings more.
        unit = 1.05 * (len(query) + 8) * _HALF_ULP
        with np.errstate(all="ignore"):
            # For one query this keeps up with memory: "@" and einsum take up to twice as long.
            scores = np.vecdot(vectors, query)
            error: Floats | float
            if self.name == "cosine":
                scores, error = scores / norms, unit
            elif self.name == "dot":
                error = np.float32(unit * length) * norms
            else:
                squares = norms * norms
                scores, error = 2 * scores - squares, np.float32(unit) * (np.float32(2 * length) * norms + squares)
        return _open_where_wild(scores, error, norms, length)

    def exact(self, query: Floats, vectors: Floats) -> tuple[Floats, Floats | None]:
        """Score vectors in float64.

        Returns
        -------
        tuple of arrays of shape (n,)
            Scores, and for ``l2`` the distances.
        """
        if self.function is not None:
            return self._own(query, vectors), None
        q = query.astype(np.float64)
        blocks = [self._exact(q, vectors[i : i + _BLOCK].astype(np.float64)) for i in range(0, len(vectors), _BLOCK)]
        values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks) if blocks else np.empty(0)
        return (1 / (1 + values), values) if self.name == "l2" else (values, None)

    def exact_each(self, queries: Floats, vectors: Floats) -> tuple[Floats, Floats | None]:
        """Score vectors of its own for each query, by a built-in measure, as `exact` does.

        Parameters
        ----------
        queries : array of shape (m, d)
        vectors : array of shape (m, k, d)

        Returns
        -------
        tuple of arrays of shape (m, k)
        """
        values = self._exact(queries.astype(np.float64)[:, None], vectors.astype(np.float64))
        return (1 / (1 + values), values) if self.name == "l2" else (values, None)

    def _exact(self, q: Floats, rows: Floats) -> Floats:
        # Not "@": there the result for a row depends on the rows beside it.
        if self.name == "l2":
            rows -= q
            return np.asarray(np.sqrt(np.vecdot(rows, rows)))
        products = np.vecdot(rows, q)
        if self.name == "dot":
            return np.asarray(products)
        return np.asarray(products / (np.sqrt(np.vecdot(rows, rows)) * np.sqrt(np.vecdot(q, q))))

    def _own(self, query: Floats, vectors: Floats) -> Floats:
        return np.asarray(self.own(query[None, :], vectors)[0])

    def own(self, queries: Floats, vectors: Floats) -> Floats:
        """Score with the registered function: array of shape (queries, vectors)."""
        assert self.function is not None
        try:
            scores = np.asarray(self.function(queries, vectors), dtype=np.float64)
        except SuperduperError:
            raise
        except Exception as error:
            raise ModelError(f"The measure {self.name!r} failed: {type(error).__name__}: {error}") from error
        wanted = (len(queries), len(vectors))
        if scores.shape != wanted:
            raise ModelError(
                f"The measure {self.name!r} answered an array of shape {scores.shape} "
                f"to {wanted[0]} queries and {wanted[1]} vectors; it must be {wanted}."
            )
        return np.asarray(np.where(np.isnan(scores), -np.inf, scores))


def _open_where_wild(
    scores: Floats, error: Floats | float, norms: Floats, length: float
) -> tuple[Floats, Floats | float]:
    """Where numbers are so large or small that float32 fails, say that nothing is known of the score."""
    low, high = _TAME
    wild = (norms > high) | ((norms < low) & (norms > 0))
    if not (low <= length <= high or length == 0):
        wild[:] = True
    if not wild.any():
        return scores, error
    return np.where(wild, np.float32(0), scores), np.where(wild, np.float32(np.inf), error)


def tame(norms: Floats) -> bool:
    """Say whether no product of float32 of rows of such norms under- or overflows enough to matter."""
    low, high = _TAME
    return bool((((norms >= low) & (norms <= high)) | (norms == 0)).all())


def check_query(vector: Any, dimension: int | None, measure: Measure) -> Floats:
    """Return a query vector as float32, or raise `InvalidInputError` saying what is wrong with it."""
    query = _as_query(vector)
    if query.ndim != 1 or not len(query):
        raise InvalidInputError(f"The query vector has shape {query.shape}: it must be one row of numbers.")
    if dimension is not None and len(query) != dimension:
        raise InvalidInputError(f"The query vector has {len(query)} numbers, those of the index have {dimension}.")
    if not np.isfinite(query).all():
        raise InvalidInputError("The query vector holds NaN, infinity or a number too large for float32.")
    if measure.name == "cosine" and not query.any():
        raise InvalidInputError("The query vector is zero: it has no direction, so no cosine.")
    return query


def _as_query(vector: Any) -> Floats:
    if callable(detach := getattr(vector, "detach", None)):  # a tensor
        vector = detach().cpu().float().numpy()
    try:
        given = np.asarray(vector)
    except (TypeError, ValueError, OverflowError):
        given = np.empty(0, dtype=object)
    if given.dtype.kind not in "fiu" and given.size:
        raise InvalidInputError("The query vector must hold real numbers and nothing else.")
    with np.errstate(over="ignore"):
        return np.asarray(given, dtype=np.float32, order="C")
