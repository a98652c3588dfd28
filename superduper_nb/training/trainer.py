"""The protocol of what is trained, and the two sides that documents give it: a model on a key, a target on a key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isgenerator
from typing import TYPE_CHECKING, Any

from superduper_nb.documents.paths import get_path
from superduper_nb.errors import InvalidInputError
from superduper_nb.models import batches

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Group", "Side", "Trainer"]

_MISSING = object()


class Group:
    """The processes that train together. This one is alone.

    Attributes
    ----------
    gathered : bool
        The loss of this batch was taken over the rows of all.
    """

    gathered = True

    def agree(self, sizes: Sequence[int]) -> list[list[int]] | None:
        """Tell how many rows of each batch of a step there are here; return how many there are in each process.

        None: the epoch is over.
        """
        return [[size] for size in sizes]

    def begin(self, sizes: Sequence[int]) -> None:
        """Hear how the rows of the next batch are shared out."""

    @property
    def share(self) -> float:
        """How much of the batch is this process's."""
        return 1.0

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes, in their order; gradients flow to one's own."""
        return tensor

    def sum(self, value: float) -> float:
        """Return the sum over the processes."""
        return value

    def reduce(self, parameters: Iterable[Any]) -> None:
        """Replace each gradient by the sum over the processes."""


@dataclass(slots=True)
class Side:
    """A model on a key: how a document becomes its input, and a batch of inputs its output.

    Attributes
    ----------
    model : str
        The model's name.
    key : str
        What it is applied to.
    module : torch.nn.Module or callable
        The model itself, a copy of its own for this training.
    preprocess, postprocess : callable or None
        Around it, one document at a time.
    device : torch.device or None
        Where it is.
    """

    model: str
    key: str
    module: Any
    preprocess: Callable[[Any], Any] | None = None
    postprocess: Callable[[Any], Any] | None = None
    device: Any = None

    def item(self, document: Any) -> Any:
        """Return the model's input for a document, or for a value that stands in its place."""
        value = get_path(document, self.key, _MISSING) if isinstance(document, Mapping) else document
        if value is _MISSING:
            raise InvalidInputError(f"It has no {self.key!r}.")
        return value if self.preprocess is None else self.preprocess(value)

    def collate(self, items: list[Any]) -> Any:
        """Build a batch of inputs."""
        return getattr(self.module, "collate", batches.collate)(items)

    def output(self, batch: Any) -> Any:
        """Apply the model to a batch."""
        return self.module(batches.to_device(batch, self.device))


@dataclass(slots=True)
class Trainer:
    """What a training does with documents. Subclass it, register the class, and name it in `create_learning_task`.

    The loop, not the trainer, owns optimizers, schedules, precision, validation, early stopping and checkpoints.

    Attributes
    ----------
    sides : list of Side
        One for each model of the task, in its order, on the key of the same place.
    metrics : dict of str to callable
        Those of the task.
    loss : callable or None
        That of the task.
    options : dict
        What the task was created with besides.
    group : Group
        The processes that train together.

    Examples
    --------
    >>> class Autoencoder(sd.Trainer):                                            # doctest: +SKIP
    ...     def step(self, batch):
    ...         (x,) = batch
    ...         return torch.nn.functional.mse_loss(self.sides[0].output(x), x)
    >>> docs.create_trainer("autoencoder", Autoencoder)                           # doctest: +SKIP
    >>> docs.create_learning_task("small", "autoencoder", ["m"], ["img"])          # doctest: +SKIP
    """

    sides: list[Side]
    loss: Callable[..., Any] | None = None
    metrics: dict[str, Callable[..., Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    group: Group = field(default_factory=Group)

    def prepare(self, document: dict[str, Any]) -> Any:
        """Return a document's sample; raise where it can't be learnt from: it is skipped and counted."""
        return tuple(side.item(document) for side in self.sides)

    def collate(self, samples: Sequence[Any]) -> Any:
        """Build a batch of samples; default: one input batch for each side."""
        return [side.collate(list(items)) for side, items in zip(self.sides, zip(*samples, strict=True), strict=True)]

    @property
    def by_rows(self) -> bool:
        """Say whether `collate` makes of a sample the same row whatever the others are, as long as all are alike."""
        return type(self).collate is Trainer.collate and self.plain

    @property
    def plain(self) -> bool:
        """No model has a `collate` of its own."""
        return not any(hasattr(side.module, "collate") for side in self.sides)

    def step(self, batch: Any) -> Any:
        """Return the loss of a batch: a tensor of one number, of which the loop takes the gradient.

        May be a generator that yields ``(model, loss)`` several times: the named model alone is updated by each, in
        that order, and before the next is computed (the two networks of a GAN, say).
        """
        raise NotImplementedError(f"{type(self).__name__} has no step(batch).")

    def evaluate(self, batches: Iterable[tuple[Any, int]]) -> dict[str, float]:
        """Return the results over a validation set, given as ``(batch, its size)``; default: the mean of `step`."""
        return {"loss": mean((_value(self.step(batch)), size) for batch, size in batches)}

    def modules(self) -> dict[str, nn.Module]:
        """Return what has parameters, by the model's name."""
        import torch

        return {side.model: side.module for side in self.sides if isinstance(side.module, torch.nn.Module)}

    def finished(self, model: str, bundle: dict[str, Any]) -> dict[str, Any]:
        """Return what is stored of a trained model: its object, preprocess and postprocess."""
        return bundle


def _value(loss: Any) -> float:
    if not isgenerator(loss):
        return float(loss)
    return sum(float(turn[1]) for turn in list[Any](loss))


def mean(weighted: Iterable[tuple[float, int]]) -> float:
    """Return the mean of values with weights; NaN of none."""
    total = weight = 0.0
    for value, size in weighted:
        total, weight = total + value * size, weight + size
    return total / weight if weight else float("nan")
