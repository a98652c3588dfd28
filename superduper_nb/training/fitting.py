"""Trainers with a loop of their own: batches in, results out; the best kept, checkpoints, an end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final

from superduper_nb.documents.paths import get_path
from superduper_nb.errors import InvalidInputError, ModelError
from superduper_nb.training.data import Samples, filled
from superduper_nb.training.imputation import Labels, targets_of
from superduper_nb.training.monitor import Best
from superduper_nb.training.options import Training
from superduper_nb.training.results import CANCELLED, INTERRUPTED, Onlooker, Recorder, Result
from superduper_nb.training.seeds import random_state_kept
from superduper_nb.training.trainer import Trainer

__all__ = ["Fitter", "Fitting", "SupervisedFitter"]

_POINTS: Final = 200
_NOT_STEPS: Final = frozenset(
    {"optimizer", "scheduler", "lr", "weight_decay", "warmup_steps", "grad_accumulation", "clip_norm", "precision"}
    | {"validate_every", "validate_every_s", "use_grads", "class_weights", "processes"}
)
"""What of a `Training` says how our own loop takes its steps."""


@dataclass(slots=True)
class Fitter(Trainer):
    """A trainer with a loop of its own.

    It takes what a `Fitting` gives and tells it how it goes. `Training` says how long, what is best and when to stop.
    Of the options that say how a step is taken, those that `heeds` names count, and each other one is refused.

    Examples
    --------
    >>> class Memory(Fitter):                                                     # doctest: +SKIP
    ...     def fit(self, fitting):
    ...         for epoch in itertools.count():
    ...             for samples in fitting.batches(epoch):
    ...                 fitting.begin()
    ...                 loss = self.learn(samples)
    ...                 if fitting.tell(loss=loss):
    ...                     return
    ...             fitting.judge({"valid.error": self.error(fitting.held_out("valid"))})
    """

    heeds: ClassVar[frozenset[str]] = frozenset()

    def fit(self, fitting: Fitting) -> None:
        """Train, until `Fitting.tell` or `Fitting.judge` says that it is over."""
        raise NotImplementedError(f"{type(self).__name__} has no fit(fitting).")

    def snapshot(self) -> Any:
        """Return a copy of what was learnt so far, which `restore` takes back; default: every module's state."""
        return {
            name: {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}
            for name, module in self.modules().items()
        }

    def restore(self, snapshot: Any) -> None:
        """Put back what `snapshot` returned."""
        for name, module in self.modules().items():
            module.load_state_dict(snapshot[name])
            module.eval()


