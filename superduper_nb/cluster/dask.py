"""A pool of Dask workers: our own on this machine, or an external scheduler's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.cluster import dask_external
from superduper_nb.errors import InvalidInputError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from distributed import Client

__all__ = ["DaskPool", "PoolLostError", "WorkerLostError"]

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S: Final = 20
_CLOSE_TIMEOUT_S: Final = 8
_TIDYING_UP: Final = "ignore:resource_tracker:UserWarning"
"""It says what it takes away after workers that were ended at once, which is what it is there for."""


class WorkerLostError(ServiceError):
    """The worker died with a task in it, or with one in its queue.

    Parameters
    ----------
    message : str
        What happened.
    worker : str
        Which process it was: no two have the same name.
    """

    code = "worker_lost"

    def __init__(self, message: str, worker: str = "") -> None:
        super().__init__(message)
        self.worker = worker


class PoolLostError(ServiceError):
    """The scheduler is gone, or the connection to it, whatever the tasks did."""

    code = "pool_lost"


class DaskPool:
    """Workers that execute functions, restarted when they are lost.

    Parameters
    ----------
    address : str, optional
        An external scheduler (``tls://…`` or ``tcp://…``). Default: our own, in a process of its own, over TLS, on
        loopback.
    tls : mapping of str to str, optional
        Certificates for an external one (see `superduper_nb.cluster.dask_external.connect`); default: those of the
        Dask configuration.
    workers : int
        Worker processes of our own pool.
    max_workers : int, optional
        Our own pool grows to so many while there is work for them, and shrinks back to `workers`.
    threads : int, default 1
        Threads of each.
    memory : int, optional
        Bytes that each may have, before it is ended and another started. Default: the machine's, shared among them.
    resources : mapping of str to float, optional
        What each worker of our own pool has to offer: ``{"GPU": 1}``.
    environment : mapping of str to str
        Handed to the workers (where MongoDB is, for instance); to those of an external scheduler over TLS only.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        tls: Mapping[str, str] | None = None,
        workers: int = 2,
        max_workers: int | None = None,
        threads: int = 1,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._external, self._tls, self._environment = address, tls, dict(environment or {})
        self._own_threads = max(workers, max_workers or 0) * threads
        self._options = {
            "workers": workers,
            "max_workers": max_workers or workers,
            "threads": threads,
            "memory": memory,
            "resources": dict(resources or {}),
            "environment": self._environment,
        }
        self._process: subprocess.Popen[str] | None = None
        self._client: Client | None = None
        self._lock = threading.RLock()
        self._newcomers: dask_external.Newcomers | None = None
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {}
        self.restarts = -1

    # --- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start or connect, unless that is done and it lives.

        Raises
        ------
        ServiceError
            The scheduler does not answer, or is none for us.
        """
        with self._lock:
            if not self.alive:
                self._abandon()
                self._client = self._connect()
                self.restarts += 1
                for topic, handler in self._handlers.items():
                    self._listen(topic, handler)

    @property
    def alive(self) -> bool:
        """The scheduler is there and we are connected to it."""
        if self._client is None or self._client.status != "running":
            return False
        return self._external is not None or (self._process is not None and self._process.poll() is None)

    def close(self) -> None:
        """End it and wait until no process of it is left. Harmless when done twice."""
        with self._lock:
            self._abandon()

    def _connect(self) -> Client:
        from distributed import Client
        from distributed.security import Security

        if self._external is not None:
            return self._join(self._external)
        hello = self._spawn()
        security = Security(require_encryption=True, **hello["tls"])
        try:
            return Client(hello["address"], security=security, timeout=_CALL_TIMEOUT_S, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise ServiceError(f"The Dask workers do not answer ({type(error).__name__}).") from error

    def _join(self, address: str) -> Client:
        client = dask_external.connect(address, self._tls)
        try:
            dask_external.hand_over(client, address, self._environment)
            self._newcomers = dask_external.Newcomers(client, address)
        except BaseException:
            client.close(timeout=2)
            raise
        return client

    def _spawn(self) -> dict[str, Any]:
        self._process = process = subprocess.Popen(
            [sys.executable, "-W", _TIDYING_UP, "-m", "superduper_nb.cluster.dask_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which then closes us in order
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(self._options) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise ServiceError(f"The Dask workers did not start (exit code {process.wait()}): see the server's log.")
        return dict(json.loads(line))

    def _abandon(self) -> None:
        client, process = self._client, self._process
        self._client = self._process = None
        if client is not None:
            with contextlib.suppress(Exception):  # a dead scheduler can't be told goodbye
                client.close(timeout=2)
        if process is not None:
            _end(process)

    # --- work --------------------------------------------------------------------------------------------------

    def submit(
        self,
        key: str,
        function: Callable[..., Any],
        *args: Any,
        priority: int = 0,
        resources: Mapping[str, float] | None = None,
    ) -> Future[Any]:
        """Run a function in a worker that has these resources; `key` must be new for each call.

        Returns
        -------
        concurrent.futures.Future
            Ends with the result, or with the exception: the function's own, `WorkerLostError` or `PoolLostError`.

        Raises
        ------
        InvalidInputError
            No worker has the resources: the task would wait for ever.
        ServiceError
            There is no cluster, or a worker that joined it runs other code.
        """
        self.start()
        if self._newcomers:
            self._newcomers.check()
        if resources:
            self._check_offered(resources)
        with self._lock:
            assert self._client is not None
            options = {"priority": priority, "resources": dict(resources or {})}
            remote = self._client.submit(function, *args, key=key, pure=False, **options)
        local: Future[Any] = Future()
        local.set_running_or_notify_cancel()
        local.remote = remote  # type: ignore[attr-defined]  # Dask drops a task whose future is forgotten
        remote.add_done_callback(lambda done: _relay(done, local, self._newcomers))
        return local

    def client(self) -> Client:
        """Return the connection to the scheduler, made anew where it was lost."""
        self.start()
        assert self._client is not None
        return self._client

    def workers(self) -> dict[str, dict[str, float]]:
        """Return the address of each worker, with the resources that it was started with; start the pool if need be."""
        self.start()
        with self._lock:
            assert self._client is not None
            known = self._client.scheduler_info(n_workers=-1)["workers"]
        return {address: dict(about.get("resources") or {}) for address, about in known.items()}

    def subscribe(self, topic: str, handler: Callable[[dict[str, Any]], None]) -> None:
        """Have a handler called, in a thread of Dask's, with what workers tell under a topic (`Worker.log_event`)."""
        with self._lock:
            self._handlers[topic] = handler
            if self.alive:
                self._listen(topic, handler)

    def _listen(self, topic: str, handler: Callable[[dict[str, Any]], None]) -> None:
        assert self._client is not None
        self._client.subscribe_topic(topic, lambda event: handler(event[1]))

    def threads(self) -> int:
        """Return how many threads compute on the cluster, or will when it has grown; 0 where it does not say."""
        if self._external is None:
            return self._own_threads
        return sum(worker["nthreads"] for worker in self._workers().values())

    def describe(self) -> dict[str, Any]:
        """Say where it runs and how many workers it has."""
        if not self.alive or self._client is None:
            return {"state": "stopped", "where": self._external or "this machine", "workers": 0}
        address = self._client.scheduler.address if self._client.scheduler else None
        return {"state": "running", "where": address, "workers": len(self._workers()), "restarts": self.restarts}

    def _check_offered(self, wanted: Mapping[str, float]) -> None:
        offered = [worker.get("resources", {}) for worker in self._workers().values()]
        if any(all(offer.get(name, 0) >= amount for name, amount in wanted.items()) for offer in offered):
            return
        each = {", ".join(f"{name}={amount:g}" for name, amount in offer.items()) or "none" for offer in offered}
        asked = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items())
        raise InvalidInputError(
            f"It asks for workers with {asked}; those of {self._external or 'our own pool'} have "
            f"{'; '.join(sorted(each)) or 'not come yet'}. See jobs.resources, and Dask's --resources."
        )

    def _workers(self) -> dict[str, Any]:
        if not self.alive or self._client is None or self._client.scheduler is None:
            return {}
        with contextlib.suppress(OSError, TimeoutError):  # it is going, or stopped: whoever submits will notice
            ask = self._client.scheduler.identity
            return dict(self._client.sync(ask, n_workers=-1, callback_timeout=_CALL_TIMEOUT_S / 4)["workers"])
        return {}


