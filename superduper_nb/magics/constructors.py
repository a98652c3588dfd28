"""What a cell body may call without an import: the types of BSON, under the names of mongosh and of Python's bson."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from bson import Binary, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.json_util import JSONOptions, object_hook

__all__ = [
    "CONSTANTS",
    "CONSTRUCTORS",
    "UUID",
    "BinData",
    "Binary",
    "DBRef",
    "Decimal128",
    "ISODate",
    "Int64",
    "MaxKey",
    "MinKey",
    "NumberDecimal",
    "NumberInt",
    "NumberLong",
    "ObjectId",
    "RegExp",
    "Regex",
    "Timestamp",
    "extended_json",
]

CONSTANTS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None, "undefined": None}

_OPTIONS: Final = JSONOptions(tz_aware=True)


def ISODate(text: str | None = None) -> datetime:  # noqa: N802 - mongosh's name
    """Return the time that an ISO 8601 text names (UTC where it names no zone), or the present."""
    if text is None:
        return datetime.now(UTC)
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def NumberInt(value: int | str) -> int:  # noqa: N802
    """Return an integer."""
    return int(value)


def NumberLong(value: int | str) -> Int64:  # noqa: N802
    """Return an integer that MongoDB stores in 64 bits."""
    return Int64(value)


def NumberDecimal(value: str | int | float) -> Decimal128:  # noqa: N802
    """Return a decimal number of 128 bits."""
    return Decimal128(str(value))


def BinData(subtype: int, data: str) -> Binary:  # noqa: N802
    """Return bytes that are given in base64."""
    return Binary(base64.b64decode(data, validate=True), subtype)


def RegExp(pattern: str, flags: str = "") -> Regex[str]:  # noqa: N802
    """Return a regular expression for MongoDB; Python never compiles it."""
    return Regex(pattern, flags)


def extended_json(value: dict[str, Any]) -> Any:
    """Return what a MongoDB Extended JSON wrapper such as ``{"$oid": "…"}`` stands for."""
    return object_hook(value, _OPTIONS)


CONSTRUCTORS: Final[dict[str, Any]] = {
    "BinData": BinData,
    "Binary": Binary,
    "DBRef": DBRef,
    "Date": ISODate,
    "Decimal128": Decimal128,
    "ISODate": ISODate,
    "Int64": Int64,
    "MaxKey": MaxKey,
    "MinKey": MinKey,
    "NumberDecimal": NumberDecimal,
    "NumberInt": NumberInt,
    "NumberLong": NumberLong,
    "ObjectId": ObjectId,
    "RegExp": RegExp,
    "Regex": Regex,
    "Timestamp": Timestamp,
    "UUID": UUID,
    "extended_json": extended_json,
}
