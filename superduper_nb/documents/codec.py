"""Between what users hold and what MongoDB stores.

Runs on every document written and read, so the common case comes first: a document of plain BSON values is recognised
by one quick look at the classes of its values (0.3-0.6 µs for ten fields), and returned as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from copy import copy
from functools import partial
from typing import Any

from bson.binary import VECTOR_SUBTYPE, Binary
from bson.errors import InvalidDocument

from superduper_nb.documents.arrays import Array, Vector
from superduper_nb.documents.content import CONTENT, Failed, Pending, is_content, settled
from superduper_nb.documents.download_policy import check_form
from superduper_nb.documents.paths import join_path
from superduper_nb.documents.plain import READ_LEAVES, WRITE_LEAVES, is_plain
from superduper_nb.documents.types import Type, classes_of
from superduper_nb.errors import InvalidInputError, SuperduperError, did_you_mean

__all__ = ["Codec", "EncodeError"]

_Path = tuple[str | int, ...]
_UPDATE: _Path = (-1,)
"""How a path in an update begins."""
_Encoder = Callable[[Any, _Path], Any]


class EncodeError(InvalidInputError, InvalidDocument):
    """A value can't be stored (pymongo's error for this, too, so that code written for pymongo catches it)."""

    def __init__(self, message: str, document: Any = None) -> None:
        super().__init__(message)
        self._document = document


class Codec:
    """Turns objects inside documents into stored values, and back.

    Parameters
    ----------
    types : mapping of str to Type
        The types known, by name. Of two that claim the same class the later one wins. A codec does not follow later
        changes of the mapping: make a new one, they are cheap.
    leave : callable, optional
        ``leave(cls) -> bool``: says which unknown classes to leave to pymongo, whose ``TypeRegistry`` knows them.

    Examples
    --------
    >>> import numpy as np
    >>> from superduper_nb.documents import builtin_types
    >>> codec = Codec(builtin_types())
    >>> codec.decode(codec.encode({"scores": [np.eye(2), "a"]}))
    {'scores': [array([[1., 0.],
           [0., 1.]]), 'a']}
    """

    def __init__(self, types: Mapping[str, Type], *, leave: Callable[[type], bool] | None = None) -> None:
        self._types = dict(types)
        self._leave = leave
        self._ids = {entry: id for id, type_ in self._types.items() for entry in classes_of(id, type_)}
        self._vector = next((t for t in self._types.values() if isinstance(t, Vector)), Vector())
        self._known: dict[type, _Encoder] = {
            dict: self._encode_mapping,
            list: self._encode_sequence,
            tuple: self._encode_sequence,
            Pending: _stored,
            Failed: _stored,
            **dict.fromkeys(WRITE_LEAVES, _as_is),
        }
        # Types for classes that BSON knows (a dict, a subclass of str) go before BSON's way.
        self._known |= {c: partial(self._encode_typed, id) for c, id in self._ids.items() if isinstance(c, type)}
        self._encoders = dict(self._known)  # and those chosen since, by class
        self._plain_writes = WRITE_LEAVES - self._ids.keys()

    @property
    def type_ids(self) -> list[str]:
        """The names of the types it knows."""
        return sorted(self._types)

    # Writing

    def encode(self, value: Any, *, update: bool = False) -> Any:
        """Return a document, or any value in one, as MongoDB stores it. The value itself is not changed.

        Where there is nothing to do, the very same object comes back.

        Parameters
        ----------
        update : bool, default False
            It is an update: operators, with fields that may be dotted paths.

        Raises
        ------
        EncodeError
            No type knows how to store a value (or its type refused it): names where it is and which types there are.
        """
        try:
            return value if is_plain((value,), self._plain_writes) else self._encode(value, _UPDATE if update else ())
        except RecursionError:
            raise EncodeError("This value is nested too deeply to be stored, or contains itself.") from None

    def plain(self, value: Any) -> bool:
        """Say, at a quick look, whether a value holds nothing but what MongoDB stores itself, so also no content."""
        try:
            return is_plain((value,), self._plain_writes)
        except RecursionError:  # `encode` says what is wrong
            return False

    def flat(self, document: Mapping[str, Any]) -> bool:
        """Say whether each value of a document is one that MongoDB stores itself; nothing is nested (0.2 µs)."""
        return self._plain_writes.issuperset(map(type, document.values()))

    def encode_as(self, type_id: str, value: Any) -> Any:
        """Return a value as MongoDB stores it, encoded by the type of this name."""
        type_ = self._type(type_id)
        try:
            data = type_.encode(value)
        except (SuperduperError, RecursionError):
            raise
        except Exception as error:
            raise EncodeError(f"Type {type_id!r} can't encode this {_name(type(value))}: {_said(error)}") from error
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise EncodeError(f"Type {type_id!r} must encode to bytes; it made {_name(type(data))}.")
        if isinstance(type_, Vector):
            return Binary(data, VECTOR_SUBTYPE)
        return {CONTENT: {"type": type_id, "bytes": bytes(data)}}

    def _encode(self, value: Any, path: _Path) -> Any:
        return self._encoder(type(value))(value, path)

    def _encoder(self, cls: type) -> _Encoder:
        found = self._encoders.get(cls)
        if found is None:
            found = self._encoders[cls] = self._find_encoder(cls)
        return found

    def _find_encoder(self, cls: type) -> _Encoder:
        """Choose how to write a class that was not met before: the nearest base that is known decides."""
        for base in cls.__mro__[:-1]:
            name = _name(base)
            if (id := self._ids.get(name)) is not None:
                return partial(self._encode_typed, id)
            if name == "numpy.generic":
                return self._encode_scalar
            if base in self._known:
                return self._known[base]
        if self._leave is not None and self._leave(cls):
            return _as_is
        return self._encode_mapping if issubclass(cls, Mapping) else self._refuse

    def _encode_mapping(self, value: Mapping[str, Any], path: _Path) -> Any:
        if CONTENT in value and is_content(value):
            return self._check_content(value, path)
        changed = {}
        for key, item in value.items():
            new = self._encode(item, (*path, key))
            if new is not item:
                changed[key] = new
        return {**value, **changed} if changed else value

    def _encode_sequence(self, value: Iterable[Any], path: _Path) -> Any:
        new = [self._encode(item, (*path, index)) for index, item in enumerate(value)]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new

    def _encode_typed(self, id: str, value: Any, path: _Path) -> Any:
        try:
            return self.encode_as(self._as_vector(id, value), value)
        except SuperduperError as error:
            raise EncodeError(f"{_place(path)}: {error}") from error

    def _as_vector(self, id: str, value: Any) -> str:
        """Return ``vector`` for an array that is one (every driver, and Atlas, reads those); else the name given."""
        if isinstance(self._types[id], Array) and Vector.fits(value):
            return next((name for name, type_ in self._types.items() if type_ is self._vector), id)
        return id

    def _encode_scalar(self, value: Any, path: _Path) -> Any:
        kind = value.dtype.kind
        plain = value.astype("datetime64[us]").item() if kind == "M" else value.item()
        if kind == "M" and isinstance(plain, int):  # beyond what datetime can say
            return self._refuse(value, path)
        if kind in "biufM" and type(plain) in WRITE_LEAVES:
            return plain
        return self._refuse(value, path)

    def _check_content(self, value: Mapping[str, Any], path: _Path) -> Any:
        content = value[CONTENT]
        try:
            self._type(content.get("type", "bytes"))
            if not {"bytes", "error"} & content.keys():
                check_form(content["url"])
        except SuperduperError as error:
            raise EncodeError(f"{_place(path)}: {error}") from None
        if "bytes" not in content and join_path(_field(path)) is None:
            raise EncodeError(
                f"{_place(path)}: content to be fetched can't be below a field whose name is empty, holds a dot or "
                "starts with '$'."
            )
        return value

    def _refuse(self, value: Any, path: _Path) -> Any:
        raise EncodeError(
            f"{_place(path)}: no type stores a value of class {_name(type(value))}. "
            f"Known types: {', '.join(map(repr, self._types))}. Register your own with create_type.",
            value,
        )

    def _type(self, id: Any) -> Type:
        found = self._types.get(id) if isinstance(id, str) else None
        if found is None:
            raise InvalidInputError(f"There is no type {id!r}.{did_you_mean(str(id), self._types)}")
        return found

    # Reading

    def decode(self, value: Any, *, strict: bool = False) -> Any:
        """Return a stored document, or any value in one, with the objects it stands for.

        The value itself is not changed; where there is nothing to do, the very same object comes back.

        Parameters
        ----------
        strict : bool, default False
            Raise where content is not there or can't be decoded, instead of putting a Pending or Failed in its place.
        """
        return value if is_plain((value,), READ_LEAVES) else self._decode(value, strict)

    def _decode(self, value: Any, strict: bool) -> Any:
        cls = type(value)
        if cls in READ_LEAVES:
            return value
        if cls is Binary:
            return self._decode_binary(value)
        if cls is list:
            return self._decode_list(value, strict)
        if cls is dict or isinstance(value, MutableMapping):  # the latter takes several times as long
            return self._decode_mapping(value, strict)
        return value

    def _decode_mapping(self, value: MutableMapping[str, Any], strict: bool) -> Any:
        if CONTENT in value and is_content(value):
            return self._decode_content(value[CONTENT], strict)
        changed = {}
        for key, item in value.items():
            if type(item) in READ_LEAVES:  # most are: without a call for each
                continue
            new = self._decode(item, strict)
            if new is not item:
                changed[key] = new
        if not changed:
            return value
        if type(value) is dict:
            return {**value, **changed}
        result = copy(value)  # of the same class: the user asked for it
        result.update(changed)
        return result

    def _decode_list(self, value: list[Any], strict: bool) -> list[Any]:
        new = [self._decode(item, strict) for item in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new

    def _decode_binary(self, value: Binary) -> Any:
        if value.subtype != VECTOR_SUBTYPE:
            return value
        try:
            return self._vector.decode(value)
        except InvalidInputError:  # of another number type, or not ours
            return value

    def _decode_content(self, content: Mapping[str, Any], strict: bool) -> Any:
        data, url, failure = settled(content, "bytes"), content.get("url"), settled(content, "error")
        if not isinstance(url, str):
            url = None
        if data is not None:
            try:
                return self._type(content.get("type", "bytes")).decode(data)
            except Exception as error:
                if strict:
                    raise _decode_error(content, error) from error
                return Failed(url, _said(error), content)
        place = Pending(str(url), content) if failure is None else Failed(url, str(failure), content)
        if strict:
            raise InvalidInputError(f"This content is not there: {place!r}")
        return place


def _as_is(value: Any, path: _Path) -> Any:
    return value


def _stored(value: Pending | Failed, path: _Path) -> Any:
    return value.stored


def _decode_error(content: Mapping[str, Any], error: Exception) -> SuperduperError:
    if isinstance(error, SuperduperError):
        return error
    return InvalidInputError(f"Type {content.get('type', 'bytes')!r} can't decode this content: {_said(error)}")


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SuperduperError) else f"{type(error).__name__}: {error}"


def _name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _field(path: _Path) -> _Path:
    """Return the path of a field in the document that an update changes, without operators."""
    if path[:1] != _UPDATE:
        return path
    return tuple(name for part in path[1:] for name in str(part).split(".") if not name.startswith("$"))


def _place(path: _Path) -> str:
    shown = path[1:] if path[:1] == _UPDATE else path
    return f"Value at {'.'.join(map(str, shown))!r}" if shown else "Value"