def _relay(remote: Any, local: Future[Any], newcomers: dask_external.Newcomers | None) -> None:
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        local.set_result(remote.result(timeout=_CALL_TIMEOUT_S))
    except KilledWorker as error:
        local.set_exception(WorkerLostError("A worker died with the task.", error.last_worker.server_id))
    except (CommClosedError, CancelledError, asyncio.CancelledError) as error:
        local.set_exception(PoolLostError(f"The workers' scheduler is gone ({type(error).__name__})."))
    except BaseException as error:
        local.set_exception(_excused(error, newcomers))
    finally:
        del local.remote  # type: ignore[attr-defined]


def _excused(error: BaseException, newcomers: dask_external.Newcomers | None) -> BaseException:
    """Return why a task failed: what it raised, unless a worker runs other code, which may be the reason."""
    try:
        if newcomers:
            newcomers.check(again=True)
    except Exception as foreign:
        return PoolLostError(str(foreign))
    return error


def _end(process: subprocess.Popen[str]) -> None:
    import psutil

    from superduper_nb.cluster.ending import wait_for_end

    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(_CLOSE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in wait_for_end(children, timeout=2):
        child.kill()
    if process.stdout:
        process.stdout.close()
    log.debug("Dask host %d ended (this is %d)", process.pid, os.getpid())
