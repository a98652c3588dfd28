"""How requests wait: joined, in turn, bounded, up to their deadline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from superduper_nb.errors import DeadlineError, ModelError, OverloadedError
from superduper_nb.serving import ModelServer, Prediction
from tests.waiting import until

MakeServer = Callable[..., ModelServer]


@contextmanager
def busy(server: ModelServer, folder: Path) -> Iterator[None]:
    """Keep the process inside one batch, so that what is submitted meanwhile waits."""
    path = folder / uuid4().hex
    future = server.submit("shop", "wait", [str(path)])
    until(Path(f"{path}.begun").exists)
    yield
    path.touch()
    future.result()


def test_what_waits_is_joined_up_to_the_batch_size(server: ModelServer, tmp_path: Path) -> None:
    with busy(server, tmp_path):
        futures = [server.submit("shop", "batches", [0] * n) for n in [10, 20, 2, 1, 5, 40]]
    assert [future.result().outputs[0] for future in futures] == [32, 32, 32, 6, 6, 40]


def test_who_asks_again_joins_the_few_that_came_too_late(server: ModelServer) -> None:
    """Of eight clients in a closed loop, one was first: the seven others would have batches without it for good."""
    sizes: list[int] = []

    def ask(answered: Future[Prediction] | None = None) -> None:
        if answered is not None:
            sizes.append(answered.result().outputs[0])
        if 8 not in sizes:
            server.submit("shop", "batches", [0]).add_done_callback(ask)

    ask()
    until(lambda: sizes, "the first is alone")
    for _ in range(7):
        ask()
    until(lambda: 8 in sizes, "they are together")
    assert sizes[0] == 1


def test_the_model_says_how_large_a_batch_may_be(server: ModelServer, tmp_path: Path) -> None:
    server.predict("shop", "small", [0])
    with busy(server, tmp_path):
        futures = [server.submit("shop", "small", [0]) for _ in range(6)]
    assert [future.result().outputs for future in futures] == [[4]] * 4 + [[2]] * 2
    for _ in range(2):
        assert server.predict("shop", "auto", [0]).outputs == [0]  # what is no number is not taken for one


def test_one_bad_input_fails_alone(server: ModelServer, tmp_path: Path) -> None:
    cases: list[tuple[str, list[Any], list[Any]]] = [
        ("inverse", [1, 0, 2], [1.0, 0.5]),
        ("raises", ["a", "bad", "b"], ["a", "b"]),
    ]
    for model, inputs, good in cases:
        with busy(server, tmp_path):
            first, bad, last = (server.submit("shop", model, [x]) for x in inputs)
        assert [first.result().outputs[0], last.result().outputs[0]] == good
        with pytest.raises(ModelError):
            bad.result()


def test_models_take_turns(server: ModelServer, tmp_path: Path) -> None:
    order: list[str] = []

    def submit(model: str) -> Future[Prediction]:
        future = server.submit("shop", model, [0] * 32)
        future.add_done_callback(lambda _: order.append(model))
        return future

    with busy(server, tmp_path):
        futures = [submit("batches") for _ in range(4)] + [submit("double"), submit("small")]
    wait(futures)
    assert order == ["batches", "double", "small", "batches", "batches", "batches"]


def test_a_full_queue_refuses_and_says_when_to_come_back(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(queue=4)
    with busy(server, tmp_path):
        large = server.submit("shop", "double", [1] * 10)  # where none waits, a request may be of any size
        refused = server.submit("shop", "double", [1])
        error = refused.exception(timeout=10)
        other = [server.submit("shop", "inverse", [1]) for _ in range(5)]
        assert isinstance(other[-1].exception(timeout=10), OverloadedError)
    assert isinstance(error, OverloadedError)
    assert error.retry_after > 0
    assert "10 inputs wait for model 'double' already, 4 may" in str(error)
    assert large.result().outputs == [2] * 10
    assert [future.result().outputs for future in other[:4]] == [[1.0]] * 4


def test_cancelled_requests_are_never_run_and_make_room(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(queue=2)
    with busy(server, tmp_path):
        gone = [server.submit("shop", "wait", [str(tmp_path / f"gone{i}")]) for i in range(2)]
        assert all(future.cancel() for future in gone)
        kept = server.submit("shop", "wait", [str(tmp_path)])
    assert kept.result().outputs == [str(tmp_path)]
    assert not list(tmp_path.glob("gone*"))
    with pytest.raises(CancelledError):
        gone[0].result()


def test_a_deadline_passes_in_the_queue(server: ModelServer, tmp_path: Path) -> None:
    with busy(server, tmp_path):
        late = server.submit("shop", "wait", [str(tmp_path / "late")], timeout=0.05)
        with pytest.raises(DeadlineError, match=r"'wait' did not answer within 0.05 s"):
            late.result(timeout=10)
    server.predict("shop", "double", [1])
    assert not list(tmp_path.glob("late*"))


def test_a_deadline_passes_inside_a_batch_that_others_still_wait_for(server: ModelServer, tmp_path: Path) -> None:
    begun, path = tmp_path / "x.begun", tmp_path / "x"
    with busy(server, tmp_path):
        hasty = server.submit("shop", "wait", [str(path)], timeout=3)
        patient = server.submit("shop", "wait", [str(path)], timeout=60)
    until(begun.exists)
    with pytest.raises(DeadlineError):
        hasty.result(timeout=10)
    path.touch()
    assert patient.result().outputs == [str(path)]
    assert server.status()["restarts"] == 0
