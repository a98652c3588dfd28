"""``LightningTrainer``: a `LightningModule` of Lightning, trained by Lightning's own `Trainer` from documents."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from superduper_nb.errors import InvalidInputError
from superduper_nb.training.fitting import Fitting, SupervisedFitter
from superduper_nb.training.seeds import seed_all

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    raise InvalidInputError("LightningTrainer needs Lightning: pip install 'superduper-nb[training]'.") from None

__all__ = ["LightningTrainer"]

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class LightningTrainer(SupervisedFitter):
    """Trains a `LightningModule` as Lightning does: its steps, its `configure_optimizers`, its hooks.

    What ``validation_step`` logs as ``val_loss`` is ``"valid.loss"`` here. Checkpoints are made at the ends of epochs.

    Examples
    --------
    >>> docs.create_trainer("lightning", LightningTrainer)                                         # doctest: +SKIP
    >>> docs.create_learning_task("digit", "lightning", ["net"], ["img"], target="label")          # doctest: +SKIP
    """

    heeds: ClassVar[frozenset[str]] = frozenset({"grad_accumulation", "clip_norm", "precision", "validate_every"})

    def fit(self, fitting: Fitting) -> None:
        """Train."""
        module = self.sides[0].module
        if not isinstance(module, LightningModule):
            raise InvalidInputError(f"LightningTrainer trains a LightningModule, not a {type(module).__name__}.")
        sets = [_Batches(self.collate, partial(fitting.held_out, name)) for name in fitting.validation_sets]
        watch = _Watch(fitting)
        with tempfile.TemporaryDirectory(prefix="superduper-lightning-") as folder:
            trainer = self._trainer(fitting, watch, folder)
            if sets:
                watch.results = {name for each in trainer.validate(module, sets, verbose=False) for name in each}
            before = Path(folder, "before.ckpt")
            if fitting.state is not None:
                before.write_bytes(fitting.state)
            train = _Batches(self.collate, lambda: fitting.batches(fitting.epoch))
            known = str(before) if fitting.state is not None else None
            judges = sets or _Batches(self.collate, lambda: iter(()))  # None brings a warning
            try:
                module.train()  # as Lightning's own users leave it; what it freezes, it says in its hooks
                trainer.fit(module, train, judges, ckpt_path=known, weights_only=False)
            except SystemExit:  # how Lightning passes on an interrupt
                raise KeyboardInterrupt from None
        if not sets:
            fitting.judge({})

    def _trainer(self, fitting: Fitting, watch: Callback, folder: str) -> Trainer:
        training, device = fitting.training, self.sides[0].device
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        every = training.validate_every and training.validate_every * training.grad_accumulation
        return Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            max_steps=fitting.total,
            precision=_PRECISIONS[training.precision],
            accumulate_grad_batches=training.grad_accumulation,
            gradient_clip_val=training.clip_norm,
            val_check_interval=every,
            check_val_every_n_epoch=None if every else 1,
            num_sanity_val_steps=0,
            limit_val_batches=None if fitting.validation_sets else 0,
            callbacks=[watch],
            default_root_dir=folder,
            **quiet,
        )


class _Batches:
    """Batches, drawn anew each time that they are looped over."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any], draw: Callable[[], Iterator[list[Any]]]) -> None:
        self._collate, self._draw = collate, draw

    def __iter__(self) -> Iterator[Any]:
        return map(self._collate, self._draw())


class _Watch(Callback):
    """Passes on what happens."""

    def __init__(self, fitting: Fitting) -> None:
        self._fitting, self.results = fitting, set[str]()
        self._batches = 0  # of the epoch; Lightning begins an epoch again where it goes on without a validation

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, number: int) -> None:
        self._fitting.begin()
        seed_all(self._fitting.training.seed, self._fitting.epoch, self._batches)  # another attempt draws the same
        self._batches += 1

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, number: int) -> None:
        loss = float(outputs["loss"]) if outputs else None
        trainer.should_stop |= self._fitting.tell(loss=loss, steps=trainer.global_step - self._fitting.step)

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        self._fitting.begin()

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        if not self.results and self._fitting.state is not None:
            return self._fitting.rest()  # of the run that goes on, the start was judged
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.results:  # what training logs is there, too
            found = {name: value for name, value in found.items() if name in self.results}
        names = self._fitting.validation_sets
        trainer.should_stop |= self._fitting.judge({_named(name, names): value for name, value in found.items()})

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if not self._batches:
            return  # Lightning ends the epoch, at whose end it goes on, once more
        self._fitting.epoch, self._batches = self._fitting.epoch + 1, 0
        if self._fitting.due():
            path = Path(trainer.default_root_dir, "now.ckpt")
            trainer.save_checkpoint(path)
            self._fitting.save(path.read_bytes())


def _named(name: str, sets: Sequence[str]) -> str:
    """Return our name of what Lightning logged: ``val_loss/dataloader_idx_1`` is the loss on the second set."""
    name, _, number = name.partition("/dataloader_idx_")
    return f"{sets[int(number or 0)]}.{name.removeprefix('val_').removeprefix('valid_')}"
