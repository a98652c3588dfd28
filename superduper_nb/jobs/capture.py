"""What model code prints and logs while a job runs, line by line, within bounds."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["Lines", "capture"]

_LINE_CHARS: Final = 2000
_WAITING: Final = 1000
_NOT_THE_MODELS: Final = ("superduper_nb", "distributed", "dask", "pymongo", "asyncio", "tornado", "torchao")
"""Loggers that tell nothing of a model. torchao, imported by transformers where it can, tells of kernels not there."""

_lock = threading.Lock()
_active: dict[int, Lines] = {}
_stood_for: list[Any] = []


class Lines:
    """Lines that wait to be stored. What comes while a thousand are waiting is counted, not kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        self._begun: dict[str, str] = {}
        self._dropped = 0

    def write(self, stream: str, text: str) -> None:
        """Take text as it is printed, whole lines or parts of some."""
        with self._lock:
            *whole, rest = (self._begun.get(stream, "") + text).split("\n")
            self._begun[stream] = rest[-_LINE_CHARS:].rpartition("\r")[2] if rest else ""
            room = _WAITING - len(self._waiting)
            self._dropped += max(0, len(whole) - room)
            self._waiting += [_line(stream, line) for line in whole[:room]]

    def take(self, *, end: bool = False) -> list[dict[str, Any]]:
        """Return the lines that wait, as ``{"time", "text", "stream"}``; at the end also those without line end."""
        with self._lock:
            taken, self._waiting = self._waiting, []
            if self._dropped:
                taken.append(_line("note", f"… {self._dropped} lines left out: they came faster than they are kept"))
                self._dropped = 0
            if end:
                taken += [_line(stream, text) for stream, text in self._begun.items() if text]
                self._begun = {}
            return taken


def _line(stream: str, text: str) -> dict[str, Any]:
    # Of a progress bar, which goes back over its line, the last state counts.
    shown = text.rstrip("\r").rpartition("\r")[2]
    cut = shown if len(shown) <= _LINE_CHARS else shown[:_LINE_CHARS] + " …"
    clean = cut.encode("utf-8", "replace").decode()
    return {"time": datetime.now(UTC), "text": clean, "stream": stream}


@contextmanager
def capture(lines: Lines, *, tee: bool) -> Iterator[None]:
    """Take what this thread prints and logs, and what threads of no capture do; with `tee`, print it as well.

    Threads that a model starts belong to no capture: their lines go to the only one there is, else past all.
    """
    handler, me = _Handler(lines), threading.get_ident()
    with _lock:
        if not _active:
            _stood_for[:] = [sys.stdout, sys.stderr]
            sys.stdout, sys.stderr = _Tee("stdout", sys.stdout, tee), _Tee("stderr", sys.stderr, tee)
        _active[me] = lines
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with _lock:
            del _active[me]
            if not _active and isinstance(sys.stdout, _Tee):
                sys.stdout, sys.stderr = _stood_for


def _current() -> Lines | None:
    with _lock:
        lines = _active.get(threading.get_ident())
        return next(iter(_active.values())) if lines is None and len(_active) == 1 else lines


class _Tee(io.TextIOBase):
    """Stands for a standard stream."""

    def __init__(self, name: str, original: Any, tee: bool) -> None:
        self._name, self._original, self._tee = name, original, tee

    def write(self, text: str) -> int:
        lines = _current()
        if lines is not None:
            lines.write(self._name, text)
        if lines is None or self._tee:
            self._original.write(text)
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def isatty(self) -> bool:
        return bool(self._original.isatty())

    def fileno(self) -> int:
        return int(self._original.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._original.encoding)


class _Handler(logging.Handler):
    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] not in _NOT_THE_MODELS and _current() is self._lines:
            self._lines.write("log", f"{record.levelname} {record.name}: {record.getMessage()}\n")
