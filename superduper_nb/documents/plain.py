"""The values that BSON knows by itself, and a quick look that finds documents made of nothing else."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Iterable
from typing import Any, Final

from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp

from superduper_nb.documents.content import CONTENT

__all__ = ["READ_LEAVES", "WRITE_LEAVES", "has_nothing_to_decode", "is_plain"]

READ_LEAVES: Final[frozenset[type]] = frozenset(
    {type(None), bool, int, float, str, bytes, ObjectId, datetime.datetime, DatetimeMS, uuid.UUID, Int64, Decimal128}
    | {Timestamp, Regex, re.Pattern, Code, DBRef, MinKey, MaxKey, RawBSONDocument}
)
"""Values that reading leaves alone. (``Binary`` is none: it may hold a vector.)"""
WRITE_LEAVES: Final = READ_LEAVES | {Binary}
"""Values that writing leaves alone."""


_SIGNS: Final = (
    b"\x03" + CONTENT.encode() + b"\x00",  # the name of a document
    b"_sddb\x00",
    b"\x00\x09\x27\x00",  # a binary value of less than 16 MB, of subtype 9, that holds float32
)


def has_nothing_to_decode(data: bytes) -> bool:
    """Say whether BSON surely holds no content, no vector and no bookkeeping; where it does not, look at the values."""
    return all(data.rfind(sign) < 0 for sign in _SIGNS)  # (from the end: that is the quicker search of CPython's)


def is_plain(values: Iterable[Any], leaves: frozenset[type]) -> bool:
    """Say whether these values, and all inside them, need no work. Written for speed: it sees every document."""
    for item in values:
        cls = type(item)
        if cls in leaves:
            continue
        if cls is dict:
            if CONTENT in item or not is_plain(item.values(), leaves):
                return False
        elif cls is not list or not (leaves.issuperset(map(type, item)) or is_plain(item, leaves)):
            return False
    return True
