"""What each step of an epoch takes, the same in every process that trains."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from toolz import partition_all

from superduper_nb.training.data import Batch, Samples
from superduper_nb.training.options import Training
from superduper_nb.training.trainer import Group

__all__ = ["Step", "steps"]

Step = list[tuple[Batch, Sequence[int]]]
"""This process's part of each batch, and how many rows each process has of it."""


def steps(
    samples: Samples,
    training: Training,
    group: Group,
    epoch: int,
    start: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[tuple[int, Step]]:
    """Yield what is left of an epoch: how many batches a step takes, and those of which every process has rows."""
    least = min(2, training.batch_size, len(samples.documents))  # batch norm can't take a single row
    for batches in partition_all(training.grad_accumulation, samples.batches(training.batch_size, epoch, start)):
        if stopped():
            return
        sizes = group.agree([batch.size for batch in batches])
        if sizes is None:
            return
        step = list(zip(batches, sizes, strict=False))
        yield len(batches), [(batch, of_all) for batch, of_all in step if min(of_all) and sum(of_all) >= least]
    group.agree([])  # documents came or went while they were read: whoever has more learns that nobody else has
