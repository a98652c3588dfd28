"""The loop: epochs, validation, early stopping, checkpoints. What is learnt the trainer says, and how the stepper."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from superduper_nb.errors import InvalidInputError, ModelError
from superduper_nb.training.data import Samples
from superduper_nb.training.options import Training
from superduper_nb.training.stepper import Stepper, random_state_kept, seed_all
from superduper_nb.training.trainer import cut

__all__ = ["CANCELLED", "INTERRUPTED", "Best", "Loop", "Onlooker", "Recorder", "Result"]

_POINTS: Final = 200
"""So many points does the curve of the training loss have, about."""
_TRAIN_LOSS: Final = "loss"
INTERRUPTED: Final = "interrupted"
CANCELLED: Final = "cancelled"


class Onlooker(Protocol):
    """How whoever asked for the training looks in on it."""

    def turn(self) -> AbstractContextManager[None]:
        """Wait until it may compute."""

    def stopped(self) -> bool:
        """Say whether to stop."""

    def tell(self, done: int) -> None:
        """Hear how many steps are done."""


class Recorder(Protocol):
    """Where a run leaves what it finds."""

    def point(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Keep values of a step; those of the same step replace them."""

    def flush(self) -> None:
        """Write what is not written yet."""

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep the state from which the run goes on should it be killed; it replaces the one before."""


@dataclass(slots=True)
class Best:
    """The best weights so far."""

    step: int
    value: float
    weights: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended.

    Attributes
    ----------
    step, epoch : int
        Where.
    best_step : int
        When the weights were those that it leaves in the modules.
    best : float
        What was monitored, then.
    monitor : str
        What that is.
    values : dict
        The last values of the loss and of each metric.
    stopped : str or None
        Why, before its steps were done.
    """

    step: int
    epoch: int
    best_step: int
    best: float
    monitor: str
    values: dict[str, float]
    stopped: str | None


