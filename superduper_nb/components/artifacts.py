"""Objects as bytes in GridFS, and back: the only place of the package that unpickles what a database holds.

An artifact is a pickle and, where it holds tensors of torch, their numbers beside it (see `weights`). It is written
whole before any record points to it, found again by the SHA-256 of its bytes, and loaded only when its signature
verifies over the very bytes that are loaded.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import pickle
import platform
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import Any, NamedTuple

import cloudpickle
from pymongo.database import Database

from superduper_nb._version import __version__
from superduper_nb.components import blobs
from superduper_nb.components.local_code import local_code_by_value
from superduper_nb.components.trust import sign, verify
from superduper_nb.components.weights import Reader, Writer
from superduper_nb.errors import InvalidInputError, ModelError, TrustError

__all__ = ["Packed", "discard", "dumps", "load", "pack", "save", "seal", "trust"]

_PLAIN = "cloudpickle"
_WITH_WEIGHTS = "cloudpickle+safetensors"
_HEADER = ("sha256", "size", "format", "python")
_SINCE = ("torch", "superduper_nb", "weights")
"""Further fields, which headers of earlier versions, or of objects without tensors, lack."""
_BYTECODE = b"CodeType"
"""What a pickle names that carries compiled functions by value."""


class Packed(NamedTuple):
    """An object as it is stored: a pickle, and the weights that it names (None where there are none)."""

    pickle: bytes
    weights: bytes | None = None


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler that leaves the numbers of tensors to a `Writer`."""

    def __init__(self, file: io.BytesIO, writer: Writer) -> None:
        super().__init__(file, protocol=5)
        self._writer = writer

    def persistent_id(self, obj: Any) -> Any:
        return self._writer.persistent_id(obj)


class _Unpickler(pickle.Unpickler):
    """An unpickler that takes the numbers of tensors from a `Reader`."""

    def __init__(self, packed: Packed) -> None:
        super().__init__(io.BytesIO(packed.pickle))
        self._reader = None if packed.weights is None else Reader(packed.weights)

    def persistent_load(self, place: Any) -> Any:
        if self._reader is None:
            raise pickle.UnpicklingError("it has no weights")
        return self._reader.persistent_load(place)


def pack(obj: Any, *, what: str) -> Packed:
    """Return an object as it is to be stored, for `save`; see `dumps`."""
    if "torch" not in sys.modules:  # then there is no tensor
        return Packed(dumps(obj, what=what))
    writer = Writer()
    return Packed(_dumped(obj, lambda file: _Pickler(file, writer), what), writer.data())


def dumps(obj: Any, *, what: str) -> bytes:
    """Return an object as bytes that load in another process.

    Code defined in ``__main__`` (a notebook) or in modules beside the notebook travels by value.

    Raises
    ------
    InvalidInputError
        The object can't be pickled; the message names the attribute that can't.
    """
    return _dumped(obj, lambda file: cloudpickle.Pickler(file, protocol=5), what)


def _dumped(obj: Any, pickler: Callable[[io.BytesIO], Any], what: str) -> bytes:
    file = io.BytesIO()
    with local_code_by_value():
        try:
            pickler(file).dump(obj)
        except Exception as error:
            culprit = _culprit(obj)
            raise InvalidInputError(
                f"{what} can't be stored: {culprit} can't be pickled ({type(error).__name__}: {error}). "
                "Leave it out (define __getstate__), or build it inside the method that needs it."
            ) from error
    return file.getvalue()


def _culprit(obj: Any, depth: int = 3) -> str:
    name = type(obj).__name__
    for key, value in _parts(obj).items() if depth else ():
        try:
            cloudpickle.dumps(value)
        except Exception:
            inner = _culprit(value, depth - 1)
            return f"{key} of {name}" if inner == type(value).__name__ else f"{inner} in {key}"
    return name


def _parts(obj: Any) -> dict[str, Any]:
    if isinstance(obj, FunctionType):
        with suppress(ValueError):  # a variable that has no value yet
            used = inspect.getclosurevars(obj)
            return {**used.globals, **used.nonlocals}
    return obj if isinstance(obj, dict) else getattr(obj, "__dict__", {})


def save(database: Database[Any], packed: Packed) -> dict[str, Any]:
    """Store a packed object; return the header that describes it (not yet signed).

    Call it once more when a record points to it: bytes that were there already may have been deleted meanwhile.
    """
    digests = [hashlib.sha256(part).hexdigest() for part in packed if part is not None]
    for digest, part in zip(digests, packed, strict=False):
        blobs.keep(database, digest, part or b"")
    header = {"sha256": digests[0], "size": sum(map(len, filter(None, packed))), **_versions(packed.pickle)}
    if packed.weights is None:
        return {**header, "format": _PLAIN}
    return {**header, "format": _WITH_WEIGHTS, "weights": digests[1]}


