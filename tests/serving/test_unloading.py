"""A model that is dropped has left memory, whatever else its process keeps of what it loaded."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil
import pytest
import torch

import superduper_nb as sd
from superduper_nb.services.child import current_version, load_model
from superduper_nb.serving import ModelServer

MEGABYTE = 1 << 20


class Heavy(torch.nn.Module):
    """64 megabytes."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.full((16 * MEGABYTE,), number))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch + self.weights[0]


@pytest.fixture
def docs(database: Any, mongo_uri: str, home: Any) -> Iterator[Any]:
    with sd.connect(remote=False, mongodb={"uri": mongo_uri}) as client:
        docs = client[database.name]["docs"]
        docs.create_model("heavy", Heavy(0.5))
        yield docs


def test_it_leaves_the_models_process(docs: Any, mongo_uri: str, make_server: Callable[..., ModelServer]) -> None:
    server = make_server(partial(load_model, mongo_uri), partial(current_version, mongo_uri))
    docs.create_model("other", Heavy(1.5))
    taken = []
    for model, output in [("heavy", 1.5), ("other", 2.5)]:  # torch itself is loaded with the first
        assert server.predict(docs.database.name, model, [1.0]).outputs == [output]
        server.unload(docs.database.name, model)
        taken.append(psutil.Process(server.status()["pid"]).memory_info().rss)
    assert taken[1] < taken[0] + 32 * MEGABYTE


def test_it_leaves_this_process(docs: Any) -> None:
    docs.create_watcher("heavy", "x")
    docs.insert_one({"x": 1.0})  # a job in the foreground loads it, too
    assert docs.predict("heavy", 1.0) == 1.5
    assert loaded_here()
    docs.unload_model("heavy")
    assert not loaded_here()


def loaded_here() -> bool:
    gc.collect()
    return any(type(thing) is Heavy for thing in gc.get_objects())
