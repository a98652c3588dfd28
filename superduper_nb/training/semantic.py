"""Training two towers (or one that takes both sides) so that what belongs together is near."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from superduper_nb.errors import InvalidInputError
from superduper_nb.search.measures import Measure
from superduper_nb.training.metrics import measured, retrieval_metric
from superduper_nb.training.trainer import Trainer, mean

__all__ = ["SemanticTrainer", "search_all"]

_QUERIES: Final = 256
_NEAREST: Final = 100
"""So many of the found documents does a metric of the user's own get to see."""


@dataclass(slots=True)
class SemanticTrainer(Trainer):
    """Trains ``loss(queries, documents)`` over batches whose rows belong together; ``sides`` are query and document.

    Attributes
    ----------
    splitter : callable or None
        ``document -> (query part, document part)``; None: each side takes its own key of the whole document.
    measure : Measure
        That of the index, by which validation searches.
    """

    splitter: Callable[[Any], Any] | None = None
    measure: Measure | None = None

    def prepare(self, document: dict[str, Any]) -> tuple[Any, Any]:
        """Return the inputs of both towers."""
        parts = (document, document) if self.splitter is None else self._split(document)
        query, found = (side.item(part) for side, part in zip(self.sides, parts, strict=True))
        return query, found

    def _split(self, document: dict[str, Any]) -> tuple[Any, Any]:
        assert self.splitter is not None
        parts = self.splitter(document)
        if not isinstance(parts, (tuple, list)) or len(parts) != 2:
            raise InvalidInputError(f"The splitter answered {parts!r:.80}: it must be (query part, document part).")
        return parts[0], parts[1]

    def step(self, batch: Any) -> Any:
        """Return the loss over the batch; every other pair of it is a negative."""
        assert self.loss is not None
        queries, documents = self._outputs(batch)
        return self.loss(self.group.gather(queries), self.group.gather(documents))

    def _outputs(self, batch: Any) -> tuple[Any, Any]:
        queries, documents = (side.output(part) for side, part in zip(self.sides, batch, strict=True))
        return queries, documents

    def evaluate(self, batches: Iterable[tuple[Any, int]]) -> dict[str, float]:
        """Return the mean loss, and each metric of an exact search for every query among all documents of the set."""
        assert self.loss is not None
        losses, queries, documents = [], [], []
        for batch, size in batches:
            query, document = self._outputs(batch)
            losses.append((float(self.loss(query, document)), size))
            queries.append(query.float().cpu().numpy())
            documents.append(document.float().cpu().numpy())
        return {"loss": mean(losses), **self._searched(queries, documents)}

    def _searched(self, queries: Sequence[Any], documents: Sequence[Any]) -> dict[str, float]:
        if not self.metrics or not queries:
            return {}
        assert self.measure is not None
        places, nearest = search_all(np.concatenate(queries), np.concatenate(documents), self.measure)
        results = {}
        for name, metric in self.metrics.items():
            if (ready := retrieval_metric(name)) is not None:
                results[name] = ready(places)
            else:
                each = [measured(name, metric, found.tolist(), true) for true, found in enumerate(nearest)]
                results[name] = float(np.mean(each))
        return results


def search_all(queries: Any, documents: Any, measure: Measure) -> tuple[Any, Any]:
    """Search every document for each query, exactly.

    Returns
    -------
    ranks : array of int
        At which place (0 is the first) each query finds its own document; ties go against it.
    nearest : array of int
        The places of the documents that it finds first.
    """
    ranks, nearest = [], []
    for at in range(0, len(queries), _QUERIES):
        scores = _scores(queries[at : at + _QUERIES], documents, measure)
        own = scores[np.arange(len(scores)), np.arange(at, at + len(scores))]
        ranks.append(np.sum(scores >= own[:, None], axis=1) - 1)
        nearest.append(np.argsort(-scores, axis=1, kind="stable")[:, :_NEAREST])
    return np.concatenate(ranks), np.concatenate(nearest)


def _scores(queries: Any, documents: Any, measure: Measure) -> Any:
    if measure.function is not None:
        return np.asarray(measure.function(queries, documents))
    if measure.name == "l2":
        squares = (queries**2).sum(axis=1)[:, None] + (documents**2).sum(axis=1)
        return 2 * queries @ documents.T - squares
    if measure.name == "cosine":
        queries, documents = _normalized(queries), _normalized(documents)
    return queries @ documents.T


def _normalized(rows: Any) -> Any:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