class Fitting:
    """A run, as a `Fitter` sees it.

    Attributes
    ----------
    training : Training
        How to train.
    total : int
        Steps at most.
    step, epoch : int
        Where it is; not 0 where a killed run goes on.
    state : object or None
        What was last given to `save`, before the run was killed.
    """

    def __init__(
        self,
        trainer: Fitter,
        training: Training,
        samples: Samples,
        validation: Mapping[str, Samples],
        total: int,
        recorder: Recorder,
        onlooker: Onlooker,
    ) -> None:
        self.training, self.total = training, total
        self.step = self.epoch = 0
        self.state: Any = None
        self._trainer, self._samples = trainer, samples
        self._validation = {name: each for name, each in validation.items() if len(each.documents)}
        self._recorder, self._onlooker = recorder, onlooker
        self._best: Best | None = None
        self._values: dict[str, float] = {}
        self._losses: list[float] = []
        self._worse, self._ended = 0, None if total else ""
        self._turn = ExitStack()
        self._saved = time.monotonic()

    def run(self, checkpoint: Mapping[str, Any] | None = None) -> Result:
        """Let the trainer train; leave the best in it."""
        _refuse(self.training, self._trainer)
        if checkpoint is not None:
            self._restore(checkpoint)
        with random_state_kept(), self._turn:
            try:
                self._trainer.fit(self)
            except KeyboardInterrupt:
                self._ended = INTERRUPTED
            finally:
                self._recorder.flush()
        return self._result()

    # --- what it gives -------------------------------------------------------------------------------------------

    def batches(self, epoch: int, skip: int = 0) -> Iterator[list[Any]]:
        """Yield the batches of an epoch, as lists of samples, in the order of the seed; the first few left out."""
        n = -1
        for n, batch in enumerate(filled(self._samples.batches(self.training.batch_size, epoch))):
            if n >= skip:
                yield batch.data
        if n < 0:
            raise InvalidInputError("No document of the training fold could be prepared; see what was skipped.")

    def in_order(self) -> Iterator[Any]:
        """Yield every sample of the training fold."""
        return self._samples.epoch(None)

    @property
    def validation_sets(self) -> list[str]:
        """The names of what it is judged by: the fold "valid", where it has documents, and frozen sets."""
        return list(self._validation)

    def held_out(self, name: str) -> Iterator[list[Any]]:
        """Yield batches of a validation set."""
        return (batch.data for batch in filled(self._validation[name].batches(self.training.batch_size)))

    # --- what it is told -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Wait until it may compute; for a step, or for a validation."""
        self._turn.enter_context(self._onlooker.turn())

    def rest(self) -> None:
        """Let others compute, until the next `begin`."""
        self._turn.close()

    def tell(self, *, loss: float | None = None, steps: int = 1) -> bool:
        """Say that a step is done, with its loss; hear whether the training is over."""
        self.rest()
        self.step += steps
        if loss is not None and not math.isfinite(loss):
            self._ended = f"the loss was {loss} at step {self.step} (epoch {self.epoch})"
        elif loss is not None:
            self._losses.append(loss)
        if self.step % max(1, self.total // _POINTS) == 0:
            self._note({})
        self._onlooker.tell(self.step)
        if self._ended is None and self._onlooker.stopped():
            self._ended = CANCELLED
        return self.over

    def judge(self, values: Mapping[str, float]) -> bool:
        """Say what a validation found (``"valid.accuracy"``); the best is kept. Hear whether the training is over."""
        self.rest()
        self._note(values)
        monitor = self._monitored(values)
        value = values.get(monitor, math.nan)
        if self._best is None or monitor not in values or self._better(value):
            self._best, self._worse = Best(self.step, value, self._trainer.snapshot()), 0
            return self.over
        self._worse += 1
        patience = self.training.early_stopping
        if patience and self._worse >= patience and self._ended is None:
            self._ended = f"no better for {self._worse} validations in a row"
        return self.over

    @property
    def over(self) -> bool:
        """The training is over: its steps are done, it is cancelled, or it gets no better."""
        return self._ended is not None or self.step >= self.total

    def due(self) -> bool:
        """Say whether it is time for `save`."""
        return time.monotonic() - self._saved >= self.training.checkpoint_every_s and not self.over

    def save(self, state: Any) -> None:
        """Keep a state from which the run goes on, should it be killed."""
        names = ("step", "value", "weights")
        best = None if self._best is None else {name: getattr(self._best, name) for name in names}
        place = {"step": self.step, "epoch": self.epoch, "worse": self._worse, "losses": self._losses}
        data = {"blocks": self._samples.documents.blocks, "buffer": self._samples.buffer}
        self._recorder.checkpoint({"place": place, "best": best, "values": self._values, "data": data, "own": state})
        self._saved = time.monotonic()

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        place, best = checkpoint["place"], checkpoint["best"]
        self.step, self.epoch, self._worse = place["step"], place["epoch"], place["worse"]
        self._losses, self._values = list(place["losses"]), dict(checkpoint["values"])
        self._best = None if best is None else Best(**best)
        self.state = checkpoint["own"]
        self._onlooker.tell(self.step)

    def _note(self, values: Mapping[str, float]) -> None:
        if self._losses:
            values = {"loss": sum(self._losses) / len(self._losses), **values}
            self._losses = []
        self._values |= values
        if values:
            self._recorder.point(self.step, self.epoch, values)

    def _monitored(self, values: Mapping[str, float]) -> str:
        monitor = self.training.monitor
        if monitor not in values and monitor != Training().monitor and "valid" in self._validation:
            raise InvalidInputError(f"monitor={monitor!r}: no such result. There are: {', '.join(values)}.")
        return monitor

    def _better(self, value: float) -> bool:
        assert self._best is not None
        if not math.isfinite(value) or not math.isfinite(self._best.value):
            return math.isfinite(value)
        return value > self._best.value if self.training.rising else value < self._best.value

    def _result(self) -> Result:
        stopped, best = self._ended or None, self._best
        if (stopped or "").startswith("the loss was") and (best is None or best.step == 0):
            raise ModelError(f"Training stopped: {stopped}, and nothing better than the start was found.")
        if best is None:
            best = Best(self.step, math.nan, self._trainer.snapshot())
        self._trainer.restore(best.weights)
        return Result(self.step, self.epoch, best.step, best.value, self.training.monitor, self._values, stopped)


def _refuse(training: Training, trainer: Fitter) -> None:
    """Refuse what would be without effect."""
    default = Training()
    for each in fields(Training):
        given = getattr(training, each.name)
        if each.name in _NOT_STEPS - trainer.heeds and given != getattr(default, each.name):
            heeded = f" It heeds {', '.join(sorted(trainer.heeds))}." if trainer.heeds else ""
            raise InvalidInputError(
                f"{each.name}={given!r:.80}: {type(trainer).__name__} has a loop of its own. Leave it out.{heeded}"
            )


@dataclass(slots=True)
class SupervisedFitter(Fitter):
    """Learns ``(input, target)`` of one model; ``create_learning_task(..., target="label", classes=["cat", "dog"])``.

    Without ``classes=`` the target is a number; without ``target=`` a sample is the input alone.
    """

    _labels: Labels | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.loss is not None or self.metrics:
            name = type(self).__name__
            raise InvalidInputError(f"{name} has a loss and metrics of its own: leave out loss= and metrics=.")
        if unknown := self.options.keys() - {"target", "classes"}:
            raise InvalidInputError(f"{min(unknown)}=: {type(self).__name__} takes target= and classes=.")
        if len(self.sides) != 1:
            raise InvalidInputError(f"{type(self).__name__} trains one model; {len(self.sides)} were given.")
        if (classes := self.options.get("classes")) is not None:
            self._labels = Labels(tuple(classes))

    def prepare(self, document: dict[str, Any]) -> Any:
        """Return input and target."""
        key = self.options.get("target")
        item = self.sides[0].item(document)
        if key is None:
            return item
        if (value := get_path(document, key, None)) is None:
            raise InvalidInputError(f"It has no {key!r}.")
        return item, (value if self._labels is None else self._labels.index(value))

    def finished(self, model: str, bundle: dict[str, Any]) -> dict[str, Any]:
        """Return what is stored; with ``classes=``, and without a postprocess of its own, it answers their names."""
        own = bundle["postprocess"] or getattr(bundle["object"], "postprocess", None)
        return bundle if own is not None or self._labels is None else {**bundle, "postprocess": self._labels}

    def collate(self, samples: Sequence[Any]) -> Any:
        """Build a batch of inputs, and one of targets."""
        if "target" not in self.options:
            return self.sides[0].collate(list(samples))
        inputs, targets = zip(*samples, strict=True)
        return self.sides[0].collate(list(inputs)), targets_of(list(targets))
