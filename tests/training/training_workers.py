"""Trainings that are left to Dask workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo import MongoClient
from training_models import net

import superduper_nb as sd
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.jobs.dispatcher import Dispatcher
from tests.waiting import until

Docs = sd.Collection[dict[str, Any]]
PLAIN: dict[str, Any] = {
    "max_steps": 15,
    "batch_size": 33,
    "optimizer": "SGD",
    "lr": 0.1,
    "clip_norm": 1.0,
    "validate_every": 5,
}


class Squares(sd.Trainer):
    """Knows of no other process."""

    def step(self, batch: Any) -> Any:
        return (self.sides[0].output(batch[0]) ** 2).mean()


@contextmanager
def working(made: DaskPool, mongo_uri: str) -> Iterator[None]:
    """Give a pool the jobs that there are."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_uri, w="majority")
    dispatcher = Dispatcher(client, made)
    try:
        made.start()
        dispatcher.start()
        yield
    finally:
        dispatcher.close()
        made.close()
        client.close()


def trained(
    docs: Docs, how: sd.Training, trainer: bool = False, resources: dict[str, float] | None = None, **options: Any
) -> sd.Job:
    """Queue a training of a fresh net."""
    if "digit" in (kind := docs.learning_tasks if trainer else docs.imputations):
        kind.delete("digit", force=True)
        docs.models.delete("net", force=True)
    docs.create_model("net", net(**options), resources=resources)
    if trainer:
        docs.create_trainer("plain", Squares)
        return docs.create_learning_task("digit", "plain", ["net"], ["img"], training=how)["train digit"]
    jobs = docs.create_imputation("digit", "net", "img", None, "label", loss="cross_entropy", training=how)
    return jobs["train digit"]


def ended(job: sd.Job) -> str:
    until(lambda: job.status not in ("pending", "running"), timeout=90)  # workers are waited for up to a minute
    return job.status
