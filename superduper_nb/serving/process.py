"""A child process with models in it, as the server sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from superduper_nb.cluster.dask_host import worker_environment
from superduper_nb.serving import wire

__all__ = ["Here", "ModelProcess", "Place", "Process", "ProcessEndedError", "kill_group"]

_START_S: Final = 60
_BUFFER: Final = 1 << 20
_HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""The weights of a model on pages of 2 MB: its run begins with an empty address cache, and is 2 % shorter so. Where a
virtual machine gives free memory back, loading takes longer for it, once: 0.9 s for each GB."""


class ProcessEndedError(Exception):
    """The process is gone; the message says how it ended."""


class ModelProcess:
    """A running child. Belongs to one event loop; made by `start`."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()

        def reap() -> None:
            process.wait()
            kill_group(process.pid)
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._note_end)

        # Its end, not the socket's, is what counts: processes that a model forked may hold the socket longer.
        self._reaper = threading.Thread(target=reap, name=f"superduper-model-process-{process.pid}", daemon=True)
        self._reaper.start()

    @classmethod
    async def start(cls, hello: bytes) -> ModelProcess:
        """Start a child, tell it `hello` (a packed `wire.Hello`) and wait until it can run models.

        Raises
        ------
        ProcessEndedError
            It ended first, or took longer than a minute.
        OSError
            The system starts no process.
        """
        process, ours = _spawn()
        child = cls(process, *await asyncio.open_connection(sock=ours, limit=_BUFFER))
        try:
            async with asyncio.timeout(_START_S):
                await child.send(wire.pack([entry or str(Path.cwd()) for entry in sys.path]) + hello)
                await child.receive()
        except (TimeoutError, ProcessEndedError) as error:
            raise ProcessEndedError(await child.end()) from error
        except BaseException:
            await child.end()
            raise
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return not self._ended.is_set() and self._process.returncode is None

    async def send(self, packed: bytes) -> None:
        """Send a packed message; raises `ProcessEndedError`."""
        try:
            self._writer.write(packed)
            await self._writer.drain()
        except ConnectionError as error:
            raise ProcessEndedError("it closed the socket") from error

    async def receive(self) -> Any:
        """Wait for a message; raises `ProcessEndedError`."""
        return wire.unpack(await self.receive_packed())

    async def receive_packed(self) -> bytes:
        """Wait for a message and return it as it came; raises `ProcessEndedError`."""
        try:
            return await wire.receive(self._reader)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ProcessEndedError("it closed the socket") from error

    async def end(self) -> str:
        """Kill it, with every process its models started; wait until it is gone and return how it ended."""
        if self.alive:
            kill_group(self.pid)
        await self._ended.wait()
        self._reaper.join()
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
        code = self._process.returncode
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def _note_end(self) -> None:
        self._ended.set()
        self._writer.transport.abort()


class Process(Protocol):
    """What a replica needs of a process that runs models, wherever that is; see `ModelProcess`."""

    @property
    def pid(self) -> int:
        """Its process id, where it runs."""

    @property
    def alive(self) -> bool:
        """It is not known to have ended."""

    async def send(self, packed: bytes, /) -> None:
        """Send a packed message."""

    async def receive(self) -> Any:
        """Wait for a message."""

    async def end(self) -> str:
        """Kill it; return how it ended."""


class Place(Protocol):
    """Where processes that run models are started."""

    where: str

    async def start(self, hello: bytes, /) -> Process:
        """Start one; raises `ProcessEndedError`."""


class Here:
    """Processes of this machine."""

    where = "this machine"

    async def start(self, hello: bytes) -> ModelProcess:
        """Start a process; see `ModelProcess.start`."""
        return await ModelProcess.start(hello)


def _spawn() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            # By the loop's thread: the kernel ends a child with the thread that made it (PR_SET_PDEATHSIG).
            process = subprocess.Popen(
                [sys.executable, "-m", "superduper_nb.serving.child"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={**_HUGE_PAGES, **os.environ, **worker_environment(1), "TOKENIZERS_PARALLELISM": "false"},
                start_new_session=True,  # Ctrl-C in a terminal is for the server, which then closes us in order
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def kill_group(pid: int) -> None:
    """Kill a process with all that it started; harmless where it is gone."""
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, where only zombies are left in it
        os.killpg(pid, signal.SIGKILL)
