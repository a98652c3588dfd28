"""Processes that `torch.distributed` connects: what they tell each other in a step, and how they wait.

Gloo connects them; between GPUs gradients go by NCCL. Groups are objects of their own, not torch's default one: two
trainings may run in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from typing import Any, Final

import torch
from torch import distributed as _distributed

from superduper_nb.training.seeds import random_state_kept
from superduper_nb.training.trainer import Group

__all__ = ["Over", "TorchGroup", "distributed"]

distributed: Any = _distributed
"""What a build of torch without it lacks, its type information lacks, too."""
_TIMEOUT: Final = timedelta(hours=12)
"""So long may one process keep the others waiting: the first one validates meanwhile. A lost one is noticed sooner."""
_LOOK: Final = timedelta(seconds=1)
_NONE, _STOP = -1, -2


class Over(Exception):  # noqa: N818  # no error
    """There is nothing left to take part in."""


class TorchGroup(Group):
    """Processes that `torch.distributed` connects.

    Parameters
    ----------
    store : torch.distributed.Store
        Where they meet.
    rank, size : int
        Which of how many this is.
    device : torch.device
        Where its tensors are.
    host : str
        This machine's address, for the others.
    width : int
        Batches of a step, at most.
    look : callable
        Called each second while others are waited for, and with ``failed=True`` when a connection broke: raises where
        there is nobody to wait for.
    aside : callable
        Gives a context in which others may compute.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        device: torch.device,
        host: str,
        *,
        width: int,
        look: Callable[..., None],
        aside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.sizes: Sequence[int] = ()
        self._width, self._look, self._aside = width, look, aside
        options = distributed.ProcessGroupGloo._Options()
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = _TIMEOUT
        self._told = distributed.ProcessGroupGloo(distributed.PrefixStore("gloo", store), rank, size, options)
        self._tensors: Any = self._told
        if device.type == "cuda":
            nccl = distributed.ProcessGroupNCCL.Options()
            self._tensors = distributed.ProcessGroupNCCL(distributed.PrefixStore("nccl", store), rank, size, nccl)

    def agree(self, sizes: Sequence[int]) -> list[list[int]] | None:
        """Tell how many rows of each batch of a step there are here; return how many there are in each process."""
        mine = torch.tensor([*sizes, *[_NONE] * (self._width - len(sizes))])
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        self._finish(self._told.allgather([parts], [mine]))
        each = [list(column) for column in zip(*(part.tolist() for part in parts), strict=True)]
        if _STOP in each[0]:
            raise Over
        return [column for column in each if _NONE not in column] or None

    def stop(self) -> None:
        """Tell the others, who are about to agree, that it is over."""
        with suppress(Over):
            self.agree([_STOP])

    def begin(self, sizes: Sequence[int]) -> None:
        """Hear how the rows of the next batch are shared out."""
        self.sizes, self.gathered = sizes, False

    @property
    def share(self) -> float:
        """How much of the batch is this process's."""
        return self.sizes[self.rank] / sum(self.sizes)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes, in their order; gradients flow to one's own."""
        self.gathered = True
        rows: torch.Tensor = _Gather.apply(tensor, self)  # type: ignore[no-untyped-call]
        return rows

    def rows_of_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes."""
        most = max(self.sizes)
        padded = tensor.new_zeros((most, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._compute(self._tensors.allgather([parts], [padded]))
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])

    def sum(self, value: float) -> float:
        """Return the sum over the processes."""
        tensor = torch.tensor([value], dtype=torch.float64)
        self._apart(self._told.allreduce([tensor]))
        return float(tensor)

    def reduce(self, parameters: Iterable[Any]) -> None:
        """Replace each gradient by the sum over the processes, in one message for each type."""
        by_type: dict[Any, list[Any]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self._compute(self._tensors.allreduce([flat]))
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def _compute(self, work: Any) -> None:
        if self._tensors is self._told:
            self._apart(work)
        else:
            work.wait()

    def _apart(self, work: Any) -> None:
        """Wait inside a step: of two trainings that share two workers, each would else wait for the other's turn."""
        with random_state_kept(), self._aside():
            self._finish(work)

    def _finish(self, work: Any) -> None:
        while True:
            try:
                work.wait(_LOOK)
                return
            except RuntimeError:  # a second is over, or a connection broke
                self._look(failed=work.is_completed() and not work.is_success())

    def leave(self) -> None:
        """Close the connections, so that nobody waits for this process."""
        self._told = self._tensors = None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, group: TorchGroup) -> torch.Tensor:
        context.start, context.rows = sum(group.sizes[: group.rank]), len(tensor)
        return group.rows_of_all(tensor)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0][context.start : context.start + context.rows], None
