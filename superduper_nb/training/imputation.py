"""Training a model to predict one part of a document from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from superduper_nb.documents.paths import get_path
from superduper_nb.errors import InvalidInputError
from superduper_nb.models import batches
from superduper_nb.training.metrics import measured
from superduper_nb.training.trainer import Side, Trainer, mean

__all__ = ["ImputationTrainer", "Labels", "Number", "class_weights", "targets_of"]

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Labels:
    """From a model's logits to the labels that they stand for.

    Attributes
    ----------
    classes : tuple
        The labels, in the order of the logits.
    several : bool
        Any number of them may hold.
    """

    classes: tuple[Any, ...]
    several: bool = False

    def __call__(self, logits: Any) -> Any:
        """Return the label, or the list of labels."""
        if self.several:
            return [label for label, logit in zip(self.classes, logits.tolist(), strict=True) if logit > 0]
        return self.classes[int(logits.argmax())]

    def index(self, label: Any) -> Any:
        """Return the number of a label; for several, 0 or 1 for each class.

        Raises
        ------
        InvalidInputError
            One that training has not seen.
        """
        wanted = label if self.several else [label]
        if unknown := [each for each in wanted if each not in self.classes]:
            raise InvalidInputError(f"The label {unknown[0]!r:.80} is in no document of the training fold.")
        if not self.several:
            return self.classes.index(label)
        return [float(each in wanted) for each in self.classes]


@dataclass(frozen=True, slots=True)
class Number:
    """From a model's output to a plain number."""

    def __call__(self, output: Any) -> Any:
        """Return it; a list where there are several."""
        return output.item() if output.numel() == 1 else output.tolist()


@dataclass(slots=True)
class ImputationTrainer(Trainer):
    """Trains ``model(x)`` towards a target: a plain value, a function of it, or another model's output.

    Attributes
    ----------
    target_key : str
        Where the target is.
    target : callable, Side or None
        What is made of it.
    labels : Labels or None
        Of a classification whose target is a plain value.
    weights : sequence of float or None
        Of the classes, in the loss.
    """

    target_key: str = ""
    target: Callable[[Any], Any] | Side | None = None
    labels: Labels | None = None
    weights: Sequence[float] | None = None
    _weight: Any = field(default=None, init=False)

    def prepare(self, document: dict[str, Any]) -> tuple[Any, Any]:
        """Return input and target."""
        return self.sides[0].item(document), self.target_item(document)

    def target_item(self, document: dict[str, Any]) -> Any:
        """Return the target of a document."""
        if isinstance(self.target, Side):
            return self.target.item(document)
        value = get_path(document, self.target_key, _MISSING)
        if value is _MISSING or value is None:
            raise InvalidInputError(f"It has no {self.target_key!r}.")
        if self.labels is not None:
            return self.labels.index(value)
        return value if self.target is None else self.target(value)

    def collate(self, samples: Sequence[Any]) -> tuple[Any, Any]:
        """Build a batch of inputs, and one of targets."""
        inputs, targets = zip(*samples, strict=True)
        if isinstance(self.target, Side):
            return self.sides[0].collate(list(inputs)), self.target.collate(list(targets))
        return self.sides[0].collate(list(inputs)), targets_of(list(targets))

    @property
    def by_rows(self) -> bool:
        """Say whether `collate` makes of a sample the same row whatever the others are, as long as all are alike."""
        return self.plain and not (isinstance(self.target, Side) and hasattr(self.target.module, "collate"))

    def step(self, batch: Any) -> Any:
        """Return the loss of a batch."""
        outputs, targets = map(self.group.gather, self.compared(batch))
        return self._loss(outputs, targets)

    def compared(self, batch: Any) -> tuple[Any, Any]:
        """Return outputs and targets."""
        inputs, targets = batch
        outputs = self.sides[0].output(inputs)
        if self.labels is not None and outputs.shape[-1] < len(self.labels.classes):
            classes = ", ".join(map(repr, self.labels.classes))
            raise InvalidInputError(
                f"The model answers {outputs.shape[-1]} numbers, and {self.target_key!r} has "
                f"{len(self.labels.classes)} classes ({classes:.200}): it must answer one for each."
            )
        if isinstance(self.target, Side):
            return outputs, self.target.output(targets)
        return outputs, batches.to_device(targets, self.sides[0].device)

    def _loss(self, outputs: Any, targets: Any) -> Any:
        assert self.loss is not None
        if self.weights is None:
            return self.loss(outputs, targets)
        if self._weight is None:
            import torch

            self._weight = torch.tensor(self.weights, device=outputs.device)
        return self.loss(outputs, targets, weight=self._weight)

    def evaluate(self, batches: Iterable[tuple[Any, int]]) -> dict[str, float]:
        """Return the mean loss, and each metric over all outputs and targets at once."""
        import torch

        losses, outputs, targets = [], [], []
        for batch, size in batches:
            output, target = self.compared(batch)
            losses.append((float(self._loss(output, target)), size))
            if self.metrics:
                outputs.append(output.float().cpu())
                targets.append(target.cpu())
        results = {"loss": mean(losses)}
        if outputs:
            whole = torch.cat(outputs), torch.cat(targets)
            results |= {name: measured(name, metric, *whole) for name, metric in self.metrics.items()}
        return results

    def modules(self) -> dict[str, Any]:
        """Return the model, and that of the target."""
        import torch

        sides = [*self.sides, *([self.target] if isinstance(self.target, Side) else [])]
        return {side.model: side.module for side in sides if isinstance(side.module, torch.nn.Module)}

    def finished(self, model: str, bundle: dict[str, Any]) -> dict[str, Any]:
        """Return the trained model; without a postprocess of its own it answers what was imputed, not logits."""
        own = bundle["postprocess"] or getattr(bundle["object"], "postprocess", None)
        if own is not None and not isinstance(own, (Labels, Number)):
            return bundle
        made_here = self.loss is not None and self.target is None and model == self.sides[0].model
        if not made_here:
            return bundle
        return {**bundle, "postprocess": self.labels or Number()}


def targets_of(targets: list[Any]) -> Any:
    """Build a batch of targets: of numbers in float32, of classes as they are."""
    import torch

    if isinstance(targets[0], (float, list)) and not isinstance(targets[0], bool):
        return torch.tensor(targets, dtype=torch.float32)
    return batches.collate(targets)


def class_weights(wanted: Mapping[Any, float] | str | None, counts: Mapping[Any, int]) -> list[float] | None:
    """Return the weight of each class, in the order of `counts`."""
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        if unknown := [label for label in wanted if label not in counts]:
            raise InvalidInputError(f"class_weights names {unknown[0]!r}; the classes are {list(counts)!r:.200}.")
        return [float(wanted.get(label, 1.0)) for label in counts]
    total = sum(counts.values())
    return [total / (len(counts) * count) for count in counts.values()]
