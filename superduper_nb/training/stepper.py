"""One update of the weights: forward, backward, precision, accumulation, clipping, optimizers and schedules."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import isgenerator
from typing import TYPE_CHECKING, Any

import numpy as np

from superduper_nb.errors import InvalidInputError, ModelError, did_you_mean
from superduper_nb.training.options import Training
from superduper_nb.training.trainer import Trainer

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Stepper", "random_state_kept", "seed_all"]


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
        self.trained = _trained(self.modules, training.use_grads)
        self.optimizers = {name: _optimizer(module, training) for name, module in self.trained.items()}
        schedulers = {name: _scheduler(each, training, total) for name, each in self.optimizers.items()}
        self.schedulers = {name: each for name, each in schedulers.items() if each is not None}
        self._parameters = {
            name: [p for p in module.parameters() if p.requires_grad] for name, module in self.trained.items()
        }
        self._learning = False
        self.device = next(iter(next(iter(self.trained.values())).parameters())).device
        self._type = self.device.type
        self.group, self.steps = trainer.group, 0
        self._scaler = _scaler(self._type, training.precision)

    def step(self, batches: Sequence[tuple[Any, float, Sequence[int]]]) -> float:
        """Update the weights once by the mean gradient of these batches; return the loss.

        Parameters
        ----------
        batches : sequence of (batch, float, sequence of int)
            This process's rows, the weight of the whole batch, and how many rows each process has.
        """
        self.steps += 1
        if not self._learning:
            self._train_mode()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch, weight, sizes in batches:
            self.group.begin(sizes)
            with self.autocast():
                loss = self.trainer.step(batch)
            if isgenerator(loss):
                total += weight * self._in_turns(loss, weight)
                continue
            loss, value = self._checked(loss)
            total += weight * value
            if np.isfinite(value):
                self._scaler.scale(loss * weight).backward()
        if not np.isfinite(total):
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
            if not np.isfinite(value):
                return total
            self.optimizers[model].zero_grad(set_to_none=True)
            self._scaler.scale(loss).backward()
            self._apply([model])
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)  # what this loss left in the other models

    def _checked(self, loss: Any) -> tuple[Any, float]:
        import torch

        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)[:80]
            raise ModelError(f"The loss must be a tensor of one number; it was {what}.")
        loss = loss.reshape(())
        if self.group.gathered:
            return loss, float(loss.detach())
        loss = loss * self.group.share
        return loss, self.group.sum(float(loss.detach()))

    def _apply(self, models: Sequence[str]) -> None:
        import torch

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
        import torch

        dtype = torch.bfloat16 if self._training.precision == "bf16" else torch.float16
        return torch.autocast(self._type, dtype=dtype)

    def state(self) -> dict[str, Any]:
        """Return everything from which another stepper goes on."""
        return {
            "modules": {name: module.state_dict() for name, module in self.trained.items()},
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
            "schedulers": {name: each.state_dict() for name, each in self.schedulers.items()},
            "scaler": self._scaler.state_dict(),
            "steps": self.steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.load(state["modules"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(state["schedulers"][name])
        self._scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]

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


def _trained(modules: Mapping[str, nn.Module], use_grads: Mapping[str, bool]) -> dict[str, nn.Module]:
    if unknown := [name for name in use_grads if name not in modules]:
        raise InvalidInputError(f"use_grads names {unknown[0]!r}.{did_you_mean(unknown[0], modules)}")
    for name, module in modules.items():
        if not use_grads.get(name, True):
            module.requires_grad_(False)
    trained = {name: module for name, module in modules.items() if any(p.requires_grad for p in module.parameters())}
    if not trained:
        names = ", ".join(map(repr, modules)) or "none of the models is a torch module"
        raise InvalidInputError(f"There is nothing to train: no parameter of {names} takes a gradient.")
    return trained


def _optimizer(module: nn.Module, training: Training) -> Any:
    import torch

    parameters = [p for p in module.parameters() if p.requires_grad]
    make: Any = training.optimizer
    if isinstance(make, str):
        known = {n.lower(): c for n, c in vars(torch.optim).items() if isinstance(c, type) and n != "Optimizer"}
        if make.lower() not in known:
            near = did_you_mean(make, [each.__name__ for each in known.values()])
            raise InvalidInputError(f"torch.optim has no optimizer {make!r}.{near}")
        make = known[make.lower()]
    if isinstance(make, type):
        decay = {} if training.weight_decay is None else {"weight_decay": training.weight_decay}
        return make(parameters, lr=training.lr, **decay)
    return make(parameters)


def _scheduler(optimizer: Any, training: Training, total: int) -> Any:
    import math

    import torch

    if callable(training.scheduler):
        return training.scheduler(optimizer)
    warmup, name = training.warmup_steps, training.scheduler
    if name == "constant" and not warmup:
        return None

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = 1 - min(1.0, (step - warmup) / max(1, total - warmup))
        return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[name]

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _scaler(device: str, precision: str) -> Any:
    import torch

    return torch.amp.GradScaler(device, enabled=precision == "fp16")


def seed_all(*parts: object) -> None:
    """Seed every generator that a model may draw from."""
    import torch

    random.seed(" ".join(map(str, parts)))
    seed = random.getrandbits(32)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond for devices that are not there
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give the generators back as they were: they are the whole process's, a notebook's too."""
    import torch

    own, numpy, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy)
        torch.set_rng_state(tensors)
