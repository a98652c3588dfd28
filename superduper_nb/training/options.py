"""``Training``: how to train, as a plain value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from superduper_nb.errors import InvalidInputError, did_you_mean

__all__ = ["PRECISIONS", "SCHEDULES", "Training"]

PRECISIONS: Final = ("fp32", "bf16", "fp16")
SCHEDULES: Final = ("constant", "linear", "cosine")
_CODE: Final = ("optimizer", "scheduler")
"""Fields that may hold the user's own code: stored as an artifact, not as data."""
_DEFAULT_EPOCHS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How to train.

    Attributes
    ----------
    max_steps, epochs : int, optional
        Where it ends, whichever comes first; neither given: after ten epochs. A step is one update of the weights.
    batch_size : int, default 64
        Documents a batch; with `processes`, of all of them together.
    lr : float, default 1e-3
        Learning rate.
    weight_decay : float, optional
        Decay of the weights; default: the optimizer's own (AdamW: 0.01).
    optimizer : str or callable, default "AdamW"
        The name of a class in `torch.optim`, or ``(parameters) -> optimizer``.
    scheduler : str or callable, default "constant"
        ``"constant"``, ``"linear"`` or ``"cosine"`` (both down to 0 at the last step), or ``(optimizer) -> scheduler``.
    warmup_steps : int, default 0
        So long the rate rises from 0 first (not with a scheduler of your own).
    seed : int, default 0
        Same seed, same data, same device: same result.
    validate_every : int, optional
        Steps between validations; default: once an epoch. Always also at the end.
    validate_every_s : float, optional
        Seconds between them, besides; what is seen then depends on the clock.
    early_stopping : int, optional
        Stop after so many validations in a row without a better result.
    monitor : str, default "valid.loss"
        What is better: ``"valid.loss"``, ``"valid.<metric>"`` or ``"<validation set>.<metric>"``.
    mode : {"min", "max"}, optional
        Which way; default: a loss or an error is to fall, anything else to rise.
    grad_accumulation : int, default 1
        Batches a step.
    clip_norm : float, optional
        The gradient's norm is cut to this.
    precision : {"fp32", "bf16", "fp16"}, default "fp32"
        Mixed precision of the forward pass.
    device : str, default "auto"
        A torch device; "auto" takes the GPU where there is one.
    use_grads : mapping of str to bool, optional
        ``{model: False}`` freezes a model.
    class_weights : mapping, "balanced" or None
        ``{label: weight}`` in a classification's loss; "balanced": against the frequencies.
    cache_mb : int, default 256
        Prepared documents kept from epoch to epoch, so that a small set is read once. 0 where `preprocess` draws at
        random (augmentation).
    workers : int, default 1
        Threads that prepare batches ahead of the training (`preprocess`, `collate`). More of them help where that waits
        or computes outside of Python (files, images); none is used once everything is kept, or with ``cache_mb=0``.
    checkpoint_every_s : float, default 60.0
        Seconds between checkpoints, from which a killed training goes on.
    processes : int, default 1
        Data parallel: each takes its share of every batch.
    warm_start : bool, default False
        Go on from the model's newest version; else from the one that was there before this task first trained it.
    """

    max_steps: int | None = None
    epochs: int | None = None
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float | None = None
    optimizer: str | Callable[..., Any] = "AdamW"
    scheduler: str | Callable[..., Any] = "constant"
    warmup_steps: int = 0
    seed: int = 0
    validate_every: int | None = None
    validate_every_s: float | None = None
    early_stopping: int | None = None
    monitor: str = "valid.loss"
    mode: str | None = None
    grad_accumulation: int = 1
    clip_norm: float | None = None
    precision: str = "fp32"
    device: str = "auto"
    use_grads: Mapping[str, bool] = field(default_factory=dict)
    class_weights: Mapping[Any, float] | str | None = None
    cache_mb: int = 256
    workers: int = 1
    checkpoint_every_s: float = 60.0
    processes: int = 1
    warm_start: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "grad_accumulation", "processes", "workers"):
            self._number(name, int, 1)
        for name in ("seed", "cache_mb", "warmup_steps"):
            self._number(name, int, 0)
        for name in ("max_steps", "epochs", "validate_every", "early_stopping"):
            self._number(name, int, 1, optional=True)
        for name in ("lr", "checkpoint_every_s"):
            self._number(name, float, 0)
        for name in ("weight_decay", "validate_every_s", "clip_norm"):
            self._number(name, float, 0, optional=True)
        self._one_of("precision", PRECISIONS)
        self._one_of("mode", ("min", "max", None))
        if isinstance(self.scheduler, str):
            self._one_of("scheduler", SCHEDULES)
        if not (isinstance(self.optimizer, str) or callable(self.optimizer)):
            raise InvalidInputError(
                f"optimizer={self.optimizer!r}: a name of torch.optim, or a function of parameters."
            )
        if not (isinstance(self.scheduler, str) or callable(self.scheduler)):
            raise InvalidInputError(
                f"scheduler={self.scheduler!r}: {', '.join(SCHEDULES)}, or a function of an optimizer."
            )
        if not isinstance(self.use_grads, Mapping):
            raise InvalidInputError(f"use_grads={self.use_grads!r}: a mapping such as {{'m': False}}.")
        if not (self.class_weights in (None, "balanced") or isinstance(self.class_weights, Mapping)):
            raise InvalidInputError(f"class_weights={self.class_weights!r}: 'balanced' or {{label: weight}}.")

    def _number(self, name: str, cls: type, least: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        allowed = (int,) if cls is int else (int, float)
        if not isinstance(value, allowed) or isinstance(value, bool) or not value >= least:
            kind = "a whole number" if cls is int else "a number"
            raise InvalidInputError(f"{name}={value!r}: it must be {kind} of at least {least}.")

    def _one_of(self, name: str, allowed: tuple[Any, ...]) -> None:
        if (value := getattr(self, name)) not in allowed:
            raise InvalidInputError(
                f"{name}={value!r}: it must be one of {', '.join(map(repr, allowed))}."
                f"{did_you_mean(value, filter(None, allowed)) if isinstance(value, str) else ''}"
            )

    @property
    def rising(self) -> bool:
        """What is monitored is better when it is higher."""
        if self.mode is not None:
            return self.mode == "max"
        return not any(word in self.monitor.lower() for word in ("loss", "error", "mse", "mae", "perplexity"))

    def steps(self, samples: int) -> int:
        """Return how many steps it takes at most over so many documents."""
        each = -(-samples // (self.batch_size * self.grad_accumulation))
        epochs = self.epochs or (_DEFAULT_EPOCHS if self.max_steps is None else None)
        return min(total for total in (self.max_steps, epochs and epochs * each) if total is not None)

    def definition(self) -> dict[str, Any]:
        """Return it as plain data, the user's own code left out (see `code`)."""
        plain = asdict(self)
        weights = self.class_weights
        plain["class_weights"] = [list(pair) for pair in weights.items()] if isinstance(weights, Mapping) else weights
        plain["use_grads"] = dict(self.use_grads)
        return {**plain, **dict.fromkeys(self.code(), "<code>")}

    def code(self) -> dict[str, Any]:
        """Return what of it is the user's own code."""
        return {name: value for name in _CODE if callable(value := getattr(self, name))}

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any], code: Mapping[str, Any]) -> Training:
        """Build one from what is stored."""
        known = {each.name for each in fields(cls)}
        plain = {name: value for name, value in definition.items() if name in known} | dict(code)
        if isinstance(weights := plain.get("class_weights"), list):
            plain["class_weights"] = dict(weights)
        return cls(**plain)
