"""The loop: epochs, steps, validation, checkpoints. What is learnt the trainer says, and how the stepper."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from superduper_nb.errors import InvalidInputError, ModelError
from superduper_nb.training.data import Samples, filled
from superduper_nb.training.monitor import TRAIN_LOSS, Monitor
from superduper_nb.training.options import Training
from superduper_nb.training.results import CANCELLED, INTERRUPTED, Onlooker, Recorder, Result
from superduper_nb.training.seeds import random_state_kept, seed_all
from superduper_nb.training.stepper import Stepper
from superduper_nb.training.steps import Step, steps

__all__ = ["Loop"]

_POINTS: Final = 200
"""So many points does the curve of the training loss have, about."""
_NO_NUMBER: Final = "the loss was"
_LITTLE_S: Final = 5.0
"""What takes no longer is done again, rather than kept, should a worker die."""


@dataclass(slots=True)
class _Place:
    """Where a run is: with the stepper's state and the best weights, all that another attempt needs."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    validated: int = -1
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
    ) -> None:
        self._stepper, self._training, self._samples = stepper, training, samples
        self._validation = {name: each for name, each in validation.items() if len(each.documents)}
        self._monitor = Monitor(training, self._validation)
        self._total, self._recorder, self._onlooker = total, recorder, onlooker
        self._every = max(1, total // _POINTS)
        self._place = _Place()
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
        if self._place.validated < 0:
            self._validate()
        while not self._over():
            self._epoch()
        if self._place.ended == "":
            self._validate()

    def _over(self) -> bool:
        return self._place.ended is not None

    def _epoch(self) -> None:
        place = self._place
        before, begun = place.step, place.batch
        where = self._stepper.group, place.epoch, place.batch
        with closing(steps(self._samples, self._training, *where, self._stopped)) as coming:
            for batches, step in coming:
                self._step(batches, step)
                if self._over():
                    break
        if self._over():
            return
        if place.step == before and not begun:
            raise InvalidInputError("No document of the training fold could be prepared; see what was skipped.")
        place.epoch, place.batch = place.epoch + 1, 0
        if self._training.validate_every is None:
            self._validate()

    def _stopped(self) -> bool:
        if self._onlooker.stopped():
            self._place.ended = CANCELLED
        return self._over()

    def _step(self, batches: int, step: Step) -> None:
        place = self._place
        place.batch += batches
        if step:
            with self._onlooker.turn():
                seed_all(self._training.seed, place.step)  # another attempt draws the same
                loss = self._stepper.step(step)
            place.step += 1
            self._stepped(loss)

    def _stepped(self, loss: float) -> None:
        place = self._place
        if not math.isfinite(loss):
            place.ended = f"{_NO_NUMBER} {loss} at step {place.step} (epoch {place.epoch})"
            return
        place.loss_sum, place.loss_count = place.loss_sum + loss, place.loss_count + 1
        if place.step >= self._total:
            place.ended = ""
        self._onlooker.tell(place.step)
        self._look()

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
        if place.ended is None and self._old(training.checkpoint_every_s):
            self._save()

    def _old(self, seconds: float) -> bool:
        """Say whether there is no checkpoint of so many seconds, or younger."""
        return time.monotonic() - self._saved >= seconds

    def _note(self, values: Mapping[str, float]) -> None:
        place = self._place
        if place.loss_count:
            self._values[TRAIN_LOSS] = place.loss_sum / place.loss_count
            place.loss_sum, place.loss_count = 0.0, 0
            values = {TRAIN_LOSS: self._values[TRAIN_LOSS], **values}
        self._values |= values
        if values:
            self._recorder.point(place.step, place.epoch, values)

    # --- validation ------------------------------------------------------------------------------------------------

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
        self._monitor.compare(place.step, self._values, self._stepper.weights)
        if self._monitor.gives_up and place.ended is None:
            place.ended = f"no better for {self._monitor.worse} validations in a row"

    def _evaluated(self, samples: Samples) -> dict[str, float]:
        seed_all(self._training.seed, "validation")
        with torch.no_grad(), self._stepper.autocast(), self._stepper.alone():
            return self._stepper.trainer.evaluate(filled(samples.batches(self._training.batch_size)))

    # --- checkpoints, and the end ----------------------------------------------------------------------------------

    def _save(self) -> None:
        self._recorder.checkpoint(
            {
                "place": asdict(self._place),
                "monitor": self._monitor.state(),
                "values": self._values,
                "stepper": self._stepper.state(),
                "data": {"blocks": self._samples.documents.blocks, "buffer": self._samples.buffer},
            }
        )
        self._saved = time.monotonic()

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        self._place = _Place(**checkpoint["place"])
        self._monitor.restore(checkpoint["monitor"])
        self._values = dict(checkpoint["values"])
        self._stepper.restore(checkpoint["stepper"])
        self._onlooker.tell(self._place.step)

    def _result(self) -> Result:
        place, best = self._place, self._monitor.best
        if (place.ended or "").startswith(_NO_NUMBER) and (best is None or best.step == 0):
            raise ModelError(
                f"Training stopped: {place.ended}, and nothing better than the start was found. "
                "Lower lr=, set clip_norm=, or look at the loss."
            )
        if best is not None:
            self._stepper.load(best.weights)
        self._stepper.eval_mode()
        if place.ended == "" and self._old(min(_LITTLE_S, self._training.checkpoint_every_s)):
            self._save()  # a worker that dies between here and the job's end finds the run as good as over
        at, value = (0, math.nan) if best is None else (best.step, best.value)
        return Result(place.step, place.epoch, at, value, self._monitor.name, self._values, place.ended or None)
