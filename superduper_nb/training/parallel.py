"""Training in several processes at once: each reads and takes its share of every batch, and all take the same step.

A step is exactly that of one process for any loss over a whole batch (in-batch negatives, class weights): outputs are
gathered before the loss, each process takes the loss of all rows, and its gradient through its own; their sum is the
gradient. A trainer that gathers nothing gets the mean of the processes' losses, weighted by their shares.

They meet at a store of the first process, which leads: it validates, keeps and decides, and the others follow it from
step to step. Gloo connects them; between GPUs gradients go by NCCL. Groups are objects of their own, not torch's
default one: two trainings may run in one process.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, Protocol

import torch
from torch import distributed as _distributed

from superduper_nb.training.data import Samples, Skipped
from superduper_nb.training.options import Training
from superduper_nb.training.results import Onlooker
from superduper_nb.training.seeds import random_state_kept, seed_all
from superduper_nb.training.stepper import Stepper
from superduper_nb.training.steps import steps
from superduper_nb.training.trainer import Group, Trainer

__all__ = ["Others", "TorchGroup", "follow", "leading", "place"]

distributed: Any = _distributed
"""What a build of torch without it lacks, its type information lacks, too."""
_TIMEOUT: Final = timedelta(hours=12)
"""So long may one process keep the others waiting: the first one validates meanwhile. A lost one is noticed sooner."""
_JOIN: Final = timedelta(seconds=60)
_LOOK: Final = timedelta(seconds=1)
_ASK_S: Final = 0.1
_OVER: Final = "over"
_NONE, _STOP = -1, -2


class Others(Protocol):
    """The processes of a training beside the first one, wherever they are."""

    host: str
    """Under which address of this machine they reach the first one."""

    def start(self, address: str, given: Mapping[str, Any]) -> None:
        """Have them begin: join at an address, with what was given."""

    def look(self, *, failed: bool = False) -> None:
        """Raise why, where one of them is lost; `failed`: a connection to one broke."""

    def results(self) -> Iterable[Skipped]:
        """Wait until they are done; return what each has skipped."""

    def end(self) -> None:
        """Forget them."""


class _Over(Exception):  # noqa: N818  # no error: there is nothing left to take part in
    pass


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
            raise _Over
        return [column for column in each if _NONE not in column] or None

    def stop(self) -> None:
        """Tell the others, who are about to agree, that it is over."""
        with suppress(_Over):
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


@contextmanager
def leading(
    stepper: Stepper, training: Training, others: Others, onlooker: Onlooker, given: Mapping[str, Any], skipped: Skipped
) -> Iterator[None]:
    """Train together with others: be the first process while the context lasts."""
    size, width = training.processes, training.grad_accumulation
    store, port = _opened_store(others.host)
    group: TorchGroup | None = None
    try:
        others.start(f"{others.host}:{port}", given)
        if _all_there(store, size, others, onlooker):
            how: dict[str, Any] = {"width": width, "look": others.look, "aside": onlooker.aside}
            group = TorchGroup(store, 0, size, stepper.device, others.host, **how)
            stepper.join(group)
        yield
        if group is not None:
            group.stop()
        for each in others.results():
            skipped.merge(each)
    finally:
        store.set(_OVER, "")
        if group is not None:
            group.leave()
        others.end()


def _opened_store(host: str) -> tuple[Any, int]:
    """Return a store that listens at this address only, and its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        fd = listening.detach()
    store = distributed.TCPStore(host, port, None, True, _JOIN, False, master_listen_fd=fd)
    return store, port


def _all_there(store: Any, size: int, others: Others, onlooker: Onlooker) -> bool:
    """Wait for the others; say whether they came before somebody stopped the training."""
    expected = [f"rank {rank}" for rank in range(1, size)]
    while not store.check(expected):
        if onlooker.stopped():
            return False
        others.look()
        time.sleep(_ASK_S)  # its own waiting writes to standard error each time that nobody has come
    return True


def follow(
    stepper: Stepper,
    training: Training,
    samples: Samples,
    place: Mapping[str, int],
    rank: int,
    address: str,
    host: str,
    onlooker: Onlooker,
) -> None:
    """Take part in a training that another process leads, from its place on, until it is over or that one is lost."""
    at, _, port = address.rpartition(":")
    store = distributed.TCPStore(at, int(port), None, False, _JOIN, False)
    store.set(f"rank {rank}", "")

    def look(*, failed: bool = False) -> None:
        try:
            over = failed or store.check([_OVER])
        except RuntimeError:
            over = True  # the store went with its process
        if over:
            raise _Over

    how: dict[str, Any] = {"width": training.grad_accumulation, "look": look, "aside": onlooker.aside}
    group = TorchGroup(store, rank, training.processes, stepper.device, host, **how)
    stepper.join(group)
    try:
        with random_state_kept():
            _follow(stepper, training, samples, place, group, onlooker)
    except _Over:
        pass
    finally:
        group.leave()


def _follow(
    stepper: Stepper,
    training: Training,
    samples: Samples,
    place: Mapping[str, int],
    group: TorchGroup,
    onlooker: Onlooker,
) -> None:
    number, start = place["step"], place["batch"]
    for epoch in itertools.count(place["epoch"]):
        for _, step in steps(samples, training, group, epoch, start):
            if step:
                with onlooker.turn():
                    seed_all(training.seed, number, group.rank)
                    stepper.step(step)
                number += 1
        start = 0


def place(trainer: Trainer, rank: int) -> None:
    """Give each process of a machine a GPU of its own, where there are several."""
    if (count := torch.cuda.device_count()) < 2:
        return
    for side in trainer.sides:
        if side.device is not None and side.device.type == "cuda":
            side.device = torch.device(f"cuda:{rank % count}")
            side.module.to(side.device)
