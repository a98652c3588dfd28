"""Model processes on the workers of a real Dask cluster: placed by resources, started again when their worker dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

from superduper_nb.cluster.dask import DaskPool
from superduper_nb.cluster.dask_host import settings
from superduper_nb.errors import ModelError, ServiceError
from superduper_nb.serving import ModelServer
from superduper_nb.serving.cluster import OnCluster
from tests.serving import fakes
from tests.serving.live import running
from tests.serving.test_model_process import gone
from tests.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool() -> Iterator[DaskPool]:
    """Two workers in processes of their own, with room for one model each."""
    import dask

    with (
        dask.config.set(settings()),
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0", resources={"GPU": 1}
        ) as cluster,
    ):
        made = DaskPool(address=cluster.scheduler_address)
        yield made
        made.close()


@pytest.fixture
def server(pool: DaskPool) -> Iterator[ModelServer]:
    made = ModelServer(fakes.load, fakes.current, place=OnCluster(pool, {"GPU": 1}), replicas=2, grace=5, preload=())
    yield made
    made.close()


def worker_of(pid: int) -> psutil.Process:
    parent = psutil.Process(pid).parent()
    assert parent
    return parent


def test_models_run_on_workers_one_on_each_and_end_with_the_server(server: ModelServer, tmp_path: Path) -> None:
    assert server.predict("shop", "double", [1, "a"]).outputs == [2, "aa"]
    assert list(server.stream("shop", "letters", "warm")) == list("warm")
    busy = server.submit("shop", "wait", [str(tmp_path / "x")])
    until((tmp_path / "x.begun").exists)
    assert server.predict("shop", "double", [4]).outputs == [8]  # by the other one
    status = server.status()
    pids = [replica["pid"] for replica in status["replicas"]]
    assert status["where"] == "Dask workers"
    assert len({worker_of(pid).pid for pid in pids}) == 2
    with pytest.raises(ModelError, match="exit code 3"):
        server.predict("shop", "die", ["exit"])
    (tmp_path / "x").touch()
    busy.result()
    server.close()
    until(lambda: all(map(gone, pids)))


def test_a_killed_worker_under_load_fails_nobody(server: ModelServer) -> None:
    server.predict("shop", "double", [0])
    pid = server.status()["pid"]

    def ask(i: int) -> object:
        return server.predict("shop", "double", [i], timeout=60).outputs[0]

    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(ask, i) for i in range(50)]
        os.kill(worker_of(pid).pid, signal.SIGKILL)
        answers += [threads.submit(ask, i) for i in range(50, 100)]
        assert [answer.result() for answer in answers] == [2 * i for i in range(100)]
    until(lambda: gone(pid))  # it went with its worker
    assert server.status()["restarts"] >= 1


def test_no_worker_with_room_is_said(pool: DaskPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superduper_nb.serving.cluster._WORKER_S", 0.5)
    server = ModelServer(fakes.load, fakes.current, place=OnCluster(pool, {"TPU": 2}), preload=())
    with pytest.raises(ServiceError, match=r"no worker of the Dask cluster has TPU: 2 to spare"):
        server.predict("shop", "double", [1])
    server.close()


@pytest.mark.drill
def test_a_notebook_server_whose_models_run_on_its_workers(
    tmp_path: Path, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_MODEL_SERVER__PLACEMENT", "cluster")
    with running(tmp_path / "home", mongo_uri) as live:
        docs = live.client["held"]["docs"]
        docs.create_model("double", lambda x: 2 * x)
        for i in range(3):
            assert docs.predict("double", i) == 2 * i
            pid = until(live.model_process, "it says where its model process is")
            os.kill(worker_of(pid).pid, signal.SIGKILL)
        live.client.drop_database("held")
