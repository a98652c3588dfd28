"""What the server and its child process say to each other: pickles behind a length, on a socket only they hold.

Inputs and outputs travel as pickles inside: one that can't be read fails its own request, not the conversation.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from superduper_nb import errors
from superduper_nb.serving.values import Body, Current, Errors, Form, Load, LoadedModel, Types

__all__ = [
    "Advance",
    "Answers",
    "Asked",
    "End",
    "Failure",
    "Hello",
    "Loaded",
    "Loading",
    "Open",
    "Part",
    "Ready",
    "Run",
    "Unload",
    "pack",
    "read",
    "receive",
    "unpack",
]

_LENGTH: Final = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Hello:
    """To the child, first: how to work."""

    load: Load
    current: Current
    types: Types
    memory: int
    preload: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """From the child, once: it can run models."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a batch: a pickled list of inputs, or what `read` reads, and how it is to be answered."""

    payload: bytes
    form: Form = "objects"
    errors: Errors = "raise"
    read: Callable[[bytes], Body] | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """To the child: apply a model to these requests; it answers `Answers`."""

    database: str
    model: str
    version: int | None
    requests: list[Asked]


@dataclass(frozen=True, slots=True)
class Open:
    """To the child: begin to stream a model's output for one input; it answers a `Part` or a `Failure`."""

    stream: int
    database: str
    model: str
    version: int | None
    request: Asked


@dataclass(frozen=True, slots=True)
class Advance:
    """To the child: go on with a stream; it answers a `Part` or a `Failure`, after which the stream is gone."""

    stream: int


@dataclass(frozen=True, slots=True)
class End:
    """To the child: drop a stream; nothing is answered."""

    stream: int


@dataclass(frozen=True, slots=True)
class Unload:
    """To the child: drop a model; it answers `Loaded`."""

    database: str
    model: str


@dataclass(frozen=True, slots=True)
class Loading:
    """From the child, before it loads a model, which may take longer than a batch."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """From the child, after it loaded or dropped one: all that it holds, and the memory of the process."""

    models: list[LoadedModel]
    rss: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way: the name of a class of `superduper_nb.errors`, and the message."""

    name: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception; one that is not ours becomes a `ModelError`."""
        name = type(error).__name__
        if name in errors.__all__:
            return cls(name, str(error))
        return cls("ModelError", f"{name}: {error}"[:1000])

    def error(self) -> errors.SuperduperError:
        """Build the exception."""
        made: errors.SuperduperError = getattr(errors, self.name)(self.message)
        return made


@dataclass(frozen=True, slots=True)
class Answers:
    """From the child: one answer for each request of the batch (a pickled list of outputs, or why there is none).

    Attributes
    ----------
    ahead : bool
        The next batch may name this version, and be sent once more where that turns out not to be the newest.
    """

    answers: list[bytes | Failure]
    inputs: list[int] = field(default_factory=list)
    version: int | None = None
    batch_size: int | None = None
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """From the child: pickled pieces of a stream, and whether it has ended."""

    pieces: bytes
    done: bool
    version: int


def pack(message: object) -> bytes:
    """Return a message as it goes over the socket."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)) + body


def read(stream: BinaryIO) -> Any:
    """Wait for a message (in the child)."""
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    return pickle.loads(_exactly(stream, length))


async def receive(stream: asyncio.StreamReader) -> bytes:
    """Wait for a message (in the server); return it for `unpack`."""
    (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
    return await stream.readexactly(length)


def unpack(message: bytes) -> Any:
    """Return what was received."""
    return pickle.loads(message)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the other side closed the socket")
    return data
