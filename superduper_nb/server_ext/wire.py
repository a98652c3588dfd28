"""Bodies: Extended JSON v2 (relaxed) or BSON, and the objects in them. Nothing is ever unpickled here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import bson
from bson import json_util
from bson.binary import VECTOR_SUBTYPE, Binary
from bson.code import Code
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from pydantic import TypeAdapter, ValidationError

from superduper_nb.errors import InvalidInputError
from superduper_nb.server_ext.failures import ApiError
from superduper_nb.serving.forms import JSON_OPTIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from superduper_nb.documents.codec import Codec

__all__ = [
    "BSON",
    "JSON",
    "decode_objects",
    "dump",
    "form_of",
    "load",
    "refuse_javascript",
    "vectors",
]

BSON: Final = "application/bson"
JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
"""What ``curl -d`` calls any body."""

_BSON_OPTIONS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
_JAVASCRIPT: Final = frozenset({"$where", "$function", "$accumulator"})
_MAX_DIMENSION: Final = 16_384
_MAX_VECTORS: Final = 1_000
_Numbers: Final[TypeAdapter[list[float] | list[list[float]]]] = TypeAdapter(list[float] | list[list[float]])


def load(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the object that a request's body holds.

    Raises
    ------
    ApiError
        415 for another type of content.
    InvalidInputError
        It is broken, or no object.
    """
    return _load_bson(body) if form_of(content_type) == "bson" else _load_json(body)


def form_of(content_type: str) -> Literal["json", "bson"]:
    """Return what a body of this type is; raises `ApiError` 415 for one that is neither."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == BSON:
        return "bson"
    if kind in ("", JSON, _FORM) or kind.endswith("+json"):
        return "json"
    raise ApiError(415, f"The body is {kind!r}: send {JSON} (Extended JSON v2) or {BSON}.")


def _load_bson(body: bytes) -> dict[str, Any]:
    try:
        return bson.decode(body, _BSON_OPTIONS)
    except (BSONError, ValueError, RecursionError, OverflowError) as error:
        raise InvalidInputError(f"The body is no BSON document: {_first_line(error)}.") from None


def _load_json(body: bytes) -> dict[str, Any]:
    try:
        value = _DECODER.decode(body.decode("utf-8"))
    except InvalidInputError:
        raise
    except RecursionError:
        raise InvalidInputError("The body is nested too deeply.") from None
    except Exception as error:  # json_util's parsers raise whatever their input leads them into
        raise InvalidInputError(f"The body is no (Extended) JSON: {_first_line(error)}.") from None
    if not isinstance(value, dict):
        raise InvalidInputError(f"The body must be an object, not {type(value).__name__}.")
    _check_storable(value)
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> Any:
    """Make what a JSON object stands for; of two equal keys, one would be lost in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidInputError(f"The body has the key {twice!r} twice in one object.")
    # {"$regex": …, "$ne": …} is a query as it stands; json_util would keep the first part only.
    return found if "$regex" in found else json_util.object_hook(found, JSON_OPTIONS)


def _no_constant(name: str) -> NoReturn:
    raise InvalidInputError(f'The body holds {name}, which is no JSON: write {{"$numberDouble": "{name}"}}.')


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _check_storable(value: Mapping[str, Any]) -> None:
    """Refuse now what BSON would refuse later: lone surrogates, numbers beyond 64 bits, nesting without end."""
    try:
        bson.encode(value)
    except RecursionError:
        raise InvalidInputError("The body is nested too deeply.") from None
    except (BSONError, OverflowError, ValueError, TypeError) as error:
        raise InvalidInputError(f"The body holds a value that BSON can't: {_first_line(error)}.") from None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(".")


def dump(reply: Mapping[str, Any], content_type: str) -> bytes:
    """Return a reply as the body of an answer."""
    if content_type == BSON:
        return bson.encode(reply)
    return json_util.dumps(reply, json_options=JSON_OPTIONS, allow_nan=False).encode("utf-8")


# Objects


@cache
def _codec() -> Codec:
    from superduper_nb.documents.types import builtin_types
    from superduper_nb.serving.codecs import over_http

    return over_http(builtin_types())


def decode_objects(value: Any) -> Any:
    """Return a request's value with its images, arrays, …; a URL in it is never fetched, so it is refused."""
    return _codec().decode(value, strict=True)


def vectors(given: Any) -> tuple[list[NDArray[Any]], bool]:
    """Return the query vectors of a request, and whether it gave a list of them.

    Raises
    ------
    InvalidInputError
        Not numbers, not of one length, not finite as float32, or too many.
    """
    if isinstance(given, Binary):
        rows, many = [_unpacked(given)], False
    elif isinstance(given, list) and given and all(isinstance(row, Binary) for row in given):
        rows, many = [_unpacked(row) for row in given], True
    else:
        rows, many = _of_numbers(given)
    if len(rows) > _MAX_VECTORS or len({len(row) for row in rows}) != 1 or not 0 < len(rows[0]) <= _MAX_DIMENSION:
        raise InvalidInputError(
            f"vector: give one vector, or up to {_MAX_VECTORS} of one length, of 1 to {_MAX_DIMENSION} numbers each."
        )
    return _finite(rows), many


def _finite(rows: list[Any]) -> list[NDArray[Any]]:
    """Return rows as float32; raises `InvalidInputError` where that is not finite."""
    import numpy as np

    if not isinstance(rows[0], np.ndarray):  # which is float32 already
        with np.errstate(over="ignore"):
            rows = list(np.asarray(rows, dtype=np.float32))
    if not all(np.isfinite(row).all() for row in rows):
        raise InvalidInputError("vector: every number must be finite, also as float32 (at most 3.4e38).")
    return rows


def _unpacked(value: Binary) -> Any:
    row = _codec().decode(value) if value.subtype == VECTOR_SUBTYPE else None
    if not hasattr(row, "dtype"):
        raise InvalidInputError("vector: binary must be a BSON vector (subtype 9) of float32.")
    return row


def _of_numbers(given: Any) -> tuple[list[Any], bool]:
    try:
        rows = _Numbers.validate_python(given, strict=True)
    except ValidationError:
        raise InvalidInputError("vector: give a list of numbers, or a list of such lists.") from None
    many = bool(rows) and isinstance(rows[0], list)
    return (list(rows), True) if many else ([rows], False)


def refuse_javascript(filter: Any) -> None:
    """Refuse a filter with code in it for the MongoDB server, at any depth."""
    for key, value in _walk(filter):
        if key in _JAVASCRIPT or isinstance(value, Code):
            raise InvalidInputError(f"filter: JavaScript ({key}) is not allowed: say it with query operators.")


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, Mapping):
            waiting.extend((str(name), item) for name, item in value.items())
        elif isinstance(value, list):
            waiting.extend((key, item) for item in value)
