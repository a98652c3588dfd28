"""Ready losses, by name: of pairs (two towers), and of predictions against targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CLASSIFYING", "PAIR_LOSSES", "TARGET_LOSSES", "cosine", "info_nce", "triplet"]

_TEMPERATURE: Final = 0.05
_MARGIN: Final = 0.2


def info_nce(a: Tensor, b: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """Ask of each row of `a` that its own row of `b` is the nearest in the batch, and the other way round.

    van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018.
    """
    import torch
    from torch.nn.functional import cross_entropy

    logits = _cosines(a, b) / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def triplet(a: Tensor, b: Tensor, margin: float = _MARGIN) -> Tensor:
    """Ask of each row of `a` that its own row of `b` is nearer than the nearest other one, by a margin of cosine."""
    import torch

    scores = _cosines(a, b)
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    hardest = scores.masked_fill(own, -1.0).max(dim=1).values
    return (margin + hardest - scores.diagonal()).clamp(min=0).mean()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Ask that the two of each pair point the same way (no negatives: freeze one side, or both may collapse)."""
    from torch.nn.functional import cosine_similarity

    return (1 - cosine_similarity(a.float(), b.float(), dim=1)).mean()


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    from torch.nn.functional import normalize

    return normalize(a.float(), dim=1) @ normalize(b.float(), dim=1).T


def cross_entropy(outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Classes: one logit each, and the number of the right one."""
    from torch.nn import functional

    return functional.cross_entropy(outputs.float(), targets, weight=weight)


def bce(outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Labels of which any number may hold: one logit each, and 0 or 1 for each."""
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits(outputs.float(), targets.float(), pos_weight=weight)


def mse(outputs: Tensor, targets: Tensor | list[Any]) -> Tensor:
    """Numbers: the mean square of the error."""
    from torch.nn import functional

    if isinstance(targets, list):  # what torch makes no tensor of
        raise InvalidInputError(f"loss='mse' is for numbers; a target is {targets[0]!r:.80}. Labels: 'cross_entropy'.")
    return functional.mse_loss(outputs.float().reshape(targets.shape), targets.float())


PAIR_LOSSES: Final[dict[str, Callable[..., Any]]] = {"info_nce": info_nce, "triplet": triplet, "cosine": cosine}
TARGET_LOSSES: Final[dict[str, Callable[..., Any]]] = {"cross_entropy": cross_entropy, "bce": bce, "mse": mse}
CLASSIFYING: Final = ("cross_entropy", "bce")
"""With these and a plain key as the target, the classes are those found in the documents."""
