"""The process that holds a Dask scheduler and its workers: ``python -m superduper_nb.cluster.dask_host``.

A process of its own, so that the notebook server's event loop never carries the scheduler. It reads its settings from
the first line of standard input, answers with one line (address and certificates), and ends when that input does: when
the server that started it closes it, or is killed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from typing import Any, Final, TextIO

import dask

__all__ = ["settings", "worker_environment"]

READING_AND_WRITING: Final = 2
"""Threads that a worker has beyond those that compute: one reads or writes a chunk, one is free for a short job."""

_IDLE_S: Final = 30
"""A worker that a growing pool has no work for any more is kept so long: the next one would load models anew."""


def settings() -> dict[str, Any]:
    """Return the Dask settings under which worker deaths are survived (each default loses work: see the keys)."""
    return {
        "distributed.deploy.lost-worker-timeout": "1 hour",  # 15 s: a pool under repeated kills shrinks to nothing
        "distributed.scheduler.worker-ttl": "30s",  # 5 min: as long does a stopped worker hold its task
        # What a model leaks can't be moved to disk, and a worker that pauses for it never goes on: only its end helps.
        **{f"distributed.worker.memory.{measure}": False for measure in ("target", "spill", "pause")},
        "distributed.scheduler.allowed-failures": 0,  # the dispatcher finds out who it was, and runs the others again
        "distributed.scheduler.http.routes": [],  # Dask's web pages ask nobody for a password
        "distributed.worker.http.routes": [],
        "logging": {"distributed": "warning"},
        "distributed.admin.tick.limit": "1h",
        # What Dask notes of the past, for pages and analyses that nobody has here: memory stays flat, whatever runs.
        "distributed.admin.low-level-log-length": 50,
        "distributed.admin.log-length": 1000,
        "distributed.admin.system-monitor.log-length": 10,
        "distributed.diagnostics.computations.max-history": 1,
        "distributed.diagnostics.erred-tasks.max-history": 1,
        "distributed.worker.profile.enabled": False,
    }


def worker_environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: one computing thread a core, and an allocator that keeps its pages.

    Dask's default ``MALLOC_TRIM_THRESHOLD_`` of 64 kB costs a transformer a third of its speed in page faults.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    # The workers set logging up as they import Dask, before they are told the scheduler's settings.
    return {**dict.fromkeys(names, str(threads)), **malloc, "DASK_LOGGING__DISTRIBUTED": "warning"}


def _prepare_forks(environment: dict[str, str]) -> None:
    """Have workers forked from one process that has imported what all of them need: a lost one is replaced at once.

    It is started first, and does so while this process imports Dask. Under Linux only: elsewhere a fork after the
    import of torch is not safe.
    """
    if sys.platform != "linux":
        return
    from multiprocessing import forkserver

    os.environ.update(environment)
    multiprocessing.set_forkserver_preload(["distributed", "torch", "superduper_nb.jobs.tasks"])
    forkserver.ensure_running()
    import distributed.utils

    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    distributed.utils._forkserver_preload_set = True  # else Dask imports pandas, here too


async def _serve(options: dict[str, Any], answer: TextIO) -> None:
    environment = worker_environment(options["threads"])
    scratch = tempfile.mkdtemp(prefix="superduper-workers-")
    own = {"distributed.nanny.pre-spawn-environ": environment, "temporary-directory": scratch}
    dask.config.set({**settings(), **own})
    _prepare_forks(environment)
    from distributed import LocalCluster  # its import sets logging up as the settings say
    from distributed.security import Security
    from distributed.system import MEMORY_LIMIT

    security = Security.temporary()
    async with LocalCluster(
        n_workers=options["workers"],
        threads_per_worker=options["threads"] + READING_AND_WRITING,
        memory_limit=options["memory"] or MEMORY_LIMIT // options["max_workers"],
        resources=options["resources"] or None,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},  # else it takes port 8787
        security=security,
        asynchronous=True,
        preload=["superduper_nb.cluster.warm"],
        silence_logs=False,
    ) as cluster:
        if options["max_workers"] > options["workers"]:
            cluster.adapt(minimum=options["workers"], maximum=options["max_workers"], interval="1s", wait_count=_IDLE_S)
        hello = {"address": cluster.scheduler_address, "tls": _certificates(security)}
        with answer:
            print(json.dumps(hello), file=answer)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        _end_at_once()


def _end_at_once() -> None:
    """End this process and all of its group: jobs are records, so nobody needs seconds of goodbyes between workers.

    All but the one that takes away, when we are gone, the semaphores that we leave behind.
    """
    if not hasattr(os, "killpg") or os.getpgid(0) != os.getpid():
        return
    shutil.rmtree(dask.config.get("temporary-directory"), ignore_errors=True)
    import psutil

    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            mine = os.getpgid(process.pid) == os.getpid() != process.pid
            if mine and "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _certificates(security: Any) -> dict[str, str]:
    names = ("tls_ca_file", "tls_client_cert", "tls_client_key")
    return {name: getattr(security, name) for name in names}


def _reserve_stdout() -> TextIO:
    """Return standard output for the answer, and let everybody else, workers too, print to standard error.

    Nobody reads on after the answer, and a full pipe would stop whoever prints into it.
    """
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answer


def main() -> None:
    """Run until standard input ends."""
    options = json.loads(sys.stdin.readline())
    os.environ.update(options["environment"])
    asyncio.run(_serve(options, _reserve_stdout()))


if __name__ == "__main__":
    main()
