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

__all__ = ["READ_LEAVES", "WRITE_LEAVES", "is_plain"]

READ_LEAVES: Final[frozenset[type]] = frozenset(
    {type(None), bool, int, float, str, bytes, ObjectId, datetime.datetime, DatetimeMS, uuid.UUID, Int64, Decimal128}
    | {Timestamp, Regex, re.Pattern, Code, DBRef, MinKey, MaxKey, RawBSONDocument}
)
"""Values that reading leaves alone. (``Binary`` is none: it may hold a vector.)"""
WRITE_LEAVES: Final = READ_LEAVES | {Binary}
"""Values that writing leaves alone."""


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
