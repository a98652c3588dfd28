"""Documents that are decoded when they are looked at: of a thousand pictures most never are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

__all__ = ["Decoded"]

Documents = list[dict[str, Any]]


class Decoded(Sequence[dict[str, Any]]):
    """Stored documents, each decoded once, when it is first asked for.

    Parameters
    ----------
    stored : iterable of dict
        As they came from MongoDB.
    decode : callable
        Turns a list of them into the user's.
    """

    def __init__(self, stored: Iterable[dict[str, Any]], decode: Callable[[Documents], Documents]) -> None:
        self._documents, self._decode = list(stored), decode
        self._done = [False] * len(self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Documents:
        wanted = range(len(self))[index]
        if isinstance(wanted, range):
            return [self[each] for each in wanted]
        if not self._done[wanted]:
            self._documents[wanted : wanted + 1] = self._decode([self._documents[wanted]])
            self._done[wanted] = True
        return self._documents[wanted]
