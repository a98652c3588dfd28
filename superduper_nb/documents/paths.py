"""Dotted paths: ``a.b`` is field ``b`` of sub-document ``a``; ``a.0`` is the first item of list ``a``, as in MongoDB.

Documents are read with Python, never with a path that MongoDB would interpret, so a field that is really called
``"a.b"`` is no danger: no path names it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from superduper_nb.errors import InvalidInputError

__all__ = ["BASE", "OUTPUTS", "check_path", "get_path", "output_path", "set_path", "token_path"]

BASE: Final = "_base"
"""The key that stands for the whole document."""
OUTPUTS: Final = "_outputs"
"""The field that holds what models made of a document."""


def check_path(path: str) -> str:
    """Return the path, if it names exactly one field in MongoDB and here.

    Raises
    ------
    InvalidInputError
        It is empty, or a part of it is empty, starts with ``$`` or holds a NUL.
    """
    if not isinstance(path, str):
        raise InvalidInputError(f"A key is a string such as 'text' or 'meta.title', not {type(path).__name__}.")
    if not all(_addressable(part) for part in path.split(".")):
        raise InvalidInputError(
            f"{path!r} is not a key: field names joined by dots, none empty, starting with '$' or holding a NUL."
        )
    return path


def _addressable(part: str) -> bool:
    return bool(part) and not part.startswith("$") and "\0" not in part


def join_path(parts: tuple[str | int, ...]) -> str | None:
    """Return the dotted path of these parts; None if MongoDB could not find that place by a path."""
    names = [str(part) for part in parts]
    return ".".join(names) if all(_addressable(name) and "." not in name for name in names) else None


def get_path(document: Any, path: str, default: Any = None) -> Any:
    """Return the value at a path, or ``default`` where a step of it is missing.

    Examples
    --------
    >>> get_path({"meta": {"titles": ["a", "b"]}}, "meta.titles.1")
    'b'
    >>> get_path({"meta": None}, "meta.titles", default="?")
    '?'
    """
    if path == BASE:
        return document
    value = document
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return default
    return value


def set_path(document: MutableMapping[str, Any], path: str, value: Any) -> None:
    """Put a value at a path of this very document, making the sub-documents that are missing on the way.

    Raises
    ------
    InvalidInputError
        Something that is neither a sub-document nor a long enough list stands in the way.
    """
    *parents, last = check_path(path).split(".")
    place: Any = document
    for part in parents:
        is_document = isinstance(place, MutableMapping)
        place = place.setdefault(part, {}) if is_document else place[_index(place, part, path)]
    if isinstance(place, MutableMapping):
        place[last] = value
    else:
        place[_index(place, last, path)] = value


def _index(place: Any, part: str, path: str) -> int:
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        return int(part)
    raise InvalidInputError(f"Can't set {path!r}: {part!r} would be a field of a value of type {type(place).__name__}.")


def output_path(key: str, model: str) -> str:
    """Return where the outputs of a model for a key are: ``_outputs.<key>.<model>`` (dots in the key nest)."""
    return f"{OUTPUTS}.{check_path(key)}.{model}"


def token_path(model: str, key: str) -> str:
    """Return where a document notes what its output of `model` on `key` was computed from.

    Dots of the key become slashes: one flat map, in which no key can be the parent of another.
    """
    return f"_sddb.outputs.{model}/{key.replace('.', '/')}"
