"""What a reading sub-command refuses: JavaScript in the server, and stages that write or read the server's own state.

The Python client does not refuse them; a cell that says ``find`` only ever reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from superduper_nb.errors import InvalidInputError

__all__ = ["check_reading"]

_SCRIPTS: Final = frozenset({"$where", "$function", "$accumulator"})
_WRITES: Final = frozenset({"$out", "$merge"})
_SERVER: Final = frozenset({"$changeStream", "$collStats", "$currentOp", "$listLocalSessions", "$listSessions"})
DEEPEST: Final = 100


def check_reading(value: Any) -> None:
    """Raise where `value`, at any depth, would do more than read documents.

    Raises
    ------
    InvalidInputError
        It holds an operator that is refused, or contains itself.
    """
    level = [value]
    for _ in range(DEEPEST + 1):
        for part in level:
            _check(part)
        level = [inner for part in level for inner in _inner(part)]
        if not level:
            return
    raise InvalidInputError(
        f"the body is nested deeper than the {DEEPEST} levels that MongoDB allows, or contains itself."
    )


def _inner(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _check(value: Any) -> None:
    if type(value).__name__ == "Code" and type(value).__module__ == "bson.code":
        raise InvalidInputError("JavaScript (bson.Code) is refused: MongoDB would run it in the server.")
    if not isinstance(value, Mapping):
        return
    for key in value:
        if key in _SCRIPTS:
            raise InvalidInputError(f"{key} is refused: it runs JavaScript in the server. Use operators such as $expr.")
        if key in _WRITES:
            raise InvalidInputError(f"{key} is refused here: this only reads. To write, use the collection in Python.")
        if key in _SERVER:
            raise InvalidInputError(f"{key} is refused here: it reads the server's state, not documents.")
