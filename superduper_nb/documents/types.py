"""Types: objects to bytes and back.

A type is any object with ``encode`` and ``decode``; its ``types`` say for which classes (and their subclasses) it is
chosen when a document is written. A class may be given by its dotted name, so that nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from superduper_nb.documents.arrays import Array, Tensor, Vector
from superduper_nb.documents.media import Audio, AudioClip, Image
from superduper_nb.errors import InvalidInputError, TrustError

__all__ = [
    "Array",
    "Audio",
    "AudioClip",
    "Bytes",
    "Image",
    "Pickle",
    "Tensor",
    "Type",
    "Vector",
    "builtin_types",
    "classes_of",
]


@runtime_checkable
class Type(Protocol):
    """What a type has to do. It may also have ``types``: the classes, or dotted names of classes, that it is for."""

    def encode(self, x: Any, /) -> bytes:
        """Return an object as bytes."""
        ...

    def decode(self, data: bytes, /) -> Any:
        """Return the object that the bytes hold."""
        ...


class Bytes:
    """Bytes as they are. Never inferred: MongoDB stores plain bytes itself. For content that is only fetched."""

    def encode(self, x: bytes | bytearray | memoryview) -> bytes:
        """Return the bytes."""
        if not isinstance(x, (bytes, bytearray, memoryview)):
            raise InvalidInputError(f"Type 'bytes' takes bytes, not {type(x).__name__}.")
        return bytes(x)

    def decode(self, data: bytes) -> bytes:
        """Return the bytes."""
        return bytes(data)


class Pickle:
    """Any Python object, by cloudpickle. Never inferred, and never read unless somebody vouches for the bytes.

    Parameters
    ----------
    sign : callable, optional
        ``sign(pickled) -> stored bytes``: adds what ``verify`` will ask for.
    verify : callable, optional
        ``verify(stored bytes) -> pickled``: returns the very bytes to be loaded, or raises TrustError. Without it
        nothing is ever loaded.
    """

    def __init__(
        self, *, sign: Callable[[bytes], bytes] | None = None, verify: Callable[[bytes], bytes] | None = None
    ) -> None:
        self._sign = sign
        self._verify = verify

    def encode(self, x: Any) -> bytes:
        """Return the object pickled (and signed)."""
        import cloudpickle

        try:
            data: bytes = cloudpickle.dumps(x, protocol=5)
        except Exception as error:
            raise InvalidInputError(f"This {type(x).__name__} can't be pickled: {error}") from error
        return data if self._sign is None else self._sign(data)

    def decode(self, data: bytes) -> Any:
        """Return the object, if the bytes are vouched for.

        Raises
        ------
        TrustError
            They are not: loading them would run whatever code they hold.
        """
        if self._verify is None:
            raise TrustError(
                "A pickled value is not loaded from a document: it could run any code, and nobody vouches for it."
            )
        trusted = self._verify(bytes(data))
        import cloudpickle

        return cloudpickle.loads(trusted)


def builtin_types() -> dict[str, Type]:
    """Return the types that are always there, by name. Neither torch nor PIL is imported before one of them is used."""
    return {
        "vector": Vector(),
        "tensor": Tensor(),
        "array": Array(),
        "image": Image(),
        "audio": Audio(),
        "bytes": Bytes(),
        "pickle": Pickle(),
    }


def classes_of(id: str, type_: Type) -> list[type | str]:
    """Return the classes, or dotted names of classes, that a type is for.

    Raises
    ------
    InvalidInputError
        Its ``types`` hold something else.
    """
    given = getattr(type_, "types", None) or ()
    classes = list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]
    for entry in classes:
        if not isinstance(entry, (type, str)):
            raise InvalidInputError(f"Type {id!r}: 'types' holds classes or their dotted names, not {entry!r}.")
    return classes
