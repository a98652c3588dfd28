"""The process that holds the models: ``python -m superduper_nb.serving.child``, started by `serving.process`.

It serves one batch at a time from the socket that is its standard input, and ends, whatever a model is doing, when the
process that started it does.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final

from superduper_nb.serving import wire
from superduper_nb.serving.shelf import Shelf, apply, resident_bytes
from superduper_nb.serving.values import Predicts

__all__: list[str] = []

_PR_SET_PDEATHSIG: Final = 1

Send = Callable[[object], None]


def main() -> None:
    """Serve until the socket closes."""
    requests, replies = _take_socket()
    threading.Thread(target=_end_with_parent, args=(requests.fileno(),), daemon=True).start()
    _let_the_kernel_help()
    sys.path[:] = wire.read(requests)  # before anything is unpickled that lives where only our parent looks
    hello: wire.Hello = wire.read(requests)
    threading.Thread(target=_preload, args=(hello.preload,), daemon=True).start()

    def send(message: object) -> None:
        replies.write(wire.pack(message))
        replies.flush()

    send(wire.Ready())
    _serve(requests, send, Shelf(hello.load, hello.current, memory=hello.memory))


def _serve(requests: BinaryIO, send: Send, shelf: Shelf) -> None:
    me = os.getpid()
    while True:
        message = wire.read(requests)
        if isinstance(message, wire.Unload):
            shelf.unload(message.database, message.model)
            send(wire.Loaded(shelf.models(), resident_bytes()))
            continue
        answers = _run(message, shelf, send)
        if os.getpid() != me:  # a model forked, and the copy came back too: only one may answer
            os._exit(0)
        send(answers)


def _run(run: wire.Run, shelf: Shelf, send: Send) -> wire.Answers:
    before = shelf.models()
    try:
        entry = shelf.get(run.database, run.model, run.version, loading=lambda: send(wire.Loading()))
    except (Exception, SystemExit) as error:
        return wire.Answers([wire.Failure.of(error)] * len(run.requests))
    finally:
        if shelf.models() != before:
            send(wire.Loaded(shelf.models(), resident_bytes()))
    inputs = [_unpickled(request) for request in run.requests]
    results = iter(apply(entry.predictor, [xs for xs in inputs if isinstance(xs, list)]))
    answers = [xs if isinstance(xs, wire.Failure) else _pickled(next(results)) for xs in inputs]
    return wire.Answers(answers, entry.about.version, _batch_size(entry.predictor))


def _batch_size(predictor: Predicts) -> int | None:
    size = getattr(predictor, "batch_size", None)
    return size if isinstance(size, int) and size > 0 else None


def _unpickled(request: bytes) -> list[Any] | wire.Failure:
    try:
        inputs: list[Any] = pickle.loads(request)
    except Exception as error:
        return wire.Failure("InvalidInputError", f"The inputs can't be read in the model's process: {error}"[:1000])
    return inputs


def _pickled(result: object) -> bytes | wire.Failure:
    if isinstance(result, Exception):
        return wire.Failure.of(result)
    try:
        return pickle.dumps(result, protocol=5)
    except Exception as error:
        return wire.Failure("ModelError", f"The model's output can't be sent to the server: {error}"[:1000])


def _take_socket() -> tuple[BinaryIO, BinaryIO]:
    """Take the socket off standard input and output, so that a model that reads or prints does not touch it."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _end_with_parent(socket: int) -> None:
    poller = select.poll()
    poller.register(socket, 0)  # a hang-up is always reported; data is left to the main thread
    poller.poll()
    os.killpg(0, signal.SIGKILL)  # with what the models started: the group is ours alone


def _let_the_kernel_help() -> None:
    if sys.platform != "linux":
        return
    # Our thread above waits for as long as a model's native code holds the interpreter; the kernel does not.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):  # when memory ends, better this process than the notebook server
        Path("/proc/self/oom_score_adj").write_text("500")


def _preload(names: tuple[str, ...]) -> None:
    for name in names:
        with suppress(ImportError):
            import_module(name)


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):
        main()
    os._exit(0)  # a model's threads must not keep the process
