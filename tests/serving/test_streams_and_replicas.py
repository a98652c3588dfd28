"""Outputs that come in parts, and several processes for the same models."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

from superduper_nb.errors import ModelError, NotFoundError, ServiceError
from superduper_nb.serving import ModelServer, Prediction
from tests.serving.test_batching import busy
from tests.serving.test_model_process import children, gone
from tests.waiting import until

MakeServer = Callable[..., ModelServer]


def test_a_stream_gives_what_the_model_yields(models: Any, tmp_path: Path) -> None:
    assert list(models.stream("shop", "letters", "warm")) == list("warm")
    assert list(models.stream("shop", "letters", "")) == []
    assert list(models.stream("shop", "double", 4)) == [8]  # what does not yield
    assert models.predict("shop", "letters", ["ab", "c"]).outputs == [["a", "b"], ["c"]]
    seen: list[str] = []
    with pytest.raises(ModelError, match="ValueError: no letter"):
        seen.extend(models.stream("shop", "letters", "ab!c"))
    assert seen == ["a", "b"]
    for model, error in [("nope", NotFoundError), ("inverse", ModelError)]:
        with pytest.raises(error):
            list(models.stream("shop", model, 0))
    pieces = iter(models.stream("shop", "tick", str(tmp_path)))
    assert [next(pieces), next(pieces)] == [0, 1]
    pieces.close()  # type: ignore[attr-defined]
    until((tmp_path / "closed").exists)


def test_a_stream_whose_reader_is_cancelled_ends_though_nothing_else_happens(
    server: ModelServer, tmp_path: Path
) -> None:
    async def read() -> None:
        stream = server.stream("shop", "tick", str(tmp_path))
        try:
            while not stream.done:
                await asyncio.wrap_future(stream.part())
                (tmp_path / "begun").touch()
        finally:
            stream.close()

    async def main() -> None:
        reading = asyncio.create_task(read())
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(main())
    until((tmp_path / "closed").exists)


def test_streams_and_batches_take_turns(server: ModelServer, tmp_path: Path) -> None:
    pieces = [iter(server.stream("shop", "tick", str(tmp_path))) for _ in range(3)]
    assert [next(each) for each in pieces] == [0, 0, 0]
    for i in range(3):
        assert server.predict("shop", "double", [i]).outputs == [2 * i]
    assert [next(each) for each in pieces] == [1, 1, 1]


def test_a_stream_whose_process_dies_says_so(server: ModelServer, tmp_path: Path) -> None:
    pieces = iter(server.stream("shop", "tick", str(tmp_path)))
    assert next(pieces) == 0
    os.kill(server.status()["pid"], signal.SIGKILL)
    with pytest.raises(ServiceError, match="process that ran"):
        list(pieces)
    with pytest.raises(ModelError, match="twice"):
        list(server.stream("shop", "letters", "#"))  # before the first part: tried again, once
    assert server.predict("shop", "double", [1]).outputs == [2]


def test_a_second_process_is_started_when_the_first_is_busy(make_server: MakeServer, tmp_path: Path) -> None:
    before = children()
    server = make_server(replicas=2)
    for i in range(5):
        assert server.predict("shop", "double", [i]).outputs == [2 * i]
    assert len(children()) == len(before) + 1
    with busy(server, tmp_path):  # one process waits for a file
        assert server.predict("shop", "double", [4]).outputs == [8]
        status = server.status()
        assert [one["state"] for one in status["replicas"]] == ["running", "running"]
        assert len(children()) == len(before) + 2
    pids = [one["pid"] for one in status["replicas"]]
    os.kill(pids[0], signal.SIGKILL)
    assert server.predict("shop", "double", [4]).outputs == [8]
    server.close()
    assert all(map(gone, pids))


def test_two_processes_share_the_work(make_server: MakeServer) -> None:
    server = make_server(replicas=2)
    server.predict("shop", "work", [0])

    def load() -> list[Future[Prediction]]:
        return [server.submit("shop", "work", [0.01] * 8) for _ in range(20)]

    wait(load())
    until(lambda: all(one["pid"] for one in server.status()["replicas"]))
    answers = load()
    assert {future.result().outputs[0] for future in answers} == {one["pid"] for one in server.status()["replicas"]}
