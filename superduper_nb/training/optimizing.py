"""What is trained, and by which optimizer, schedule and scaler: chosen by name or made by the user's own function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.training.options import Training

__all__ = ["optimizer", "scaler", "scheduler", "trained"]

_FUSED: Final = (torch.optim.Adam, torch.optim.AdamW)
"""These have one kernel for all that a step does: on a small model a quarter of what they take without it."""


def trained(modules: Mapping[str, nn.Module], use_grads: Mapping[str, bool]) -> dict[str, nn.Module]:
    """Return what of the modules is trained; freeze the others.

    Raises
    ------
    InvalidInputError
        There is no such module, or nothing to train.
    """
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


def optimizer(module: nn.Module, training: Training) -> Any:
    """Return the optimizer of a module.

    Raises
    ------
    InvalidInputError
        torch has none of that name.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    make: Any = training.optimizer
    if isinstance(make, str):
        known = {n.lower(): c for n, c in vars(torch.optim).items() if isinstance(c, type) and n != "Optimizer"}
        if make.lower() not in known:
            near = did_you_mean(make, [each.__name__ for each in known.values()])
            raise InvalidInputError(f"torch.optim has no optimizer {make!r}.{near}")
        make = known[make.lower()]
    if isinstance(make, type):
        options: dict[str, Any] = {} if training.weight_decay is None else {"weight_decay": training.weight_decay}
        if make in _FUSED and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters):
            options["fused"] = True
        return make(parameters, lr=training.lr, **options)
    return make(parameters)


def scheduler(optimizer: Any, training: Training, total: int) -> Any:
    """Return what changes the learning rate from step to step; None where nothing does."""
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


def scaler(device: str, precision: str) -> Any:
    """Return what keeps small gradients from vanishing in half precision; with others it does nothing."""
    return torch.amp.GradScaler(device, enabled=precision == "fp16")
