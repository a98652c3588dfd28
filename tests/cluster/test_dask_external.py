"""Dask clusters that somebody else started, each with its own certificates: real schedulers and workers, and TLS."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import LocalCluster, Worker
from distributed.security import Security

from superduper_nb.cluster import dask_external
from superduper_nb.cluster.dask import DaskPool, PoolLostError
from superduper_nb.components.trust import TRUST_KEY, sign, verify
from superduper_nb.config import Config
from superduper_nb.errors import InvalidInputError, ServiceError
from tests.waiting import until


class External:
    """A cluster, and the files that whoever connects to it needs."""

    def __init__(self, folder: Path, resources: dict[str, float]) -> None:
        security = Security.temporary()
        self.tls = {name: str(folder / name) for name in ("tls_ca_file", "tls_client_cert", "tls_client_key")}
        for name, path in self.tls.items():
            Path(path).write_text(getattr(security, name))
        self.cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=3,
            resources=resources,
            processes=False,
            security=security,
            host="tls://127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        )
        self.address: str = self.cluster.scheduler_address
        self._security = security

    @contextmanager
    def elsewhere(self, home: Path) -> Iterator[None]:
        """Have one more worker, in a process that shares no files with this one, and no key."""
        files = zip(("--tls-ca-file", "--tls-cert", "--tls-key"), self.tls.values(), strict=True)
        options = [
            "--no-nanny",
            "--no-dashboard",
            "--nthreads=1",
            "--resources=ELSEWHERE=1",
            f"--local-directory={home}",
        ]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, *options, *chain(*files)]
        environment = {name: value for name, value in os.environ.items() if name != TRUST_KEY}
        process = subprocess.Popen(command, cwd=home, env={**environment, "JUPYTER_DATA_DIR": str(home / "jupyter")})
        try:
            yield
        finally:
            process.kill()  # asked to end while it registers, it may stay for ever
            process.wait(20)

    @contextmanager
    def another(self, worker: type[Worker] = Worker) -> Iterator[str]:
        """Have one more worker, of another kind perhaps, and yield its address."""

        async def join() -> Worker:
            return await worker(self.address, security=self._security, nthreads=1, dashboard=False)

        late = self.cluster.sync(join)
        yield late.address
        self.cluster.sync(late.close)

    def config(self) -> Config:
        """Return the settings that name it."""
        ca, cert, key = self.tls.values()
        return Config.load({"jobs": {"address": self.address, "tls": {"ca_file": ca, "cert": cert, "key": key}}})


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[External]]:
    """Return two clusters on this machine, of which the first has a GPU to offer."""
    both = [External(tmp_path_factory.mktemp("certificates"), resources) for resources in ({"GPU": 1}, {})]
    yield both
    for external in both:
        external.cluster.close()


@pytest.fixture
def connected() -> Iterator[Callable[..., DaskPool]]:
    """Connect pools, which are closed after the test."""
    pools: list[DaskPool] = []

    def connect(config: Config, **environment: str) -> DaskPool:
        pools.append(DaskPool(address=config.jobs.scheduler, tls=config.jobs.certificates, environment=environment))
        pools[-1].start()
        return pools[-1]

    yield connect
    for pool in pools:
        pool.close()


def where() -> str:
    from distributed import get_worker

    return str(get_worker().scheduler.address)  # type: ignore[attr-defined]


_now: list[int] = []


def at_once() -> int:
    """Return how many of us run in this process while we do."""
    _now.append(1)
    time.sleep(0.05)
    count = len(_now)
    _now.pop()
    return count


class Old(Worker):
    """A worker of another version of our package."""

    def versions(self, *args: Any, **kwargs: Any) -> Any:
        found = super().versions(*args, **kwargs)
        return {**found, "packages": {**found["packages"], "superduper-nb": "0.0.1"}}


_joined = threading.Event()


def fail_later() -> None:
    assert _joined.wait(20)
    raise ModuleNotFoundError("No module named 'superduper_nb'")


def test_two_clusters_on_one_machine_each_do_their_own_work(
    clusters: list[External], connected: Callable[..., DaskPool]
) -> None:
    pools = [connected(external.config()) for external in clusters]
    futures = [pool.submit(f"where-{n}", where) for n, pool in enumerate(pools)]
    assert [future.result(20) for future in futures] == [external.address for external in clusters]
    assert [pool.threads() for pool in pools] == [3, 3]
    assert pools[0].describe()["where"] == clusters[0].address


def test_work_goes_where_its_resources_are_and_is_refused_where_nobody_has_them(
    clusters: list[External], connected: Callable[..., DaskPool]
) -> None:
    rich, poor = (connected(external.config()) for external in clusters)
    futures = [rich.submit(f"gpu-{n}", at_once, resources={"GPU": 1}) for n in range(3)]
    assert [future.result(20) for future in futures] == [1, 1, 1]  # though it has three threads
    with pytest.raises(InvalidInputError, match=r"asks for workers with GPU=1; those of tls://\S+ have none\."):
        poor.submit("gpu", where, resources={"GPU": 1})
    with pytest.raises(InvalidInputError, match=r"GPU=2; those of tls://\S+ have GPU=1\."):
        rich.submit("gpus", where, resources={"GPU": 2})


def test_the_certificates_of_the_dask_configuration_do_as_well(
    clusters: list[External], connected: Callable[..., DaskPool]
) -> None:
    ca, cert, key = clusters[0].tls.values()
    tls = {"ca-file": ca, "client.cert": cert, "client.key": key}
    with dask.config.set({f"distributed.comm.tls.{name}": value for name, value in tls.items()}):
        pool = connected(Config.load({"jobs": {"address": clusters[0].address}}))
        assert pool.submit("where", where).result(20) == clusters[0].address


def test_what_is_wrong_with_certificates_is_said_in_a_line(
    clusters: list[External], connected: Callable[..., DaskPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_external, "TIMEOUT_S", 4)
    mine, other = clusters
    with pytest.raises(ServiceError, match=f"{mine.address} wants certificates and none are named. Set jobs.tls"):
        connected(Config.load({"jobs": {"address": mine.address}}))
    with pytest.raises(ServiceError, match=r"/nowhere.pem.* can't be used: .*No such file"):
        DaskPool(address=mine.address, tls={**mine.tls, "tls_ca_file": "/nowhere.pem"}).start()
    with pytest.raises(ServiceError, match=f"{mine.address} does not answer.*certificate"):
        DaskPool(address=mine.address, tls=other.tls).start()


def test_work_waits_while_a_worker_is_there_that_joined_late_with_other_code(
    clusters: list[External], connected: Callable[..., DaskPool]
) -> None:
    cluster = clusters[1]
    pool = connected(cluster.config())
    with cluster.another():
        assert pool.submit("beside", where).result(20) == cluster.address
    early = pool.submit("early", fail_later)
    with cluster.another(Old) as old:
        _joined.set()
        with pytest.raises(PoolLostError, match=f"worker {old} has superduper-nb 0.0.1"):
            early.result(20)  # what it raised may be the other code's fault: to be done again
        with pytest.raises(ServiceError, match=f"worker {old} has superduper-nb 0.0.1"):
            pool.submit("refused", where)
    assert pool.submit("after", where).result(20) == cluster.address


def test_a_worker_on_another_machine_is_handed_the_key_over_tls(
    clusters: list[External], connected: Callable[..., DaskPool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(TRUST_KEY, "ab" * 32)
    signature = sign(header := {"sha256": "12", "size": 3})
    pool = connected(clusters[1].config(), **{TRUST_KEY: "ab" * 32})
    try:
        with clusters[1].elsewhere(tmp_path):
            until(lambda: pool.threads() == 4)
            assert pool.submit("verified", verify, header, signature, resources={"ELSEWHERE": 1}).result(20)
    finally:
        pool.client().unregister_worker_plugin("superduper-nb-environment")


def test_workers_that_have_the_key_of_another_installation_are_refused(
    clusters: list[External], connected: Callable[..., DaskPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST_KEY, "ab" * 32)  # the workers are in this process
    with pytest.raises(ServiceError, match=r"Worker \S+ has another SUPERDUPER_TRUST_KEY than this process") as refused:
        connected(clusters[0].config(), **{TRUST_KEY: "cd" * 32})
    assert "abab" not in str(refused.value)
    assert "cdcd" not in str(refused.value)


def test_without_tls_no_key_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST_KEY, raising=False)
    options: dict[str, Any] = {"scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    with LocalCluster(
        n_workers=1, processes=False, host="tcp://127.0.0.1", dashboard_address=None, **options
    ) as cluster:
        pool = DaskPool(address=cluster.scheduler_address, environment={TRUST_KEY: "ab" * 32})
        try:
            pool.start()
            assert pool.submit("key", os.environ.get, TRUST_KEY).result(20) is None
        finally:
            pool.close()


@pytest.mark.parametrize(
    ("package", "version", "complaint"),
    [
        ("superduper-nb", None, r"worker tls://\S+ has superduper-nb missing \(here "),
        ("distributed", "2020.1.0", r"the scheduler has distributed 2020.1.0 \(here "),
        ("python", "3.6.1.final.0", r"the scheduler has Python 3.6 \(here 3.1"),
    ],
)
def test_a_cluster_that_runs_other_code_is_refused(
    clusters: list[External], monkeypatch: pytest.MonkeyPatch, package: str, version: Any, complaint: str
) -> None:
    """The cluster is in this process, so what it says of itself is changed on its way out."""
    from distributed.client import Client

    ask = Client._get_versions

    async def other(client: Any, *args: Any, **kwargs: Any) -> Any:
        found = await ask(client, *args, **kwargs)
        theirs = found["workers"].values() if package == "superduper-nb" else [found["scheduler"]]
        for each in theirs:
            each["packages"] = {**each["packages"], package: version}
        return found

    monkeypatch.setattr(Client, "_get_versions", other)
    with pytest.raises(ServiceError, match=complaint):
        dask_external.connect(clusters[0].address, clusters[0].tls)