@dataclass(slots=True)
class _Place:
    """Where a run is: with the stepper's state and the best weights, all that another attempt needs."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    validated: int = -1
    worse: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    ended: str | None = None
    """Why it is over; empty: its steps are done."""


class Loop:
    """Trains.

    Parameters
    ----------
    stepper : Stepper
        Updates weights.
    training : Training
        How long, and when to validate.
    samples : Samples
        What is learnt.
    validation : mapping of str to Samples
        What it is judged by; "valid" is the fold of that name.
    total : int
        Steps at most.
    recorder : Recorder
        Where results and checkpoints go.
    onlooker : Onlooker
        Who watches.
    update : callable, optional
        ``(samples of each batch) -> loss``: one step; default: the stepper's own, in this process.
    """

    def __init__(
        self,
        stepper: Stepper,
        training: Training,
        samples: Samples,
        validation: Mapping[str, Samples],
        total: int,
        recorder: Recorder,
        onlooker: Onlooker,
        update: Callable[[list[list[Any]]], float] | None = None,
    ) -> None:
        self._stepper, self._training, self._samples = stepper, training, samples
        self._validation = {name: each for name, each in validation.items() if len(each.documents)}
        self._total, self._recorder, self._onlooker = total, recorder, onlooker
        self._update = update or self._update_here
        self._every = max(1, total // _POINTS)
        self._place = _Place()
        self._best: Best | None = None
        self._values: dict[str, float] = {}
        self._saved = self._validated = time.monotonic()

    def run(self, checkpoint: Mapping[str, Any] | None = None) -> Result:
        """Train, from a checkpoint where one is given; leave the best weights in the modules.

        Raises
        ------
        ModelError
            The loss was no number before anything better than the start was found.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        with random_state_kept():
            try:
                self._run()
            except KeyboardInterrupt:
                self._place.ended = INTERRUPTED
            finally:
                self._recorder.flush()
        return self._result()

    def _run(self) -> None:
        place = self._place
        if place.validated < 0:
            self._validate()
        while not self._over():
            before = place.step
            for batches in self._epoch():
                self._step(batches)
                if self._over():
                    break
            else:
                if place.step == before and not place.batch:
                    raise InvalidInputError("No document of the training fold could be prepared; see what was skipped.")
                place.epoch, place.batch = place.epoch + 1, 0
                if self._training.validate_every is None:
                    self._validate()
        if self._place.ended == "":
            self._validate()

    def _over(self) -> bool:
        return self._place.ended is not None

    def _epoch(self) -> Iterator[list[list[Any]]]:
        """Yield the batches of each step that is left of the epoch."""
        step: list[list[Any]] = []
        least = max(2, self._training.processes)
        for n, batch in enumerate(cut(self._samples.epoch(self._place.epoch), self._training.batch_size, least)):
            if n < self._place.batch:
                continue
            step.append(batch)
            if len(step) == self._training.grad_accumulation:
                yield step
                step = []
        if step:
            yield step

    def _step(self, batches: list[list[Any]]) -> None:
        place = self._place
        if self._onlooker.stopped():
            place.ended = CANCELLED
            return
        with self._onlooker.turn():
            seed_all(self._training.seed, place.step)  # another attempt draws the same
            loss = self._update(batches)
        place.step, place.batch = place.step + 1, place.batch + len(batches)
        if not math.isfinite(loss):
            place.ended = f"the loss was {loss} at step {place.step} (epoch {place.epoch})"
            return
        place.loss_sum, place.loss_count = place.loss_sum + loss, place.loss_count + 1
        if place.step >= self._total:
            place.ended = ""
        self._onlooker.tell(place.step)
        self._look()

    def _update_here(self, batches: list[list[Any]]) -> float:
        size = sum(map(len, batches))
        collate = self._stepper.trainer.collate
        return self._stepper.step([(collate(batch), len(batch) / size, [len(batch)]) for batch in batches])

    def _look(self) -> None:
        """Note the loss, validate, and save a checkpoint, where it is time to."""
        training, place, now = self._training, self._place, time.monotonic()
        due = bool(training.validate_every) and place.step % (training.validate_every or 1) == 0
        if training.validate_every_s is not None:
            due = due or now - self._validated >= training.validate_every_s
        if due:
            self._validate()
        elif place.step % self._every == 0:
            self._note({})
        if now - self._saved >= training.checkpoint_every_s and place.ended is None:
            self._save()

    def _note(self, values: Mapping[str, float]) -> None:
        place = self._place
        if place.loss_count:
            self._values[_TRAIN_LOSS] = place.loss_sum / place.loss_count
            place.loss_sum, place.loss_count = 0.0, 0
            values = {_TRAIN_LOSS: self._values[_TRAIN_LOSS], **values}
        self._values |= values
        if values:
            self._recorder.point(place.step, place.epoch, values)

    def _validate(self) -> None:
        place = self._place
        if place.validated == place.step:
            return
        self._stepper.eval_mode()
        results: dict[str, float] = {}
        for name, samples in self._validation.items():
            with self._onlooker.turn():
                results |= {f"{name}.{key}": value for key, value in self._evaluated(samples).items()}
        self._note(results)
        place.validated, self._validated = place.step, time.monotonic()
        self._compare()

    def _evaluated(self, samples: Samples) -> dict[str, float]:
        import torch

        trainer = self._stepper.trainer
        seed_all(self._training.seed, "validation")
        batches = cut(samples.in_order(), self._training.batch_size, 1)
        with torch.no_grad(), self._stepper.autocast():
            return trainer.evaluate((trainer.collate(batch), len(batch)) for batch in batches)

    def _compare(self) -> None:
        place, monitor = self._place, self._monitored
        if monitor not in self._values:
            if monitor == _TRAIN_LOSS:  # nothing was learnt yet
                self._best = Best(0, math.inf, self._stepper.weights())
                return
            known = ", ".join(name for name in self._values if name != _TRAIN_LOSS)
            raise InvalidInputError(f"monitor={monitor!r}: no such result. There are: {known}.")
        value = self._values[monitor]
        better = math.isfinite(value) and (self._best is None or self._better(value, self._best.value))
        if better or self._best is None:
            self._best = Best(place.step, value, self._stepper.weights())
            place.worse = 0
            return
        place.worse += 1
        if self._training.early_stopping and place.worse >= self._training.early_stopping and place.ended is None:
            place.ended = f"no better for {place.worse} validations in a row"

    def _better(self, value: float, best: float) -> bool:
        if not math.isfinite(best):
            return True
        return value > best if self._rising else value < best

    @property
    def _monitored(self) -> str:
        # Without a document to judge by, the training loss has to do.
        fold = self._training.monitor.partition(".")[0]
        return _TRAIN_LOSS if fold == "valid" and fold not in self._validation else self._training.monitor

    @property
    def _rising(self) -> bool:
        return self._training.rising and self._monitored != _TRAIN_LOSS

    def _save(self) -> None:
        assert self._best is not None
        samples = self._samples
        place, best = asdict(self._place), {name: getattr(self._best, name) for name in ("step", "value", "weights")}
        data = {"blocks": samples.documents.blocks, "buffer": samples.buffer}
        state = {"place": place, "best": best, "values": self._values, "stepper": self._stepper.state(), "data": data}
        self._recorder.checkpoint(state)
        self._saved = time.monotonic()

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        self._place = _Place(**checkpoint["place"])
        self._best = Best(**checkpoint["best"])
        self._values = dict(checkpoint["values"])
        self._stepper.restore(checkpoint["stepper"])
        self._onlooker.tell(self._place.step)

    def _result(self) -> Result:
        place, best = self._place, self._best
        if best is None:
            best = Best(0, math.nan, self._stepper.weights())
        if (place.ended or "").startswith("the loss was") and best.step == 0:
            raise ModelError(
                f"Training stopped: {place.ended}, and nothing better than the start was found. "
                "Lower lr=, set clip_norm=, or look at the loss."
            )
        self._stepper.load(best.weights)
        self._stepper.eval_mode()
        self._save_end()
        stopped = place.ended or None
        return Result(place.step, place.epoch, best.step, best.value, self._monitored, self._values, stopped)

    def _save_end(self) -> None:
        """A worker that dies between here and the job's end finds the run as good as over."""
        if self._place.ended == "" and self._best is not None:
            self._save()
