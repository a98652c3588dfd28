"""The child process: started late, tied to us, replaced when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest

from superduper_nb.errors import DeadlineError, ModelError, ServiceError
from superduper_nb.serving import ModelServer
from tests.serving import fakes
from tests.serving.test_batching import busy
from tests.waiting import until

MakeServer = Callable[..., ModelServer]


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("superduper-model")]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_nothing_is_started_before_the_first_request_or_left_after_close(tmp_path: Path) -> None:
    before = children(), ours()
    server = ModelServer(fakes.load, fakes.current, preload=())
    assert (children(), ours()) == before
    assert (server.status()["state"], server.loaded()) == ("idle", [])
    server.predict("shop", "double", [1])
    assert server.status()["state"] == "running"
    assert server.status()["pid"] in children()
    server.close()
    server.close()
    assert (children(), ours()) == before
    assert (server.status()["state"], server.loaded()) == ("closed", [])
    with pytest.raises(ServiceError, match="was closed"):
        server.predict("shop", "double", [1])


def test_a_server_that_was_never_used_closes() -> None:
    server = ModelServer(fakes.load, fakes.current)
    server.close()
    server.unload("shop", "double")
    assert server.status()["state"] == "closed"


def test_close_answers_everything(server: ModelServer, tmp_path: Path) -> None:
    inside = server.submit("shop", "wait", [str(tmp_path / "never")])
    until((tmp_path / "never.begun").exists)
    waiting = server.submit("shop", "double", [1])
    server.close()
    for future in (inside, waiting):
        with pytest.raises(ServiceError, match="was closed"):
            future.result(timeout=0)


@pytest.mark.parametrize(("how", "ended"), [("exit", "exit code 3"), ("kill", "killed by signal 9")])
def test_an_input_that_ends_the_process_fails_alone(server: ModelServer, tmp_path: Path, how: str, ended: str) -> None:
    with busy(server, tmp_path):
        inside = [server.submit("shop", "die", [x]) for x in [1, how, 2]]
        outside = server.submit("shop", "double", [4])
    with pytest.raises(ModelError, match=rf"ended \({ended}\) in this request, twice"):
        inside[1].result()
    assert [inside[i].result().outputs for i in (0, 2)] == [[1], [2]]
    assert outside.result().outputs == [8]
    assert server.status()["restarts"] == 2


def test_killed_under_load_every_request_is_answered(server: ModelServer) -> None:
    stop = threading.Event()

    def ask(i: int) -> list[bool]:
        answers = []
        while not stop.is_set():
            error = server.submit("shop", "double", [i], timeout=30).exception()
            assert error is None or isinstance(error, ModelError)
            answers.append(error is None)
        return answers

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, i) for i in range(8)]
        for kills in range(1, 5):
            until(lambda: server.status()["pid"])
            server.predict("shop", "double", [0])
            os.kill(server.status()["pid"], signal.SIGKILL)
            until(partial(lambda n: server.status()["restarts"] == n, kills))
        stop.set()
        assert all(any(future.result()) for future in asking)
    assert server.predict("shop", "double", [1]).outputs == [2]


def test_killed_while_idle_it_is_started_at_the_next_request(server: ModelServer) -> None:
    server.predict("shop", "double", [1])
    os.kill(server.status()["pid"], signal.SIGKILL)
    until(lambda: server.status()["state"] == "idle")
    assert server.predict("shop", "double", [1]).outputs == [2]
    server.unload("shop", "double")
    assert [row["state"] for row in server.loaded()] == ["unloaded"]


@pytest.mark.parametrize("model", ["wait", "spin"])
def test_a_model_that_hangs_is_killed_at_its_deadline(server: ModelServer, tmp_path: Path, model: str) -> None:
    server.predict("shop", "double", [1])
    pid = server.status()["pid"]
    hangs = server.submit("shop", model, [str(tmp_path / "never")], timeout=1)
    waits = server.submit("shop", "double", [2])
    with pytest.raises(DeadlineError):
        hangs.result(timeout=20)
    assert waits.result(timeout=20).outputs == [4]
    assert gone(pid)
    assert server.status()["restarts"] == 1


def test_a_short_deadline_does_not_kill_a_model_within_its_grace(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(grace=30)
    path = tmp_path / "x"
    hasty = server.submit("shop", "wait", [str(path)], timeout=3)
    until((tmp_path / "x.begun").exists)
    with pytest.raises(DeadlineError):
        hasty.result()
    path.touch()
    assert server.predict("shop", "double", [1]).outputs == [2]
    assert server.status()["restarts"] == 0


def test_a_model_that_forks_answers_once(server: ModelServer) -> None:
    for _ in range(3):
        assert server.predict("shop", "fork", [1]).outputs == [server.status()["pid"]]
    assert server.predict("shop", "double", [1]).outputs == [2]


def test_processes_that_a_model_started_end_with_its_own(server: ModelServer) -> None:
    (killed,) = server.predict("shop", "start", [600]).outputs
    os.kill(server.status()["pid"], signal.SIGKILL)
    until(lambda: gone(killed))
    (closed,) = server.predict("shop", "start", [600]).outputs
    server.close()
    until(lambda: gone(closed))


def test_a_process_that_never_starts_is_an_error_and_no_endless_wait(make_server: MakeServer) -> None:
    server = make_server(load=fakes.Unstartable())
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"does not start: exit code 5"):
        server.predict("shop", "double", [1], timeout=60)
    assert time.monotonic() - started < 60


PARENT = """
import sys, time
from superduper_nb.serving import ModelServer
from tests.serving import fakes
server = ModelServer(fakes.load, fakes.current, preload=())
server.predict("shop", "double", [1])
server.submit("shop", sys.argv[1], [sys.argv[2]])
print(server.status()["pid"], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("model", "begun"), [("wait", "x.begun"), ("spin", "x")])
def test_killed_ourselves_we_leave_no_process(tmp_path: Path, model: str, begun: str) -> None:
    command = [sys.executable, "-c", PARENT, model, str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        until((tmp_path / begun).exists)
        assert not gone(pid)
        parent.kill()
    until(lambda: gone(pid))
