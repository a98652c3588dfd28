"""Training in several processes at once: each takes its share of every batch, and all take the same step.

A step is exactly that of one process for any loss over a whole batch (in-batch negatives, class weights): outputs are
gathered before the loss, each process takes the loss of all rows, and its gradient through its own; their sum is the
gradient. A trainer that gathers nothing gets the mean of the processes' losses, weighted by their shares.

Gloo on CPUs, NCCL on GPUs. The groups are objects of their own, not torch's default one: two trainings may run in one
process.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch

from superduper_nb.cluster.dask_host import worker_environment
from superduper_nb.components import artifacts
from superduper_nb.errors import ModelError
from superduper_nb.training.options import Training
from superduper_nb.training.stepper import Stepper, seed_all
from superduper_nb.training.trainer import Group, Trainer

__all__ = ["Processes", "TorchGroup", "serve", "shares"]

_TIMEOUT: Final = timedelta(minutes=30)
"""So long may one process keep the others waiting: the first one validates meanwhile."""
_LENGTH: Final = struct.Struct("!Q")


class TorchGroup(Group):
    """Processes that `torch.distributed` connects.

    Parameters
    ----------
    store : str
        A file of their own, by which they meet.
    rank, size : int
        Which of how many this is.
    device : torch.device
        Where its tensors are.
    """

    def __init__(self, store: str, rank: int, size: int, device: Any) -> None:
        meeting = torch.distributed.FileStore(store, size)  # type: ignore[attr-defined]
        self.rank, self.size, self.device = rank, size, device
        self.sizes: Sequence[int] = ()
        if device.type == "cuda":
            options = torch.distributed.ProcessGroupNCCL.Options()
            self._processes: Any = torch.distributed.ProcessGroupNCCL(meeting, rank, size, options)
        else:
            self._processes = torch.distributed.ProcessGroupGloo(meeting, rank, size, _TIMEOUT)

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
        self._processes.allgather([parts], [padded]).wait()
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])

    def sum(self, value: float) -> float:
        """Return the sum over the processes."""
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        self._processes.allreduce([tensor]).wait()
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
            self._processes.allreduce([flat]).wait()
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, group: TorchGroup) -> torch.Tensor:
        context.start, context.rows = sum(group.sizes[: group.rank]), len(tensor)
        return group.rows_of_all(tensor)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0][context.start : context.start + context.rows], None


def shares(samples: Sequence[Any], processes: int) -> list[list[Any]]:
    """Cut a batch into as many parts, of nearly one size."""
    bounds = [len(samples) * n // processes for n in range(processes + 1)]
    return [list(samples[a:b]) for a, b in pairwise(bounds)]


class Processes:
    """The processes of one training, this one among them; the others begin with the first step.

    Parameters
    ----------
    stepper : Stepper
        This process's.
    training : Training
        How.
    total : int
        Steps at most.
    """

    def __init__(self, stepper: Stepper, training: Training, total: int) -> None:
        self._stepper, self._training, self._total = stepper, training, total
        self._children: list[tuple[subprocess.Popen[bytes], socket.socket]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="superduper-training-")

    def update(self, batches: list[list[Any]]) -> float:
        """Take one step together.

        Raises
        ------
        ModelError
            Another process failed; the message says how.
        """
        if not self._children:
            self._start()
        count = self._training.processes
        cut = [shares(batch, count) for batch in batches]
        try:
            for rank, (_, channel) in enumerate(self._children, 1):
                _send(channel, pickle.dumps([(parts[rank], list(map(len, parts))) for parts in cut]))
            return _step(self._stepper, [(parts[0], list(map(len, parts))) for parts in cut])
        except (RuntimeError, OSError) as error:
            raise ModelError(f"Another process of the training failed: {self._said() or error}") from error

    def _start(self) -> None:
        store, size = str(Path(self._folder.name) / "meeting"), self._training.processes
        state = {"trainer": self._stepper.trainer, "training": self._training, "total": self._total, "store": store}
        packed = artifacts.dumps({**state, "state": self._stepper.state()}, what="The training")
        for rank in range(1, size):
            child = _spawn()
            self._children.append(child)
            _send(child[1], pickle.dumps([entry or str(Path.cwd()) for entry in sys.path]))
            _send(child[1], pickle.dumps(rank))
            _send(child[1], packed)
        self._stepper.trainer.group = self._stepper.group = TorchGroup(store, 0, size, self._stepper.device)

    def _said(self) -> str | None:
        for _, channel in self._children:
            channel.settimeout(2)
            with suppress(OSError, EOFError):
                return str(pickle.loads(_receive(channel)))
        return None

    def close(self) -> None:
        """End the other processes."""
        for process, channel in self._children:
            channel.close()
            process.kill()
            process.wait()
        self._children = []
        self._folder.cleanup()


def _step(stepper: Stepper, cut: list[tuple[list[Any], list[int]]]) -> float:
    total = sum(sum(sizes) for _, sizes in cut)
    collate = stepper.trainer.collate
    return stepper.step([(collate(part), sum(sizes) / total, sizes) for part, sizes in cut])


def _spawn() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "superduper_nb.training.replica"],
            stdin=theirs.fileno(),
            env={**os.environ, **worker_environment(1)},
        )
    return process, ours


def serve(channel: socket.socket) -> None:
    """Take part in a training, in a process of its own, until the channel closes."""
    sys.path[:] = pickle.loads(_receive(channel))
    rank: int = pickle.loads(_receive(channel))
    begun = pickle.loads(_receive(channel))
    trainer: Trainer = begun["trainer"]
    training: Training = begun["training"]
    _place(trainer, rank)
    stepper = Stepper(trainer, training, begun["total"])
    stepper.restore(begun["state"])
    step = begun["state"]["steps"]
    trainer.group = stepper.group = TorchGroup(begun["store"], rank, training.processes, stepper.device)
    while True:
        seed_all(training.seed, step, rank)
        cut = pickle.loads(_receive(channel))
        try:
            _step(stepper, cut)
        except Exception as error:
            _send(channel, pickle.dumps(f"{type(error).__name__}: {error}"))
            raise
        step += 1


def _place(trainer: Trainer, rank: int) -> None:
    """Give each process a GPU of its own, where there are any."""
    for module in trainer.modules().values():
        if next(module.parameters()).device.type == "cuda":
            module.to(f"cuda:{rank}")
    for side in trainer.sides:
        if side.device is not None and side.device.type == "cuda":
            side.device = torch.device(f"cuda:{rank}")


def _send(channel: socket.socket, data: bytes) -> None:
    channel.sendall(_LENGTH.pack(len(data)) + data)


def _receive(channel: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    return _exactly(channel, length)


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        if not (part := channel.recv(min(size - len(parts), 1 << 20))):
            raise EOFError("the other side closed the channel")
        parts += part
    return bytes(parts)
