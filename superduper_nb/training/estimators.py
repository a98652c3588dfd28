"""Estimators with scikit-learn's ``fit``, or ``partial_fit`` batch by batch (skorch's nets are such, too)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from superduper_nb.errors import InvalidInputError
from superduper_nb.models import batches
from superduper_nb.training.data import Samples
from superduper_nb.training.imputation import ImputationTrainer
from superduper_nb.training.loop import CANCELLED, Onlooker, Recorder, Result
from superduper_nb.training.metrics import measured
from superduper_nb.training.options import Training
from superduper_nb.training.trainer import cut

__all__ = ["fit", "is_estimator"]


def is_estimator(obj: Any) -> bool:
    """Say whether an object is fitted rather than trained step by step."""
    return not hasattr(obj, "state_dict") and callable(getattr(obj, "fit", None))


def fit(
    trainer: ImputationTrainer,
    training: Training,
    samples: Samples,
    validation: Mapping[str, Samples],
    recorder: Recorder,
    onlooker: Onlooker,
) -> Result:
    """Fit the estimator of an imputation.

    With ``epochs=`` or ``max_steps=`` and an estimator that has ``partial_fit``, the documents are streamed. Otherwise
    its ``fit`` gets all of them at once, and they must fit into memory.
    """
    if trainer.loss is not None:
        raise InvalidInputError("An estimator has its own loss: leave out loss=.")
    if training.class_weights is not None:
        raise InvalidInputError("An estimator has its own class weights: leave out class_weights=.")
    streamed = hasattr(trainer.sides[0].module, "partial_fit") and (training.epochs or training.max_steps)
    step, stopped = _streamed(trainer, training, samples, onlooker) if streamed else _at_once(trainer, samples)
    values = {
        f"{name}.{key}": value
        for name, each in validation.items()
        if len(each.documents)
        for key, value in _evaluated(trainer, each).items()
    }
    recorder.point(step, 0, values)
    recorder.flush()
    best = values.get(training.monitor, float("nan"))
    return Result(step, 0, step, best, training.monitor, values, stopped)


def _at_once(trainer: ImputationTrainer, samples: Samples) -> tuple[int, None]:
    inputs, targets = _columns(list(samples.in_order()))
    trainer.sides[0].module.fit(inputs, targets)
    return 1, None


def _streamed(
    trainer: ImputationTrainer, training: Training, samples: Samples, onlooker: Onlooker
) -> tuple[int, str | None]:
    estimator = trainer.sides[0].module
    classes: dict[str, Any] = {}
    if "classes" in inspect.signature(estimator.partial_fit).parameters:
        classes = {"classes": np.unique([target for _, target in samples.in_order()])}
    step, epoch, total = 0, 0, training.steps(len(samples.documents))
    while step < total:
        for batch in cut(samples.epoch(epoch), training.batch_size, 1):
            if onlooker.stopped():
                return step, CANCELLED
            with onlooker.turn():
                estimator.partial_fit(*_columns(batch), **classes)
            step += 1
            onlooker.tell(step)
            if step >= total:
                break
        epoch += 1
    return step, None


def _columns(samples: list[Any]) -> tuple[Any, Any]:
    if not samples:
        raise InvalidInputError("No document of the training fold could be prepared; see what was skipped.")
    inputs, targets = zip(*samples, strict=True)
    return batches.stack(list(inputs)), np.asarray(targets)


def _evaluated(trainer: ImputationTrainer, samples: Samples) -> dict[str, float]:
    predictions: list[Any] = []
    targets: list[Any] = []
    estimator = trainer.sides[0].module
    for batch in cut(samples.in_order(), 1024, 1):
        inputs, true = _columns(batch)
        predictions += list(estimator.predict(inputs))
        targets += list(true)
    if not targets:
        return {}
    whole = np.asarray(predictions), np.asarray(targets)
    return {name: measured(name, metric, *whole) for name, metric in trainer.metrics.items()}
