"""MongoDB identifiers of any type: as dictionary keys, and in MongoDB's order."""

from __future__ import annotations

import datetime
import math
import uuid
from typing import Any

import bson
from bson import Decimal128, ObjectId, Regex, Timestamp
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

__all__ = ["id_key", "sort_key"]


def id_key(id: Any) -> Any:
    """Return a hashable key that is equal for identifiers that MongoDB holds to be equal.

    MongoDB compares numbers by value (1, 1.0 and Int64(1) are one identifier) and everything else within its type.
    """
    if type(id) in (ObjectId, str):
        return id
    if isinstance(id, _NUMBERS) and not isinstance(id, bool):
        value = id.to_decimal() if isinstance(id, Decimal128) else id
        return ("number", "nan" if math.isnan(value) else value)
    return _bytes(id)


def sort_key(id: Any) -> tuple[int, Any]:
    """Return a key that sorts as MongoDB does: by type first, then by value.

    References
    ----------
    https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/
    """
    if isinstance(id, _NUMBERS) and not isinstance(id, bool):
        value = id.to_decimal() if isinstance(id, Decimal128) else id
        return _NUMBER_RANK, -math.inf if math.isnan(value) else value
    rank = next((rank for rank, types in _RANKS.items() if isinstance(id, types)), _LAST_RANK)
    return rank, id if isinstance(id, _COMPARABLE) else _bytes(id)


_NUMBERS = (int, float, Decimal128)
_NUMBER_RANK = 2
_RANKS: dict[int, tuple[type, ...]] = {
    1: (type(None),),
    3: (str,),
    4: (dict,),
    5: (list,),
    6: (bytes, uuid.UUID),
    7: (ObjectId,),
    8: (bool,),
    9: (datetime.datetime,),
    10: (Timestamp,),
    11: (Regex,),
}
_LAST_RANK = 12
_COMPARABLE = (str, ObjectId, bool, datetime.datetime, Timestamp)
_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)


def _bytes(id: Any) -> bytes:
    return bson.encode({"": id}, codec_options=_OPTIONS)