def _versions(data: bytes) -> dict[str, str]:
    """Return the versions that matter when the bytes are loaded: torch's only where they name it."""
    here = {"python": platform.python_version(), "superduper_nb": __version__}
    torch = sys.modules.get("torch")
    return {**here, "torch": str(torch.__version__)} if torch is not None and b"torch" in data else here


def seal(identity: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    """Return the header with this installation's signature over it and over whose artifact it is."""
    return {**header, "signature": sign({**identity, **header})}


def load(database: Database[Any], identity: dict[str, Any], artifact: dict[str, Any]) -> Any:
    """Read, verify and unpickle an artifact.

    Raises
    ------
    TrustError
        Not signed by this installation for this component, or the bytes are not those that were signed.
    ModelError
        It is trusted but does not load here, or holds functions that another release of Python compiled.

    Warns
    -----
    UserWarning
        It was made with another release of Python or torch.
    """
    header = {key: value for key, value in artifact.items() if key != "signature"}
    if not _known(header) or not verify({**identity, **header}, artifact.get("signature")):
        raise TrustError(
            f"{_name(identity)} was not signed by this installation, so it is not loaded (loading runs its code). "
            f"If you know who made it: %sddb trust {_name(identity)}"
        )
    return _loads(_name(identity), _read(database, identity, header), header)


def trust(database: Database[Any], identity: dict[str, Any], artifact: dict[str, Any]) -> dict[str, Any]:
    """Return the header of an artifact that is there and whole, signed by this installation, too. Nothing is loaded.

    The signatures of others stay: installations that share a MongoDB each vouch for themselves.

    Raises
    ------
    TrustError
        The stored bytes are gone, or not those that the header tells of.
    """
    header = {name: artifact.get(name) for name in _HEADER}
    header |= {name: artifact[name] for name in _SINCE if name in artifact}
    if not _known(header):
        raise TrustError(f"{_name(identity)}: this version knows no artifact of format {header['format']!r}.")
    _read(database, identity, header)
    signed = seal(identity, header)
    others = [each for each in _signatures(artifact) if each != signed["signature"]]
    return {**signed, "signature": [*others, signed["signature"]]} if others else signed


def _signatures(artifact: dict[str, Any]) -> list[str]:
    given = artifact.get("signature")
    return [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, str)]


def _name(identity: dict[str, Any]) -> str:
    return f"{identity['kind']}s/{identity['id']}"


def _known(header: dict[str, Any]) -> bool:
    return header.get("format") == (_WITH_WEIGHTS if "weights" in header else _PLAIN)


def _read(database: Database[Any], identity: dict[str, Any], header: dict[str, Any]) -> Packed:
    """Return the stored bytes, if they are those that the header tells of."""
    parts = [_part(database, identity, str(header[name])) for name in ("sha256", "weights") if name in header]
    return Packed(*parts)


def _part(database: Database[Any], identity: dict[str, Any], digest: str) -> bytes:
    try:
        data = blobs.read(database, digest)
    except ValueError:
        raise TrustError(
            f"{_name(identity)}: its stored bytes are not those that were signed. Register it again."
        ) from None
    if data is None:
        raise TrustError(f"{_name(identity)}: its stored bytes are gone. Register it again.")
    return data


def _loads(name: str, packed: Packed, header: dict[str, Any]) -> Any:
    data = packed.pickle
    if _release(header["python"]) != _release(platform.python_version()) and _BYTECODE in data:
        raise ModelError(
            f"{name} holds functions that Python {header['python']} compiled, this is {platform.python_version()}: "
            "the one does not run what the other compiled. Register it again from here, or use that Python."
        )
    try:
        loaded = _Unpickler(packed).load()
    except Exception as error:
        made = "".join(f" It was made by {each}." for each in _differing(data, header))
        raise ModelError(f"{name} does not load here: {type(error).__name__}: {error}.{made}") from error
    for each in _differing(data, header):
        warnings.warn(f"{name} was made by {each}: it loads, and may answer otherwise than there.", stacklevel=4)
    return loaded


def _differing(data: bytes, header: dict[str, Any]) -> list[str]:
    """Name the versions of Python and torch that are another release here than where it was made."""
    here = _versions(data)
    return [
        f"{'Python' if what == 'python' else what} {header[what]}, this is {here[what]}"
        for what in ("python", "torch")
        if what in header and what in here and _release(header[what]) != _release(here[what])
    ]


def _release(version: str) -> list[str]:
    return version.split(".")[:2]


def discard(database: Database[Any], artifact: dict[str, Any]) -> None:
    """Delete the bytes of an artifact that no record points to any more."""
    for name in ("sha256", "weights"):
        if name in artifact:
            blobs.discard(database, artifact[name])
