"""Which weights are the best so far, and for how long nothing was better."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.training.options import Training

__all__ = ["TRAIN_LOSS", "Best", "Monitor", "Weights"]

TRAIN_LOSS: Final = "loss"
"""Of the batches since it was last noted."""
Weights = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Best:
    """The best weights so far."""

    step: int
    value: float
    weights: Weights


class Monitor:
    """Judges by one of the results.

    Parameters
    ----------
    training : Training
        Which, and when to stop.
    sets : collection of str
        The validation sets that there are; without a document to judge by, the training loss has to do.
    """

    def __init__(self, training: Training, sets: Collection[str]) -> None:
        fold = training.monitor.partition(".")[0]
        self.name = TRAIN_LOSS if fold == "valid" and fold not in sets else training.monitor
        self._rising = training.rising and self.name != TRAIN_LOSS
        self._patience = training.early_stopping
        self.best: Best | None = None
        self.worse = 0

    def compare(self, step: int, values: Mapping[str, float], weights: Callable[[], Weights]) -> None:
        """Keep the weights of a step where its values are the best so far."""
        if self.name not in values:
            if self.name != TRAIN_LOSS:
                known = ", ".join(name for name in values if name != TRAIN_LOSS)
                raise InvalidInputError(f"monitor={self.name!r}: no such result. There are: {known}.")
            self.best = Best(0, math.inf, weights())  # nothing was learnt yet
        elif self.best is None or self._better(values[self.name], self.best.value):
            self.best, self.worse = Best(step, values[self.name], weights()), 0
        else:
            self.worse += 1

    def _better(self, value: float, best: float) -> bool:
        if not (math.isfinite(value) and math.isfinite(best)):
            return math.isfinite(value)
        return value > best if self._rising else value < best

    @property
    def gives_up(self) -> bool:
        """It is time to stop early."""
        return self._patience is not None and self.worse >= self._patience

    def state(self) -> dict[str, Any]:
        """Return everything from which another one goes on."""
        best = self.best and (self.best.step, self.best.value, self.best.weights)
        return {"best": best, "worse": self.worse}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.best, self.worse = state["best"] and Best(*state["best"]), state["worse"]
