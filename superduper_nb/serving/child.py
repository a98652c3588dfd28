"""The process that holds the models: ``python -m superduper_nb.serving.child``, started by `serving.process`.

It serves one batch, or one part of a stream, at a time from the socket that is its standard input, and ends, whatever a
model is doing, when the process that started it does.
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
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final

from superduper_nb.errors import InvalidInputError, ModelError, SuperduperError
from superduper_nb.serving import wire
from superduper_nb.serving.codecs import Codecs
from superduper_nb.serving.forms import write_outputs
from superduper_nb.serving.shelf import Entry, Shelf, resident_bytes, whole
from superduper_nb.serving.streams import Streams
from superduper_nb.serving.values import PICKLED, Body, Form, Predicts

__all__: list[str] = []

_PR_SET_PDEATHSIG: Final = 1
_SWITCH_S: Final = 0.0002
"""Python's 5 ms are waited for at each operation of a model while another one is compiled beside it."""

Send = Callable[[object], None]


def main() -> None:
    """Serve until the socket closes."""
    requests, replies = _take_socket()
    threading.Thread(target=_end_with_parent, args=(requests.fileno(),), daemon=True).start()
    _let_the_kernel_help()
    sys.setswitchinterval(_SWITCH_S)
    sys.path[:] = wire.read(requests)  # before anything is unpickled that lives where only our parent looks
    hello: wire.Hello = wire.read(requests)
    preloading = threading.Thread(target=_preload, args=(hello.preload,), daemon=True)
    preloading.start()

    def send(message: object) -> None:
        replies.write(wire.pack(message))
        replies.flush()

    def load(database: str, model: str, version: int) -> tuple[Predicts, int]:
        if threading.current_thread() is threading.main_thread():  # else nobody waits for it
            send(wire.Loading())
        # Two threads that import parts of torch at a time wait for each other; Python then hands out half of it.
        preloading.join()
        return hello.load(database, model, version)

    send(wire.Ready())
    _Child(Shelf(load, hello.current, memory=hello.memory, beside=True), Codecs(hello.types), send).serve(requests)


class _Child:
    def __init__(self, shelf: Shelf, codecs: Codecs, send: Send) -> None:
        self._shelf, self._codecs, self._send = shelf, codecs, send
        self._streams = Streams(self._get, codecs.encode)
        self._answers: dict[type, Callable[[Any], object]] = {
            wire.Run: self._run,
            wire.Open: self._open,
            wire.Advance: self._advance,
            wire.Unload: self._unload,
        }

    def serve(self, requests: BinaryIO) -> None:
        me = os.getpid()
        while True:
            message = wire.read(requests)
            if isinstance(message, wire.End):
                self._streams.end(message.stream)
                continue
            answer = self._answers[type(message)](message)
            if os.getpid() != me:  # a model forked, and the copy came back too: only one may answer
                os._exit(0)
            self._send(answer)

    def _get(self, database: str, model: str, version: int | None) -> Entry:
        before = self._shelf.models()
        try:
            return self._shelf.get(database, model, version)
        finally:
            if self._shelf.models() != before:
                self._send(self._loaded())

    def _applied(self, run: wire.Run, good: list[Body]) -> tuple[Entry, list[list[Any] | ModelError]]:
        entry = self._get(run.database, run.model, good[0].version if good else run.version)
        return entry, self._shelf.apply(entry, [body.inputs for body in good])

    def _loaded(self) -> wire.Loaded:
        return wire.Loaded(self._shelf.models(), resident_bytes())

    def _unload(self, message: wire.Unload) -> wire.Loaded:
        self._shelf.unload(message.database, message.model)
        return self._loaded()

    def _run(self, run: wire.Run) -> wire.Answers:
        bodies = [self._body(run.database, asked, run.version) for asked in run.requests]
        good = [body for body in bodies if isinstance(body, Body)]
        try:
            entry, outputs = self._applied(run, good)
        except (Exception, SystemExit) as error:
            return wire.Answers([wire.Failure.of(error)] * len(run.requests))
        results = iter(outputs)
        answers = [
            self._written(run.database, asked.form, body, next(results)) if isinstance(body, Body) else body
            for asked, body in zip(run.requests, bodies, strict=True)
        ]
        sizes = [len(body.inputs) if isinstance(body, Body) else 0 for body in bodies]
        ahead = self._shelf.may_go_ahead(entry)
        return wire.Answers(answers, sizes, entry.about.version, _batch_size(entry.predictor), ahead)

    def _body(self, database: str, asked: wire.Asked, version: int | None) -> Body | wire.Failure:
        """Return what a request asks for, its inputs as objects."""
        try:
            body = asked.read(asked.payload) if asked.read else Body(pickle.loads(asked.payload), version, asked.errors)
            return body if asked.form in PICKLED else replace(body, inputs=self._codecs.decode(database, body.inputs))
        except SuperduperError as error:
            return wire.Failure.of(error)
        except Exception as error:
            return wire.Failure.of(
                InvalidInputError(f"The inputs can't be read in the model's process: {error}"[:1000])
            )

    def _written(self, database: str, form: Form, body: Body, result: list[Any] | ModelError) -> bytes | wire.Failure:
        try:
            outputs = write_outputs(form, whole(result, body.errors), partial(self._codecs.encode, database))
            return outputs if isinstance(outputs, bytes) else pickle.dumps(outputs, protocol=5)
        except ModelError as error:
            return wire.Failure.of(error)
        except Exception as error:
            return wire.Failure.of(ModelError(f"The model's output can't be sent to the server: {error}"[:1000]))

    def _open(self, message: wire.Open) -> wire.Part | wire.Failure:
        body = self._body(message.database, message.request, message.version)
        if isinstance(body, wire.Failure):
            return body
        try:
            name = (message.database, message.model, body.version)
            self._streams.open(message.stream, name, body.inputs[0], message.request.form)
        except (Exception, SystemExit) as error:
            return wire.Failure.of(error)
        return self._advance(message)

    def _advance(self, message: wire.Open | wire.Advance) -> wire.Part | wire.Failure:
        try:
            part = self._streams.advance(message.stream)
            return wire.Part(pickle.dumps(part.pieces, protocol=5), part.done, part.version)
        except (Exception, SystemExit) as error:
            self._streams.end(message.stream)
            return wire.Failure.of(error)


def _batch_size(predictor: Predicts) -> int | None:
    size = getattr(predictor, "batch_size", None)
    return size if isinstance(size, int) and size > 0 else None


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
