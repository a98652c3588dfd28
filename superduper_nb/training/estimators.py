"""Estimators with scikit-learn's ``fit``, or ``partial_fit`` batch by batch (skorch's nets are such, too)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from superduper_nb.errors import InvalidInputError
from superduper_nb.models import batches
from superduper_nb.training.fitting import Fitter, Fitting
from superduper_nb.training.imputation import ImputationTrainer
from superduper_nb.training.metrics import measured
from superduper_nb.training.seeds import seed_all

__all__ = ["EstimatorTrainer", "is_estimator"]


def is_estimator(obj: Any) -> bool:
    """Say whether an object is fitted rather than trained step by step."""
    return not hasattr(obj, "state_dict") and callable(getattr(obj, "fit", None))


@dataclass(slots=True)
class EstimatorTrainer(ImputationTrainer, Fitter):
    """Fits the estimator of an imputation.

    With ``epochs=`` or ``max_steps=`` and an estimator that has ``partial_fit``, the documents are streamed. Otherwise
    its ``fit`` gets all of them at once, and they must fit into memory.
    """

    def fit(self, fitting: Fitting) -> None:
        """Fit it, and measure it by the metrics."""
        if self.loss is not None:
            raise InvalidInputError("An estimator has its own loss: leave out loss=.")
        at_once = not (fitting.training.epochs or fitting.training.max_steps)
        if at_once or not hasattr(self.sides[0].module, "partial_fit"):
            self._at_once(fitting)
        else:
            self._streamed(fitting)

    def _at_once(self, fitting: Fitting) -> None:
        inputs, targets = _columns(list(fitting.in_order()))
        fitting.total = 1
        fitting.begin()
        self.sides[0].module.fit(inputs, targets)
        fitting.tell()
        fitting.judge(self._results(fitting))

    def _streamed(self, fitting: Fitting) -> None:
        estimator, done = fitting.state or (self.sides[0].module, 0)
        self.sides[0].module = estimator
        classes = _classes(estimator, fitting)
        while not fitting.over:
            for batch in fitting.batches(fitting.epoch, skip=done):
                seed_all(fitting.training.seed, fitting.step)  # another attempt draws the same
                fitting.begin()
                estimator.partial_fit(*_columns(batch), **classes)
                done += 1
                if fitting.tell():
                    break
                if fitting.due():
                    fitting.save((estimator, done))
            fitting.judge(self._results(fitting))
            fitting.epoch, done = fitting.epoch + 1, 0

    def _results(self, fitting: Fitting) -> dict[str, float]:
        fitting.begin()
        return {
            f"{name}.{key}": value
            for name in fitting.validation_sets
            for key, value in self._evaluated(fitting.held_out(name)).items()
        }

    def _evaluated(self, held_out: Iterable[list[Any]]) -> dict[str, float]:
        predictions: list[Any] = []
        targets: list[Any] = []
        for batch in held_out:
            inputs, true = _columns(batch)
            predictions += list(self.sides[0].module.predict(inputs))
            targets += list(true)
        if not targets:
            return {}
        whole = np.asarray(predictions), np.asarray(targets)
        return {name: measured(name, metric, *whole) for name, metric in self.metrics.items()}

    def snapshot(self) -> Any:
        """Return the estimator; a copy where it is fitted further."""
        estimator = self.sides[0].module
        return copy.deepcopy(estimator) if hasattr(estimator, "partial_fit") else estimator

    def restore(self, snapshot: Any) -> None:
        """Put an estimator back."""
        self.sides[0].module = snapshot

    def finished(self, model: str, bundle: dict[str, Any]) -> dict[str, Any]:
        """Return what is stored of it."""
        return {**bundle, "object": self.sides[0].module}


def _classes(estimator: Any, fitting: Fitting) -> dict[str, Any]:
    """Return all the labels, where `partial_fit` must know them at once."""
    if "classes" not in inspect.signature(estimator.partial_fit).parameters:
        return {}
    return {"classes": np.unique([target for _, target in fitting.in_order()])}


def _columns(samples: list[Any]) -> tuple[Any, Any]:
    if not samples:
        raise InvalidInputError("No document of the training fold could be prepared; see what was skipped.")
    inputs, targets = zip(*samples, strict=True)
    return batches.stack(list(inputs)), np.asarray(targets)
