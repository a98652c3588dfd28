"""The services of another process's notebook server, over its HTTP API.

Bodies are BSON, so that identifiers, dates and vectors arrive as what they are; nothing is ever pickled. This module
lies below the rooms whose values it carries, so those are handed to it (`Carried`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from pymongo import _csot

from superduper_nb.errors import (
    InvalidInputError,
    OverloadedError,
    ServerUnavailableError,
    ServiceError,
    SuperduperError,
)
from superduper_nb.transport import Answer, Transport

__all__ = ["API", "Carried", "RemoteServices"]

API: Final = "superduper/api/v1/"
BSON: Final = "application/bson"

_QUICK_S: Final = 30.0
_HINT_S: Final = 2.0
"""What only saves time must not cost much of it, where a server has stopped to answer."""
_SEARCH_S: Final = 60.0
_PREDICT_S: Final = 120.0
_CONNECTIONS: Final = 32
_LENGTH: Final = 4
"""Bytes at the start of a BSON document that say how long it is."""
_SEND: Final[CodecOptions[dict[str, Any]]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)
_RECEIVE: Final[CodecOptions[dict[str, Any]]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)

Reply = TypeVar("Reply")
Prediction = TypeVar("Prediction")


@dataclass(frozen=True, slots=True)
class Carried(Generic[Reply, Prediction]):
    """How the values of the rooms above travel.

    Attributes
    ----------
    reply : callable
        Makes a search reply of its fields.
    prediction : callable
        Makes a prediction of its outputs, version and took_ms.
    item_error : callable
        Makes what stands for one failed input, of the error's type and message.
    encode, decode : callable
        Objects (arrays, images, …) to BSON values and back, without code in them, given the database whose types count.
    """

    reply: Callable[..., Reply]
    prediction: Callable[..., Prediction]
    item_error: Callable[[str, str], object]
    encode: Callable[[str, Any], Any]
    decode: Callable[[str, Any], Any]


class RemoteServices(Generic[Reply, Prediction]):
    """Search, models and job notices of a notebook server. Thread-safe.

    Parameters
    ----------
    url : str
        The server's base URL.
    token : str, optional
        Its token.
    carried : Carried
        How values travel.
    """

    def __init__(self, url: str, token: str | None = None, *, carried: Carried[Reply, Prediction]) -> None:
        self._transport = Transport(url, token, connections=_CONNECTIONS)
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="superduper-remote")
        self._carried = carried

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._transport.url!r})"

    @property
    def url(self) -> str:
        """The server's base URL."""
        return self._transport.url

    def status(self) -> dict[str, Any]:
        """Return the state of the server's components."""
        return self._call("GET", "status")

    def search(self, request: Any) -> Reply:
        """Find the nearest documents; `request` is a ``SearchRequest``."""
        given = {field.name: getattr(request, field.name) for field in fields(request)}
        body = {name: value for name, value in given.items() if value is not None}
        if request.many and "vector" in body:
            body["vector"] = list(body["vector"])  # of vectors: each travels as one
        for name in {"like", "likes", "unlike", "vector"} & body.keys():
            body[name] = self._carried.encode(request.database, body[name])
        return self._carried.reply(**self._call("POST", "search", body, timeout=_SEARCH_S))

    def indexes(self) -> list[dict[str, Any]]:
        """List the indexes that the server holds."""
        return list(self._call("GET", "indexes")["indexes"])

    def describe_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Return size, freshness and memory of an index."""
        return self._call("GET", _path("indexes", database, collection, id))

    def refresh_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Have an index loaded anew."""
        return self._call("POST", _path("indexes", database, collection, id, "refresh"), {}, timeout=_SEARCH_S)

    def models(self, database: str) -> list[dict[str, Any]]:
        """List the models of a database, and which of them are loaded."""
        return list(self._call("GET", _path("models", database))["models"])

    def predict(
        self, database: str, model: str, inputs: list[Any], version: int | None = None, errors: str = "raise"
    ) -> Prediction:
        """Apply a model in the server."""
        body: dict[str, Any] = {"inputs": self._carried.encode(database, list(inputs)), "errors": errors}
        if version is not None:
            body["version"] = version
        answer = self._call("POST", _path("models", database, model, "predict"), body, timeout=_PREDICT_S)
        outputs = [self._output(database, output) for output in answer["outputs"]]
        return self._carried.prediction(outputs=outputs, version=answer["version"], took_ms=answer["took_ms"])

    def submit(self, database: str, model: str, inputs: list[Any], **options: Any) -> Future[Prediction]:
        """Apply a model in the server, without waiting; options are those of `predict`."""
        return self._threads.submit(partial(self.predict, database, model, inputs, **options))

    def stream(self, database: str, model: str, x: Any, version: int | None = None) -> Iterator[Any]:
        """Yield what a model yields for one input, as it comes."""
        body = {"input": self._carried.encode(database, x), **({} if version is None else {"version": version})}
        for document in self._documents(_path("models", database, model, "stream"), body):
            if "error" in document:
                raise _as_error(document["error"])
            if "end" in document:
                return
            yield self._carried.decode(database, document["output"])
        raise ServerUnavailableError(f"The notebook server at {self.url} broke off: what came until then is good.")

    def load_model(self, database: str, model: str, example: Any = None) -> dict[str, Any]:
        """Load a model in the server, and apply it to an example."""
        body = {"example": self._carried.encode(database, example)}
        return self._call("POST", _path("models", database, model, "load"), body, timeout=_PREDICT_S)

    def unload_model(self, database: str, model: str) -> None:
        """Drop a model from the server's memory."""
        self._call("POST", _path("models", database, model, "unload"), {})

    def notify(self, database: str, jobs: Collection[str]) -> None:
        """Say that something was registered, or jobs were written, in a database; the server finds out which."""
        self._call("POST", "jobs", {"database": database}, timeout=_HINT_S)

    def close(self) -> None:
        """Close the connections; what was submitted is let to its end."""
        self._threads.shutdown(wait=False)
        self._transport.close()

    def _output(self, database: str, output: Any) -> Any:
        if isinstance(output, dict) and output.keys() == {"_error"}:
            return self._carried.item_error(output["_error"]["type"], output["_error"]["message"])
        return self._carried.decode(database, output)

    def _documents(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the documents of an answer that comes in parts."""
        held = b""
        headers = {"Accept": BSON, "Content-Type": BSON}
        parts = self._transport.stream("POST", API + path, body=_encoded(body), headers=headers, timeout=_PREDICT_S)
        with closing(parts):
            for part in parts:
                held += part.body
                if part.status >= 300:
                    continue  # the error may be in parts, too
                documents, held = _whole(held)
                yield from documents
            if part.status >= 300:
                raise _error(self.url, replace(part, body=held))

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float = _QUICK_S
    ) -> dict[str, Any]:
        data = None if body is None else _encoded(body)
        headers = {"Accept": BSON, "Content-Type": BSON}
        seconds = _within(timeout)
        answer = self._transport.request(method, API + path, body=data, headers=headers, timeout=seconds)
        if answer.status >= 300:
            raise _error(self.url, answer)
        try:
            return bson.decode(answer.body, _RECEIVE)
        except BSONError:
            raise ServerUnavailableError(f"What answers at {self.url} does not speak BSON: is it our server?") from None


def _within(seconds: float) -> float:
    """Return `seconds`, or what is left of the time that the caller allows by ``pymongo.timeout``, if that is less."""
    left = _csot.remaining()
    return seconds if left is None else min(seconds, max(left, 0.001))


def _path(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


def _whole(data: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Split bytes into the BSON documents that are there in full, and the rest."""
    documents = []
    while len(data) >= _LENGTH and len(data) >= (size := int.from_bytes(data[:_LENGTH], "little")):
        documents.append(bson.decode(data[:size], _RECEIVE))
        data = data[size:]
    return documents, data


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return bson.encode(body, codec_options=_SEND)
    except (BSONError, OverflowError, UnicodeError, TypeError) as error:
        raise InvalidInputError(f"This can't be sent to the notebook server: {error}") from None


def _error(url: str, answer: Answer) -> SuperduperError:
    """Make the error that the server raised; its ``code`` says which."""
    try:
        reply = dict(json.loads(answer.body))
    except (ValueError, TypeError):
        reply = {}
    retry_after = float(answer.headers.get("Retry-After", "1"))
    return _as_error(
        {"message": f"The notebook server at {url} answered {answer.status}.", **reply}, answer.status, retry_after
    )


def _as_error(reply: Mapping[str, Any], status: int = 500, retry_after: float = 1.0) -> SuperduperError:
    cls = _classes().get(reply.get("code")) or _by_status(status)
    message = str(reply["message"])
    return cls(message, retry_after) if issubclass(cls, OverloadedError) else cls(message)


def _classes(base: type[SuperduperError] = SuperduperError) -> dict[str | None, type[SuperduperError]]:
    found: dict[str | None, type[SuperduperError]] = {base.code: base}
    for cls in base.__subclasses__():
        if cls.__module__ == SuperduperError.__module__:
            found |= _classes(cls)
    return found


def _by_status(status: int) -> type[SuperduperError]:
    if status in (400, 413, 415, 422):
        return InvalidInputError
    return ServerUnavailableError if status in (401, 403, 404, 405) else ServiceError
