"""One update of the weights: forward, backward, precision, accumulation, clipping, optimizers and schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import isgenerator
from typing import Any

import torch

from superduper_nb.errors import ModelError
from superduper_nb.training import optimizing
from superduper_nb.training.options import Training
from superduper_nb.training.steps import Step
from superduper_nb.training.trainer import Group, Trainer

__all__ = ["Stepper"]


class Stepper:
    """Updates the weights of a trainer's modules.

    Parameters
    ----------
    trainer : Trainer
        Gives the loss.
    training : Training
        How.
    total : int
        Steps at most: where schedules end.

    Raises
    ------
    InvalidInputError
        There is nothing to train, or no such optimizer.
    """

    def __init__(self, trainer: Trainer, training: Training, total: int) -> None:
        self.trainer, self._training = trainer, training
        self.modules = trainer.modules()
        self.trained = optimizing.trained(self.modules, training.use_grads)
        self.optimizers = {name: optimizing.optimizer(module, training) for name, module in self.trained.items()}
        schedulers = {name: optimizing.scheduler(each, training, total) for name, each in self.optimizers.items()}
        self.schedulers = {name: each for name, each in schedulers.items() if each is not None}
        self._parameters = {
            name: [p for p in module.parameters() if p.requires_grad] for name, module in self.trained.items()
        }
        self._learning = False
        self.device = next(iter(next(iter(self.trained.values())).parameters())).device
        self._type = self.device.type
        self.group = trainer.group
        self._scaler = optimizing.scaler(self._type, training.precision)

    def join(self, group: Group) -> None:
        """Take every step together with a group of processes."""
        self.trainer.group = self.group = group

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let the trainer compute something that the other processes do not."""
        self.trainer.group = Group()
        try:
            yield
        finally:
            self.trainer.group = self.group

    def step(self, step: Step) -> float:
        """Update the weights once by the mean gradient of these batches; return the loss."""
        if not self._learning:
            self._train_mode()
        for parameters in self._parameters.values():
            for parameter in parameters:
                parameter.grad = None
        total = 0.0
        rows = sum(sum(sizes) for _, sizes in step)
        for batch, sizes in step:
            weight = sum(sizes) / rows
            self.group.begin(sizes)
            with self.autocast():
                loss = self.trainer.step(batch.data)
            if isgenerator(loss):
                total += weight * self._in_turns(loss, weight)
                continue
            loss, value = self._checked(loss)
            total += weight * value
            if math.isfinite(value):
                self._scaler.scale(loss if weight == 1 else loss * weight).backward()
        if not math.isfinite(total):
            return total
        if any(p.grad is not None for name in self.trained for p in self._parameters[name]):
            self._apply(list(self.trained))
        for scheduler in self.schedulers.values():
            scheduler.step()
        return total

    def _in_turns(self, losses: Iterator[Any], weight: float) -> float:
        """Take each ``(model, loss)`` of a generator as an update of its own; return the sum of the losses."""
        total = 0.0
        while True:
            with self.autocast():  # the generator computes the next loss with the weights as they are by then
                turn = next(losses, None)
            if turn is None:
                return total
            model, loss = turn
            if model not in self.trained:
                raise ModelError(f"step() yielded {model!r}; what is trained: {', '.join(self.trained)}.")
            loss, value = self._checked(loss)
            total += value
            if not math.isfinite(value):
                return total
            self.optimizers[model].zero_grad(set_to_none=True)
            self._scaler.scale(loss).backward()
            self._apply([model])
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)  # what this loss left in the other models

    def _checked(self, loss: Any) -> tuple[Any, float]:
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)[:80]
            raise ModelError(f"The loss must be a tensor of one number; it was {what}.")
        loss = loss.reshape(())
        if self.group.gathered:
            return loss, loss.item()
        loss = loss * self.group.share
        return loss, self.group.sum(loss.item())

    def _apply(self, models: Sequence[str]) -> None:
        parameters = [p for name in models for p in self._parameters[name]]
        self.group.reduce(parameters)
        for name in models:
            self._scaler.unscale_(self.optimizers[name])
        if self._training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self._training.clip_norm)
        for name in models:
            self._scaler.step(self.optimizers[name])
        self._scaler.update()

    def _train_mode(self) -> None:
        self._learning = True
        for name, module in self.modules.items():
            module.train(name in self.trained)  # a frozen model keeps the statistics of its batch norms, too

    def eval_mode(self) -> None:
        """Put every module into evaluation mode."""
        self._learning = False
        for module in self.modules.values():
            module.eval()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass."""
        if self._training.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self._training.precision == "bf16" else torch.float16
        return torch.autocast(self._type, dtype=dtype)

    def state(self) -> dict[str, Any]:
        """Return everything from which another stepper goes on."""
        return {
            "modules": {name: module.state_dict() for name, module in self.trained.items()},
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
            "schedulers": {name: each.state_dict() for name, each in self.schedulers.items()},
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.load(state["modules"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(state["schedulers"][name])
        self._scaler.load_state_dict(state["scaler"])

    def weights(self) -> dict[str, dict[str, Any]]:
        """Return a copy of the weights of what is trained, in main memory."""
        return {
            name: {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}
            for name, module in self.trained.items()
        }

    def load(self, weights: Mapping[str, Mapping[str, Any]]) -> None:
        """Put weights into the modules."""
        for name, module in self.trained.items():
            module.load_state_dict(weights[name])
