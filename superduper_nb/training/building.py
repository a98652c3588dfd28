"""From a registered task to what the loop works with: the trainer, its sides, losses and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from superduper_nb.components import Component
from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.models import Loader, batches
from superduper_nb.search.measures import BUILTIN, Measure
from superduper_nb.training.estimators import EstimatorTrainer, is_estimator
from superduper_nb.training.imputation import ImputationTrainer, Labels, class_weights
from superduper_nb.training.losses import CLASSIFYING, PAIR_LOSSES, TARGET_LOSSES
from superduper_nb.training.metrics import RETRIEVAL_HELP, TARGET_METRICS, retrieval_metric
from superduper_nb.training.options import Training
from superduper_nb.training.semantic import SemanticTrainer
from superduper_nb.training.trainer import Side, Trainer

__all__ = ["Builder", "loss_of", "metric_of", "models_of"]

_PAIRED: Final = "semantic_index"


def models_of(kind: str, definition: Mapping[str, Any]) -> list[str]:
    """List the models that a task may train, each once."""
    if kind == "imputation":
        target = [definition["target"]] if definition["target_kind"] == "model" else []
        return list(dict.fromkeys([definition["model"], *target]))
    return list(dict.fromkeys(definition["models"]))


def loss_of(loader: Loader, kind: str, name: str | None) -> Callable[..., Any] | None:
    """Return a loss by name: one of the user's, or a ready one.

    Raises
    ------
    InvalidInputError
        There is none.
    """
    if name is None:
        return None
    if found := loader.store.find("loss", name):
        loaded: Callable[..., Any] = loader.object(found)
        return loaded
    ready = PAIR_LOSSES if kind == _PAIRED else TARGET_LOSSES
    if name not in ready:
        known = [*ready, *loader.store.ids("loss")]
        raise InvalidInputError(f"No loss is called {name!r}.{did_you_mean(name, known)}")
    return ready[name]


def metric_of(loader: Loader, kind: str, name: str) -> Callable[..., Any]:
    """Return a metric by name: one of the user's, or a ready one.

    Raises
    ------
    InvalidInputError
        There is none.
    """
    if found := loader.store.find("metric", name):
        loaded: Callable[..., Any] = loader.object(found)
        return loaded
    ready = retrieval_metric(name) if kind == _PAIRED else TARGET_METRICS.get(name)
    if ready is None:
        own = loader.store.ids("metric")
        if kind == _PAIRED:
            raise InvalidInputError(f"No metric is called {name!r}. Ready: {RETRIEVAL_HELP}; registered: {own}.")
        raise InvalidInputError(f"No metric is called {name!r}.{did_you_mean(name, [*TARGET_METRICS, *own])}")
    return ready


class Builder:
    """Builds the trainer of one task.

    Parameters
    ----------
    loader : Loader
        Gives components.
    task : Component
        An imputation, a semantic index or a learning task.
    starts : mapping of str to int
        From which version each model starts.
    training : Training
        How.
    """

    def __init__(self, loader: Loader, task: Component, starts: Mapping[str, int], training: Training) -> None:
        self._loader, self._task, self._definition = loader, task, task.definition
        self._training = training
        self.versions = {id: loader.store.get("model", id, version=version) for id, version in starts.items()}
        # Copies of this training's own: those that the loader keeps may be in use beside it.
        self.bundles = {id: loader.store.load(component) for id, component in self.versions.items()}

    def trainer(self, count: Callable[[str], Mapping[Any, int]]) -> Trainer:
        """Build it; `count` tells how many training documents have each label at a key."""
        definition, kind = self._definition, self._task.kind
        common: dict[str, Any] = {
            "loss": loss_of(self._loader, kind, definition["loss"]),
            "metrics": {name: metric_of(self._loader, kind, name) for name in definition["metrics"]},
        }
        if kind == "imputation":
            return self._imputation(common, count)
        sides = [self._side(*pair) for pair in zip(definition["models"], definition["keys"], strict=True)]
        if kind == _PAIRED:
            return self._semantic(common, sides)
        made: Trainer = self._component("trainer", definition["trainer"])(
            sides=sides, options=dict(definition["options"]), **common
        )
        return made

    def _semantic(self, common: dict[str, Any], sides: list[Side]) -> Trainer:
        definition = self._definition
        splitter = definition["splitter"] and self._component("splitter", definition["splitter"])
        measure = definition["measure"]
        own = None if measure in BUILTIN else self._component("measure", measure)
        pair = [sides[-1], sides[0]]  # the last encodes queries, the first the documents
        return SemanticTrainer(sides=pair, splitter=splitter or None, measure=Measure(measure, own), **common)

    def _imputation(self, common: dict[str, Any], count: Callable[[str], Mapping[Any, int]]) -> Trainer:
        definition, key = self._definition, self._definition["target_key"]
        side = self._side(definition["model"], definition["model_key"])
        target: Any = None
        labels = weights = None
        if definition["target_kind"] == "model":
            target = self._side(definition["target"], key)
        elif definition["target_kind"] == "function":
            target = self._component("function", definition["target"])
        elif definition["loss"] in CLASSIFYING:
            counts = count(key)
            labels = Labels(tuple(counts), several=definition["loss"] == "bce")
            weights = class_weights(self._training.class_weights, counts)
        made = EstimatorTrainer if is_estimator(side.module) else ImputationTrainer
        if self._training.class_weights is not None and labels is None and made is ImputationTrainer:
            raise InvalidInputError(f"class_weights= needs classes: loss={' or '.join(CLASSIFYING)}, and no target=.")
        return made(sides=[side], target_key=key, target=target, labels=labels, weights=weights, **common)

    def _side(self, model: str, key: str) -> Side:
        bundle = self.bundles[model]
        obj = bundle["object"]
        steps = {name: bundle[name] or getattr(obj, name, None) for name in ("preprocess", "postprocess")}
        device = batches.place(obj, self._training.device) if hasattr(obj, "state_dict") else None
        return Side(model, key, obj, device=device, **steps)

    def _component(self, kind: Any, id: str) -> Any:
        return self._loader.object(self._loader.store.get(kind, id))
