"""The data folder of an embedded ``mongod``, as its users and its keeper see it.

::

    users.lock      held shared by every process that uses the mongod, for as long as it lives
    keeper.lock     held by the one keeper (see :mod:`superduper_nb.cluster.keeper`)
    state.json      what the keeper last said: state, port, pid, error, …
    password        of the user ``superduper``      keyfile     mongod's own key; both written once, mode 0600
    mongod.log      mongod's and the keeper's output
    db/             the database files

The locks are ``flock``: the system lets go of them when their process dies, however it dies, so nothing here can go
stale.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from superduper_nb.errors import MongoUnavailableError

LOG_LIMIT = 10 * 2**20
"""Bytes after which the next start of mongod begins a new log; one old log is kept."""


@dataclass(frozen=True)
class MongodState:
    """What the keeper reports to everybody who shares its mongod."""

    state: Literal["starting", "running", "restarting", "failed", "stopping", "stopped"] = "stopped"
    machine: str = ""
    port: int = 0
    pid: int | None = None
    keeper: int | None = None
    version: str | None = None
    restarts: int = 0
    error: str | None = None


@dataclass(frozen=True)
class MongodFolder:
    """Paths, locks and small files of one data folder."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> MongodFolder:
        """Make the folder where it is missing; refuse one that another user could tamper with."""
        folder = cls(Path(os.path.abspath(root.expanduser())))  # noqa: PTH100 - links stay as the user wrote them
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.root.stat()
        if status.st_uid != os.getuid():
            raise MongoUnavailableError(f"The data folder {folder.root} belongs to another user: choose another one.")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise MongoUnavailableError(f"Others may write to the data folder: run `chmod go-w {folder.root}` first.")
        return folder

    @property
    def db(self) -> Path:
        """Where mongod keeps its files."""
        return self.root / "db"

    @property
    def users_lock(self) -> Path:
        """Held shared by each user."""
        return self.root / "users.lock"

    @property
    def keeper_lock(self) -> Path:
        """Held by the keeper."""
        return self.root / "keeper.lock"

    @property
    def log(self) -> Path:
        """What mongod and the keeper print."""
        return self.root / "mongod.log"

    @property
    def password_file(self) -> Path:
        """Holds the password of the user ``superduper``."""
        return self.root / "password"

    @property
    def keyfile(self) -> Path:
        """Holds the key by which the keeper itself logs in."""
        return self.root / "keyfile"

    def read_state(self) -> MongodState:
        """Return what the keeper last said; a missing or damaged file says nothing."""
        try:
            values = json.loads(self._state_file.read_bytes())
            known = {name: values[name] for name in MongodState.__dataclass_fields__ if name in values}
            return MongodState(**{**known, "port": int(values["port"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return MongodState()

    def write_state(self, state: MongodState) -> None:
        """Replace the state in one step, so that no reader sees half of it."""
        self._replace(self._state_file, json.dumps(asdict(state)))

    def secret(self, path: Path) -> str:
        """Return the secret in the file, which is made, and its mode mended, where needed (by the keeper only)."""
        try:
            path.chmod(0o600)
            if value := path.read_text().strip():
                return value
        except FileNotFoundError:
            pass
        value = secrets.token_hex(32)  # hex: valid in a key file, and needs no quoting in a URI
        self._replace(path, value)
        return value

    def open_log(self) -> int:
        """Open the log for appending, a new one if the last has grown large; return its descriptor."""
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def complaint(self, since: int) -> str:
        """Return the most telling lines of the log after byte ``since``: the first error, else the last words."""
        with self.log.open("rb") as file:
            file.seek(since)
            lines = [line.strip() for line in file.read(LOG_LIMIT).decode(errors="replace").splitlines()]
        errors = [text for line in lines if (text := _error_in(line))]
        plain = [line for line in lines if line and not line.startswith("{")]
        return (errors[0] if errors else " ".join(plain[-2:]) or "it said nothing")[:500]

    @property
    def _state_file(self) -> Path:
        return self.root / "state.json"

    def _replace(self, path: Path, text: str) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.root, prefix=f".{path.name}-")  # mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def open_lock(path: Path) -> int:
    """Open a lock file, and make it where it is missing; the caller closes the descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def take_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Try to lock an open file; never waits."""
    import fcntl  # POSIX only, like the embedded mongod

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _error_in(line: str) -> str | None:
    """Return the message of a line of mongod's JSON log that reports an error."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.get("s") not in {"E", "F"}:
        return None
    error = entry.get("attr", {}).get("error", "")
    detail = error.get("errmsg", "") if isinstance(error, dict) else str(error)
    return f"{entry.get('msg', '')}: {detail}" if detail else str(entry.get("msg", ""))
