"""Outputs that a model yields piece by piece, in the process that runs it.

A stream advances only when it is asked to, and gives the process back after a moment: a slow reader holds nothing up,
other requests run between its parts, and one that nobody asks for any more costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from superduper_nb.errors import ModelError, NotFoundError, OverloadedError, SuperduperError
from superduper_nb.models import ItemError
from superduper_nb.serving.forms import write_piece
from superduper_nb.serving.shelf import Entry, whole
from superduper_nb.serving.values import Form, Predicts, Slice

__all__ = ["Streams", "pieces_of"]

_TURN_S: Final = 0.02
_OPEN: Final = 64

Pieces = Generator[Any, None, None]


@dataclass(frozen=True, slots=True)
class _Open:
    pieces: Pieces
    write: Callable[[Any], Any]
    version: int


class Streams:
    """The streams that are open in this process. Not thread-safe.

    Parameters
    ----------
    get : callable
        Returns a model, given database, name and version.
    encode : callable
        Makes stored values of objects, given the database.
    """

    def __init__(self, get: Callable[[str, str, int | None], Entry], encode: Callable[[str, Any], Any]) -> None:
        self._get, self._encode = get, encode
        self._open: dict[int, _Open] = {}

    def open(self, id: int, name: tuple[str, str, int | None], x: Any, form: Form) -> None:
        """Prepare a stream of a model's output for one input; nothing is computed yet."""
        if len(self._open) >= _OPEN:
            raise OverloadedError(f"{_OPEN} streams are open already: try again when one has ended.")
        entry = self._get(*name)
        write = partial(write_piece, form, encode=partial(self._encode, name[0]))
        self._open[id] = _Open(pieces_of(entry.predictor, x), write, entry.about.version)

    def advance(self, id: int) -> Slice:
        """Return the next piece, with those that come within a moment after it.

        Raises
        ------
        ModelError
            The model raised; what it had yielded until then was returned before.
        """
        if id not in self._open:
            raise NotFoundError("The stream has ended.")
        stream, pieces, end = self._open[id], list[Any](), time.monotonic() + _TURN_S
        try:
            for piece in stream.pieces:
                pieces.append(stream.write(piece))
                if time.monotonic() >= end:
                    return Slice(pieces, False, stream.version)
        except ModelError as error:
            if not pieces:
                raise
            self._open[id] = replace(stream, pieces=_raising(error))
            return Slice(pieces, False, stream.version)
        del self._open[id]
        return Slice(pieces, True, stream.version)

    def end(self, id: int) -> None:
        """Drop a stream; the model's generator is closed. Harmless where there is none."""
        stream = self._open.pop(id, None)
        with suppress(Exception, SystemExit):
            if stream is not None:
                stream.pieces.close()


def _raising(error: ModelError) -> Pieces:
    yield from ()
    raise error


def pieces_of(predictor: Predicts, x: Any) -> Pieces:
    """Return what a model yields for one input; its output, where it yields nothing."""
    try:
        stream = getattr(predictor, "stream", None)
        yield from stream(x) if stream else whole(predictor.predict_many([x]), "raise")
    except SuperduperError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"The model failed: {ItemError.of(error)}") from error
