"""The keeper: a small process that starts one ``mongod``, restarts it when it dies and stops it in the end.

It belongs to no user in particular: whoever comes first starts it (:class:`superduper_nb.cluster.mongod.Mongod`) and
hands it the keeper's lock; it ends when nobody holds the users' lock any more. While it stops mongod it has that
lock to itself, so a newcomer waits, and then starts afresh.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from superduper_nb.cluster.mongod_folder import MongodFolder, MongodState, open_lock, take_lock
from superduper_nb.cluster.mongod_setup import (
    StartError,
    accepts,
    admin_client,
    choose_port,
    command,
    configure,
    set_password,
)

POLL_S = 0.25
STOP_S = 10.0
STEADY_S = 5.0
"""A mongod that served for this long is restarted at once, others after a pause that doubles."""
MAX_PAUSE_S = 3.0
"""With the start itself it stays below the 5 s for which clients wait for a server."""
OPEN_FILES = 64_000
"""What MongoDB's manual recommends for mongod."""


class Keeper:
    """Supervise the mongod of one folder until its last user has gone.

    Parameters
    ----------
    folder : MongodFolder
        The data folder.
    binary : Path
        The mongod program.
    cache_gb : float
        Limit of mongod's cache.
    """

    def __init__(self, folder: MongodFolder, binary: Path, cache_gb: float) -> None:
        self._folder = folder
        self._binary = binary
        self._cache_gb = cache_gb
        self._users = open_lock(folder.users_lock)
        self._state = MongodState("starting", socket.gethostname(), folder.read_state().port, keeper=os.getpid())
        self._log_start = 0
        self._short_lives = 0
        self._still_births = 0
        self._told_to_end = False
        self._wake = _wake_on_signals(self._end)
        self._end_with_keeper = _end_with_keeper()

    def run(self) -> None:
        """Keep mongod running while it is wanted."""
        while self._wanted():
            self._live_once()
        self._report(state="stopped", pid=None)

    def _live_once(self) -> None:
        process, served = None, 0.0
        try:
            process = self._launch()
            self._make_primary(process)
            began = time.monotonic()
            while self._wanted() and process.poll() is None:
                self._nap(POLL_S)
            served = time.monotonic() - began
            reason = f"mongod {describe_end(process)}"
        except Exception as exc:  # whatever it was, the next start may go well: say it, and go on
            reason = self._why(process, exc)
        finally:
            if process:
                self._stop(process)
        if self._wanted():
            self._pause(served, reason)

    def _launch(self) -> subprocess.Popen[bytes]:
        end_orphan(self._folder.db)
        self._report(port=choose_port(self._state.port), pid=None)
        self._folder.db.mkdir(mode=0o700, exist_ok=True)
        self._folder.secret(self._folder.keyfile)
        log = self._folder.open_log()
        self._log_start = os.fstat(log).st_size
        try:
            return subprocess.Popen(
                command(self._binary, self._folder, self._state.port, self._cache_gb),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._end_with_keeper,
            )
        finally:
            os.close(log)

    def _make_primary(self, process: subprocess.Popen[bytes]) -> None:
        port = self._state.port
        key = self._folder.secret(self._folder.keyfile)
        with admin_client(port, key) as client:  # imports pymongo, which takes its time, while mongod starts
            self._wait(process, lambda: accepts(port))
            self._wait(process, lambda: configure(client, port))
            self._wait(process, lambda: bool(client.admin.command("hello")["isWritablePrimary"]))
            set_password(client, self._folder.secret(self._folder.password_file))
            version = client.server_info()["version"]
        self._report(state="running", pid=process.pid, version=version, error=None)

    def _wait(self, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        while not ready():
            if process.poll() is not None or not self._wanted():
                raise StartError(f"mongod {describe_end(process)}")
            time.sleep(0.01)

    def _why(self, process: subprocess.Popen[bytes] | None, exc: Exception) -> str:
        if process is None or process.poll() is None:
            return str(exc) if isinstance(exc, StartError) else f"{type(exc).__name__}: {exc}"
        return f"mongod {describe_end(process)}: {self._folder.complaint(self._log_start)}"

    def _pause(self, served: float, reason: str) -> None:
        self._short_lives = 0 if served > STEADY_S else self._short_lives + 1
        self._still_births = 0 if served else self._still_births + 1
        state = "failed" if self._still_births > 1 else "restarting"
        self._report(state=state, pid=None, restarts=self._state.restarts + 1, error=reason)
        end = time.monotonic() + (min(MAX_PAUSE_S, 0.05 * 2**self._short_lives) if self._short_lives else 0)
        while self._wanted() and (left := end - time.monotonic()) > 0:
            self._nap(left)

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            self._report(state="stopping")
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wanted(self) -> bool:
        return not (self._told_to_end or take_lock(self._users))

    def _end(self) -> None:
        self._told_to_end = True

    def _nap(self, seconds: float) -> None:
        """Sleep, but wake at once when mongod ends or somebody wants the keeper to end."""
        if select.select([self._wake], [], [], min(seconds, POLL_S))[0]:
            self._wake.recv(1024)

    def _report(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        with suppress(OSError):  # a full disk must not end the supervision
            self._folder.write_state(self._state)


def end_orphan(db: Path) -> None:
    """End a mongod that outlived its keeper (possible only where the system can't tie it to the keeper)."""
    try:
        pid = int((db / "mongod.lock").read_text())
    except (FileNotFoundError, ValueError):
        return
    import psutil

    from superduper_nb.cluster.ending import wait_for_end

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if str(db) in process.cmdline():
            process.terminate()
            if wait_for_end([process], timeout=STOP_S):
                process.kill()
                wait_for_end([process], timeout=STOP_S)


def describe_end(process: subprocess.Popen[bytes]) -> str:
    """Say how the process ended."""
    code = process.returncode
    if code is None:
        return "was stopped"
    return f"exited with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _end_with_keeper() -> Callable[[], None] | None:
    """Return what a child calls first, so that it dies with this process; None where the system offers nothing."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl, keeper, set_death_signal = ctypes.CDLL(None).prctl, os.getpid(), 1

    def tie() -> None:
        prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)

    return tie


def _wake_on_signals(end: Callable[[], None]) -> socket.socket:
    """Return a socket that becomes readable when a child ended or this process shall end."""
    wake, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: end())
    return wake


def _allow_many_files() -> None:
    """Raise this process's limit of open files, and so mongod's: each collection and each index is a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS knows lower limits than it tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> None:
    """Become a daemon, and keep mongod."""
    parser = argparse.ArgumentParser(description="Keeps the embedded mongod of superduper_nb; started by its users.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("binary", type=Path)
    parser.add_argument("cache_gb", type=float)
    parser.add_argument("lock", type=int, help="descriptor of the keeper's lock, held from here on")
    given = parser.parse_args()
    os.set_inheritable(given.lock, False)
    _allow_many_files()
    if os.fork() == 0:
        Keeper(MongodFolder(given.folder), given.binary, given.cache_gb).run()


if __name__ == "__main__":
    main()
