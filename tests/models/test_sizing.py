"""The size of a batch: grown while that pays, halved where memory ends, and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from pymongo.database import Database

from superduper_nb.models import Loader, Predictor
from superduper_nb.models.sizing import BatchSize, Halving, out_of_memory


def run(size: BatchSize, seconds: Callable[[int], float], batches: int = 60) -> int:
    """Let batches run that take as long as `seconds` says; return the size in the end."""
    for i in range(batches):
        noise = 3.0 if i % 3 == 0 else 1.0
        size.note(size.value, size.value, seconds(size.value) * noise)
        size.note(1, 1, 100.0)  # the rest of a chunk: says nothing
    return size.value


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda n: 0.001 * n, 32),  # twice as many take twice as long
        (lambda n: 0.01 + 1e-6 * n, 4096),  # a call costs more than its work
        (lambda n: 0.01 + 1e-4 * n, 512),
        (lambda n: 0.3 + 1e-6 * n, 32),  # slow enough as it is
        (lambda n: 0.01 if n <= 128 else 0.1, 128),
    ],
)
def test_a_batch_grows_while_that_pays(seconds: Callable[[int], float], expected: int) -> None:
    assert run(BatchSize(), seconds) == expected


def test_a_size_that_was_given_does_not_grow_but_gives_way() -> None:
    size = BatchSize(8)
    assert run(size, lambda n: 0.01) == 8
    size.halve(8)
    assert run(size, lambda n: 0.01) == 4
    size.halve(1)
    assert size.value == 1


class Hungry(torch.nn.Module):
    """Asks for more memory than any machine has, where a batch has more than five inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > 5:
            torch.empty(2**58)
        return 2 * x


def test_a_batch_that_does_not_fit_is_halved_for_good() -> None:
    model, xs = Hungry(), [torch.tensor([float(i)]) for i in range(100)]
    predictor = Predictor(model)
    assert torch.equal(torch.stack(predictor.predict_many(xs)), 2 * torch.stack(xs))
    assert model.sizes[:4] == [32, 16, 8, 4]
    assert predictor.batch_size == 4
    model.sizes.clear()
    assert torch.equal(torch.stack(predictor.predict_many(xs)), 2 * torch.stack(xs))
    assert set(model.sizes) == {4}


def test_what_is_no_lack_of_memory() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    assert not out_of_memory(ValueError("DefaultCPUAllocator"))


def test_the_size_is_kept_with_the_model_in_a_process(database: Database[dict[str, Any]], home: Any) -> None:
    loader = Loader(database)
    bundle = {"object": Hungry(), "preprocess": None, "postprocess": None}
    definition = {"type": None, "batch_size": None, "device": "auto"}
    component, _ = loader.store.put("model", "hungry", definition, obj=bundle)
    for batch_size, expected in ((None, 4), (20, 5), (3, 3)):
        loader.predictor(component, batch_size).predict_many([torch.ones(1)] * 100)
        assert loader.predictor(component, batch_size).batch_size == expected
    assert loader.predictor(component).obj is loader.predictor(component, 20).obj


@pytest.mark.parametrize(("call", "expected"), [(0.001, True), (0.1, False)])
def test_batches_are_halved_where_that_is_faster(call: float, expected: bool) -> None:
    """A call costs something, and so does each element, padding included."""
    halving, padded = Halving(), {False: 32 * 32, True: 16 * 16 + 16 * 32}
    ways = []
    for i in range(20):
        halved = halving.wanted(32)
        noise = 3.0 if i < 2 else 1.0
        halving.note(32, halved, 528, noise * (call * (1 + halved) + 1e-4 * padded[halved]))
        ways.append(halved)
    assert set(ways[:10]) == {False, True}
    assert ways[10:] == [expected] * 10


def test_neither_one_lucky_batch_nor_one_of_another_size_decides_on_halving() -> None:
    halving = Halving()
    for i in range(10):
        halved = halving.wanted(32)
        halving.note(32, halved, 528, 1.0 if i == 4 else 2.0 if halved else 2.5)
    for _ in range(10):
        halved = halving.wanted(8)
        halving.note(8, halved, 132, 2.5 if halved else 2.0)
    assert (halving.wanted(32), halving.wanted(40), halving.wanted(8)) == (True, True, False)


def test_a_batch_of_many_lengths_is_tried_in_halves_with_the_same_outputs() -> None:
    class Sum:
        seen: ClassVar[list[tuple[int, int]]] = []

        def collate(self, items: list[list[int]]) -> list[list[int]]:
            longest = max(map(len, items))
            self.seen.append((len(items), longest))
            return [item + [0] * (longest - len(item)) for item in items]

        def forward(self, batch: list[list[int]]) -> list[int]:
            return [sum(row) for row in batch]

    rows = [[1] * ((7 * i) % 32 + 1) for i in range(32)]
    predictor = Predictor(Sum())
    for _ in range(2):
        assert predictor.predict_many(rows) == [len(row) for row in rows]
    assert Sum.seen == [(32, 32), (16, 16), (16, 32)]
    Sum.seen.clear()
    assert predictor.predict_many([[1, 2]] * 32) == [3] * 32  # nothing is padded
    assert predictor.predict_many(rows[:7]) == [len(row) for row in rows[:7]]
    assert [count for count, _ in Sum.seen] == [32, 7]
