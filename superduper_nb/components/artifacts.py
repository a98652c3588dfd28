"""Objects as bytes in GridFS, and back: the only place of the package that unpickles what a database holds.

An artifact is written whole before any record points to it, found again by the SHA-256 of its bytes, and loaded only
when its signature verifies over the very bytes that are loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from bson import ObjectId
from gridfs import GridFSBucket
from gridfs.errors import CorruptGridFile, NoFile
from pymongo.database import Database

from superduper_nb._version import __version__
from superduper_nb.components.trust import sign, verify
from superduper_nb.errors import InvalidInputError, ModelError, TrustError

__all__ = ["collect", "discard", "dumps", "load", "save", "seal", "trust"]

_FORMAT = "cloudpickle"
_BUCKET = "_sddb.fs"
_register = threading.Lock()
_KEEP_UNUSED = timedelta(days=1)
_CHUNK_BYTES = 4 * 2**20
_HEADER = ("sha256", "size", "format", "python")
_SINCE = ("torch", "superduper_nb")
"""Further fields, which headers of earlier versions lack."""
_BYTECODE = b"CodeType"
"""What a pickle names that carries compiled functions by value."""


def dumps(obj: Any, *, what: str) -> bytes:
    """Return an object as bytes that load in another process.

    Code defined in ``__main__`` (a notebook) or in modules beside the notebook travels by value.

    Raises
    ------
    InvalidInputError
        The object can't be pickled; the message names the attribute that can't.
    """
    with _by_value(_local_modules()):
        try:
            data: bytes = cloudpickle.dumps(obj, protocol=5)
            return data
        except Exception as error:
            culprit = _culprit(obj)
            raise InvalidInputError(
                f"{what} can't be stored: {culprit} can't be pickled ({type(error).__name__}: {error}). "
                "Leave it out (define __getstate__), or build it inside the method that needs it."
            ) from error


def _culprit(obj: Any, depth: int = 3) -> str:
    name = type(obj).__name__
    parts = obj.items() if isinstance(obj, dict) else getattr(obj, "__dict__", {}).items()
    for key, value in parts if depth else ():
        try:
            cloudpickle.dumps(value)
        except Exception:
            inner = _culprit(value, depth - 1)
            return f"{key} of {name}" if inner == type(value).__name__ else f"{inner} in {key}"
    return name


def _local_modules() -> list[ModuleType]:
    """Find the user's own loaded modules: those under the working folder that no installation owns."""
    here = _folder(".")  # compared as text: there are thousands of modules
    installed = tuple(_folder(prefix) for prefix in {sys.prefix, sys.base_prefix})
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name == "__main__" or name.partition(".")[0] == "superduper_nb":
            continue
        if file.startswith(here) and not file.startswith(installed):
            found.append(module)
    return found


def _folder(path: str) -> str:
    return f"{Path(path).resolve()}{os.sep}"


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    # The register is one for the whole process: one thread at a time, and what the user entered stays.
    with _register:
        own = [module for module in modules if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
        for module in own:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in own:
                cloudpickle.unregister_pickle_by_value(module)


def save(database: Database[Any], data: bytes) -> dict[str, Any]:
    """Store bytes under their SHA-256, once; return the header that describes them (not yet signed)."""
    digest = hashlib.sha256(data).hexdigest()
    bucket = _bucket(database)
    if not any(True for _ in bucket.find({"filename": digest}, limit=1)):
        bucket.upload_from_stream(digest, data)
    return {"sha256": digest, "size": len(data), "format": _FORMAT, **_versions(data)}


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
    if header.get("format") != _FORMAT or not verify({**identity, **header}, artifact.get("signature")):
        raise TrustError(
            f"{_name(identity)} was not signed by this installation, so it is not loaded (loading runs its code). "
            f"If you know who made it: %sddb trust {_name(identity)}"
        )
    return _loads(_name(identity), _read(database, identity, header), header)


def trust(database: Database[Any], identity: dict[str, Any], artifact: dict[str, Any]) -> dict[str, Any]:
    """Return the header of an artifact that is there and whole, signed by this installation. Nothing is loaded.

    Raises
    ------
    TrustError
        The stored bytes are gone, or not those that the header tells of.
    """
    header = {name: artifact.get(name) for name in _HEADER}
    header |= {name: artifact[name] for name in _SINCE if name in artifact}
    if header["format"] != _FORMAT:
        raise TrustError(f"{_name(identity)}: this version knows no artifact of format {header['format']!r}.")
    _read(database, identity, header)
    return seal(identity, header)


def _name(identity: dict[str, Any]) -> str:
    return f"{identity['kind']}s/{identity['id']}"


def _read(database: Database[Any], identity: dict[str, Any], header: dict[str, Any]) -> bytes:
    """Return the stored bytes, if they are those that the header tells of."""
    try:
        data: bytes = _bucket(database).open_download_stream_by_name(str(header["sha256"])).read()
    except NoFile:
        raise TrustError(f"{_name(identity)}: its stored bytes are gone. Register it again.") from None
    except CorruptGridFile:
        data = b""
    if hashlib.sha256(data).hexdigest() != header["sha256"]:
        raise TrustError(f"{_name(identity)}: its stored bytes are not those that were signed. Register it again.")
    return data


def _loads(name: str, data: bytes, header: dict[str, Any]) -> Any:
    if _release(header["python"]) != _release(platform.python_version()) and _BYTECODE in data:
        raise ModelError(
            f"{name} holds functions that Python {header['python']} compiled, this is {platform.python_version()}: "
            "the one does not run what the other compiled. Register it again from here, or use that Python."
        )
    try:
        loaded = cloudpickle.loads(data)
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


def collect(database: Database[Any], used: Collection[str]) -> None:
    """Delete stored bytes that nothing points to, and pieces of uploads that never ended, older than a day.

    Younger ones may belong to somebody who is registering just now.
    """
    before = datetime.now(UTC) - _KEEP_UNUSED
    bucket = _bucket(database)
    for file in bucket.find({"filename": {"$nin": list(used)}, "uploadDate": {"$lt": before}}):
        bucket.delete(file._id)
    files, chunks = database[f"{_BUCKET}.files"], database[f"{_BUCKET}.chunks"]
    whole = files.distinct("_id")
    chunks.delete_many({"files_id": {"$nin": whole}, "_id": {"$lt": ObjectId.from_datetime(before)}})


def discard(database: Database[Any], digest: str) -> None:
    """Delete stored bytes that no record points to any more."""
    bucket = _bucket(database)
    for file in bucket.find({"filename": digest}):
        bucket.delete(file._id)


def _bucket(database: Database[Any]) -> GridFSBucket:
    return GridFSBucket(database, bucket_name=_BUCKET, chunk_size_bytes=_CHUNK_BYTES)
