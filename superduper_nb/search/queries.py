"""From what a search is near to, to query vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

import numpy as np

from superduper_nb.components.store import Component
from superduper_nb.documents.codec import Codec
from superduper_nb.documents.paths import BASE, get_path, set_path
from superduper_nb.errors import InvalidInputError, ModelError, NotFoundError
from superduper_nb.models.apply import ItemError
from superduper_nb.search.measures import Floats, Measure, check_query
from superduper_nb.search.searchable import Searchable
from superduper_nb.search.values import Like, SearchRequest, examples

__all__ = ["QueryVectors"]

_MISSING: Final = object()


class QueryVectors:
    """Makes query vectors for one index.

    Parameters
    ----------
    component : Component
        The semantic index.
    version_of : callable
        ``model -> version or None``: a query must meet vectors of the very version that made them, or of its fellow.
    index : Searchable
        Its vectors.
    codec : Codec
        Reads the objects in examples.
    encode : callable
        ``(model, inputs, version or None) -> outputs``.
    """

    def __init__(
        self,
        component: Component,
        version_of: Callable[[str], int | None],
        index: Searchable,
        codec: Codec,
        encode: Callable[[str, list[Any], int | None], list[Any]],
    ) -> None:
        self._component, self._version_of, self._index = component, version_of, index
        self._codec, self._encode = codec, encode

    def of(self, request: SearchRequest) -> list[Floats]:
        """Return the query of a search, or those of a batch."""
        if request.likes is not None:
            return self._encoded(request.likes)
        if request.many:
            assert request.vector is not None
            return [self._checked(row) for row in request.vector]
        positive = self._positive(request)
        negative = self._encoded(examples(request.unlike)) if request.unlike is not None else []
        if len(positive) == 1 and not negative:
            return positive
        return [self._checked(_moved(positive, negative, self._index.measure))]

    def _positive(self, request: SearchRequest) -> list[Floats]:
        if request.id is not None:
            return [self._stored(request.id)]
        if request.vector is not None:
            return [self._checked(request.vector)]
        assert request.like is not None
        return self._encoded(examples(request.like))

    def _encoded(self, likes: Sequence[Like]) -> list[Floats]:
        """Return the vectors of examples; each model is called once."""
        found: list[Floats | None] = [None] * len(likes)
        inputs: dict[str, dict[int, Any]] = {}
        for i, decoded in enumerate(self._seen([self._codec.decode(dict(like)) for like in likes])):
            if (by := self._model_for(decoded)) is not None:
                inputs.setdefault(by[0], {})[i] = by[1]
            elif "_id" in decoded:
                found[i] = self._stored(decoded["_id"])
            else:
                raise self._no_key(decoded)
        for model, values in inputs.items():
            outputs = self._encode(model, list(values.values()), self._version_of(model))
            for i, output in zip(values, outputs, strict=True):
                found[i] = self._checked(_vector_of(model, output))
        return [vector for vector in found if vector is not None]

    def _seen(self, likes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return examples as the index's models see documents: with outputs of others in the place of raw values."""
        features = self._component.definition.get("features") or {}
        likes = deepcopy(likes) if features else likes
        for key, model in features.items():
            having = [like for like in likes if get_path(like, key, _MISSING) is not _MISSING]
            outputs = self._encode(model, [get_path(like, key, _MISSING) for like in having], None) if having else []
            for like, output in zip(having, outputs, strict=True):
                set_path(like, key, _vector_of(model, output))
        return likes

    def _model_for(self, like: Mapping[str, Any]) -> tuple[str, Any] | None:
        """Return the first model whose key an example has, and what is there."""
        definition = self._component.definition
        for model, key in zip(definition["models"], definition["keys"], strict=True):
            value = like if key == BASE else get_path(like, key, _MISSING)
            if value is not _MISSING:
                return model, value
        return None

    def _no_key(self, like: Mapping[str, Any]) -> InvalidInputError:
        keys = ", ".join(repr(key) for key in self._component.definition["keys"])
        return InvalidInputError(
            f"like= must hold a key of the index {self._component.id!r} ({keys}) or _id; it holds {list(like)}."
        )

    def _stored(self, id: Any) -> Floats:
        vector = self._index.vector(id)
        if vector is None:
            raise NotFoundError(
                f"No vector of a document with _id {id!r}: it does not exist, or its output is still to come."
            )
        return vector

    def _checked(self, vector: Any) -> Floats:
        return check_query(vector, self._index.dimension, self._index.measure)


def _vector_of(model: str, output: Any) -> Any:
    if isinstance(output, ItemError):
        raise ModelError(f"The model {model!r} failed on the query: {output}")
    return output


def _moved(positive: Sequence[Floats], negative: Sequence[Floats], measure: Measure) -> Floats:
    """Return the mean of the positive examples, moved away from that of the negative ones.

    ``2 p - q``: Rocchio's formula with weights 2 and 1. They sum to 1, so that no origin is
    special.
    """
    p = _mean(positive, measure)
    return p if not negative else 2 * p - _mean(negative, measure)


def _mean(vectors: Sequence[Floats], measure: Measure) -> Floats:
    rows = np.stack(vectors).astype(np.float64)
    if measure.name == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows.mean(axis=0))
