"""Training in several processes at once: each reads and takes its share of every batch, and all take the same step.

A step is exactly that of one process for any loss over a whole batch (in-batch negatives, class weights): outputs are
gathered before the loss, each process takes the loss of all rows, and its gradient through its own; their sum is the
gradient. A trainer that gathers nothing gets the mean of the processes' losses, weighted by their shares.

They meet at a store of the first process, which leads: it validates, keeps and decides, and the others follow it from
step to step.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol

import torch

from superduper_nb.training.data import Samples, Skipped
from superduper_nb.training.groups import Over, TorchGroup, distributed
from superduper_nb.training.options import Training
from superduper_nb.training.results import Onlooker
from superduper_nb.training.seeds import random_state_kept, seed_all
from superduper_nb.training.stepper import Stepper
from superduper_nb.training.steps import steps
from superduper_nb.training.trainer import Trainer

__all__ = ["Others", "follow", "leading", "place"]

_JOIN: Final = timedelta(seconds=60)
_ASK_S: Final = 0.1
_OVER: Final = "over"


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
            raise Over

    how: dict[str, Any] = {"width": training.grad_accumulation, "look": look, "aside": onlooker.aside}
    group = TorchGroup(store, rank, training.processes, stepper.device, host, **how)
    stepper.join(group)
    try:
        with random_state_kept():
            _follow(stepper, training, samples, place, group, onlooker)
    except Over:
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
