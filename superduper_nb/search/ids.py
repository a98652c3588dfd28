"""MongoDB identifiers of any type: as dictionary keys, and in MongoDB's order."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import bson
from bson import DBRef, Decimal128, Int64, ObjectId, Regex, Timestamp
from bson.binary import Binary, UuidRepresentation
from bson.codec_options import CodecOptions
from bson.datetime_ms import DatetimeMS
from bson.max_key import MaxKey
from bson.min_key import MinKey

__all__ = ["id_key", "id_keys", "packed_ids", "packed_keys", "sort_key", "unpacked_id"]


def id_key(id: Any) -> Any:
    """Return a hashable key that is equal for identifiers that MongoDB holds to be equal.

    MongoDB compares numbers by value (1, 1.0 and Int64(1) are one identifier) and everything else within its type.
    """
    if type(id) in _OWN_KEY:
        return id
    if isinstance(id, ObjectId):
        return id.binary  # its own hash and comparison are Python's: several times as slow
    if isinstance(id, bool):
        return ("bool", id)
    if isinstance(id, _NUMBERS):
        value = id.to_decimal() if isinstance(id, Decimal128) else id
        return ("nan",) if math.isnan(value) else value
    if isinstance(id, DBRef):
        id = id.as_doc()
    if isinstance(id, Mapping):
        return ("document", *((name, id_key(value)) for name, value in id.items()))
    if isinstance(id, (list, tuple)):
        return ("array", *map(id_key, id))
    return ("other", _bytes(id))


def id_keys(ids: Iterable[Any]) -> list[Any]:
    """Return the keys of many; where their classes are the common ones, without a step for each."""
    found = list(ids)
    classes = set(map(type, found))
    if classes == {ObjectId}:
        return [id.binary for id in found]
    return found if classes <= _OWN_KEY else list(map(id_key, found))


def packed_ids(ids: Iterable[Any]) -> list[Any]:
    """Return identifiers as they are kept: ObjectIds as their 12 bytes, so that the same object is the key, too."""
    return [id.binary if type(id) is ObjectId else Binary(id, 0) if type(id) is bytes else id for id in ids]


def packed_keys(packed: list[Any]) -> list[Any]:
    """Return the keys of identifiers as they are kept; the common kinds are their own."""
    if set(map(type, packed)) <= _OWN_PACKED_KEY:
        return packed
    return [id if type(id) is bytes else id_key(id) for id in packed]


def unpacked_id(packed: Any) -> Any:
    """Return an identifier as it was before `packed_ids`."""
    if type(packed) is bytes:
        return ObjectId(packed)
    return bytes(packed) if type(packed) is Binary and packed.subtype == 0 else packed


def sort_key(id: Any) -> tuple[int, Any]:
    """Return a key that sorts as MongoDB does: by type first, then by value.

    References
    ----------
    https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/
    """
    if isinstance(id, DBRef):
        id = id.as_doc()
    rank = _rank(id)
    if rank == _NUMBER_RANK:
        value = id.to_decimal() if isinstance(id, Decimal128) else id
        return rank, -math.inf if math.isnan(value) else value
    if isinstance(id, Mapping):
        return rank, tuple((_rank(value), name, sort_key(value)) for name, value in id.items())
    if isinstance(id, (list, tuple)):
        return rank, tuple(map(sort_key, id))
    if isinstance(id, uuid.UUID):
        id = Binary.from_uuid(id)
    if isinstance(id, bytes):
        return rank, (len(id), getattr(id, "subtype", 0), bytes(id))
    if isinstance(id, datetime.datetime):
        return rank, int(DatetimeMS(id))
    return rank, id if isinstance(id, (str, ObjectId, bool, Timestamp, DatetimeMS)) else _bytes(id)


def _rank(id: Any) -> int:
    if isinstance(id, _NUMBERS) and not isinstance(id, bool):
        return _NUMBER_RANK
    return next((rank for rank, types in _RANKS.items() if isinstance(id, types)), _CODE_RANK)


_OWN_KEY = {str, int, Int64}
_OWN_PACKED_KEY = {bytes, *_OWN_KEY}
_NUMBERS = (int, float, Decimal128)
_NUMBER_RANK = 2
_RANKS: dict[int, tuple[type, ...]] = {
    0: (MinKey,),
    1: (type(None),),
    3: (str,),
    4: (Mapping, DBRef),
    5: (list, tuple),
    6: (bytes, uuid.UUID),
    7: (ObjectId,),
    8: (bool,),
    9: (datetime.datetime, DatetimeMS),
    10: (Timestamp,),
    11: (Regex,),
    13: (MaxKey,),
}
_CODE_RANK = 12
_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)


def _bytes(id: Any) -> bytes:
    return bson.encode({"": id}, codec_options=_OPTIONS)
