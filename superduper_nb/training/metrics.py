"""Ready metrics by name, and how any metric is called: on all of a validation set at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from superduper_nb.errors import InvalidInputError, ModelError
from superduper_nb.search.metrics import ndcg, recall, reciprocal_rank

__all__ = ["RETRIEVAL_HELP", "TARGET_METRICS", "measured", "retrieval_metric"]

_RANKINGS: Final = {"recall": recall, "ndcg": ndcg, "mrr": reciprocal_rank}
_RETRIEVAL: Final = re.compile(r"(recall(?=@)|ndcg(?=@)|mrr)(?:@([1-9]\d*))?")
RETRIEVAL_HELP: Final = "recall@k, mrr, ndcg@k"
Ranks = NDArray[np.int64]


def accuracy(outputs: Any, targets: Any) -> float:
    """Return the share of right labels; of several labels at once, that of documents with all of them right."""
    right = _labels(outputs, targets) == np.asarray(targets)
    return float(np.mean(right if right.ndim == 1 else right.all(axis=1)))


def f1(outputs: Any, targets: Any) -> float:
    """Return the mean over the labels of each one's F1."""
    guessed, true = _indicators(_labels(outputs, targets), np.asarray(targets))
    hits = (guessed & true).sum(axis=0)
    return float(np.mean(2 * hits / np.maximum(1, guessed.sum(axis=0) + true.sum(axis=0))))


def mse(outputs: Any, targets: Any) -> float:
    """Return the mean square of the error."""
    return float(np.mean(_errors(outputs, targets) ** 2))


def mae(outputs: Any, targets: Any) -> float:
    """Return the mean of the error's absolute value."""
    return float(np.mean(np.abs(_errors(outputs, targets))))


def _labels(outputs: Any, targets: Any) -> NDArray[Any]:
    """Return the labels that outputs stand for: the largest logit, or those above 0 where targets are 0s and 1s."""
    guessed, true = np.asarray(outputs), np.asarray(targets)
    if guessed.ndim == 2 and true.ndim == 1:
        return np.asarray(guessed.argmax(axis=1))
    return np.asarray(guessed > 0) if guessed.ndim == 2 and guessed.dtype.kind == "f" else guessed


def _indicators(guessed: NDArray[Any], true: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if true.ndim == 2:
        return guessed.astype(bool), true.astype(bool)
    labels = np.unique(np.concatenate([guessed, true]))
    return guessed[:, None] == labels, true[:, None] == labels


def _errors(outputs: Any, targets: Any) -> NDArray[np.float64]:
    true = np.asarray(targets, dtype=np.float64)
    return np.asarray(outputs, dtype=np.float64).reshape(true.shape) - true


TARGET_METRICS: Final[dict[str, Callable[..., Any]]] = {"accuracy": accuracy, "f1": f1, "mse": mse, "mae": mae}


def retrieval_metric(name: str) -> Callable[[Ranks], float] | None:
    """Return what computes a ready metric of retrieval from the ranks of the right answers (0 is the first)."""
    found = _RETRIEVAL.fullmatch(name)
    if found is None:
        return None
    of_one, k = _RANKINGS[found[1]], int(found[2]) if found[2] else None
    return lambda ranks: float(np.mean([of_one([rank], 1, k or len(ranks)) for rank in ranks.tolist()]))


def measured(name: str, metric: Callable[..., Any], *arguments: Any) -> float:
    """Call a metric; whatever it answers (a tensor, a numpy number) becomes a float."""
    try:
        return float(metric(*arguments))
    except Exception as error:
        if isinstance(error, InvalidInputError):
            raise
        raise ModelError(f"The metric {name!r} failed: {type(error).__name__}: {error}"[:500]) from error
