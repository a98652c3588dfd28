"""The types that inputs and outputs over HTTP may have: the built-in ones, and those registered in a database."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from superduper_nb.documents.codec import Codec
from superduper_nb.documents.types import Type
from superduper_nb.errors import InvalidInputError
from superduper_nb.serving.values import Types

__all__ = ["Codecs", "over_http"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_FRESH_S: Final = 1.0


def over_http(types: Mapping[str, Type]) -> Codec:
    """Return a codec of these types without ``pickle``: nothing that is received is unpickled."""
    return Codec({id: type_ for id, type_ in types.items() if id != "pickle"})


class Codecs:
    """Codecs by database, made anew after a second, or at once where a type is not known. Not thread-safe.

    Parameters
    ----------
    types : callable
        See `superduper_nb.serving.values`.
    """

    def __init__(self, types: Types) -> None:
        self._types = types
        self._known: dict[str, Codec] = {}
        self._read_at: dict[str, float] = {}

    def decode(self, database: str, value: Any) -> Any:
        """Return stored values as objects; a URL in one is never fetched, so it is refused."""
        return self._use(database, lambda codec: codec.decode(value, strict=True))

    def encode(self, database: str, value: Any) -> Any:
        """Return objects as stored values."""
        return self._use(database, lambda codec: codec.encode(value))

    def _use(self, database: str, work: Callable[[Codec], T]) -> T:
        if time.monotonic() - self._read_at.get(database, 0.0) > _FRESH_S:
            return work(self._read(database))
        try:
            return work(self._known[database])
        except InvalidInputError:  # of a type that was registered just now?
            return work(self._read(database))

    def _read(self, database: str) -> Codec:
        try:
            self._known[database] = over_http(self._types(database))
        except Exception:
            if database not in self._known:
                raise
            log.warning("Can't ask for the types of %s: those known go on", database, exc_info=True)
        self._read_at[database] = time.monotonic()
        return self._known[database]
