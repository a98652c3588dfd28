"""MongoDB's errors in one line: what it refused, without the reply it came in, and what may have been meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any, Final

from superduper_nb.errors import (
    DeadlineError,
    InvalidInputError,
    MongoUnavailableError,
    SuperduperError,
    did_you_mean,
    stoppable,
)
from superduper_nb.widgets.clean import shorten, visible

__all__ = ["OPERATORS", "STAGES", "one_line"]

# fmt: off
OPERATORS: Final = (
    "$all", "$and", "$bitsAllClear", "$bitsAllSet", "$bitsAnyClear", "$bitsAnySet", "$elemMatch", "$eq", "$exists",
    "$expr", "$geoIntersects", "$geoWithin", "$gt", "$gte", "$in", "$jsonSchema", "$like", "$lt", "$lte", "$mod",
    "$ne", "$near", "$nearSphere", "$nin", "$nor", "$not", "$options", "$or", "$regex", "$size", "$text", "$type",
)
STAGES: Final = (
    "$addFields", "$bucket", "$bucketAuto", "$count", "$densify", "$documents", "$facet", "$fill", "$geoNear",
    "$graphLookup", "$group", "$like", "$limit", "$lookup", "$match", "$project", "$redact", "$replaceRoot",
    "$replaceWith", "$sample", "$set", "$setWindowFields", "$skip", "$sort", "$sortByCount", "$unionWith", "$unset",
    "$unwind",
)
# fmt: on

_NAMED: Final = re.compile(r"'?(\$[A-Za-z]+)'?")


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turn errors of pymongo and bson, and interrupts, into this package's; everything else passes.

    `name` is the sub-command that is at work.
    """
    try:
        with stoppable(f"%sddb {name}"):
            yield
    except SuperduperError:
        raise
    except Exception as error:
        if (explained := _explained(error)) is None:
            raise
        raise explained from error


def _explained(error: Exception) -> SuperduperError | None:
    pymongo: Any = sys.modules.get("pymongo.errors")
    bson: Any = sys.modules.get("bson.errors")
    if pymongo is None or bson is None:
        return None
    if _is_gone(error, pymongo):
        return MongoUnavailableError(f"MongoDB does not answer ({type(error).__name__}). See %sddb status.")
    if isinstance(error, pymongo.PyMongoError) and error.timeout:
        return DeadlineError(f"MongoDB took longer than allowed: {_message(error)}.")
    if isinstance(error, pymongo.OperationFailure):
        return InvalidInputError(f"MongoDB refused it: {_message(error)}.{_hint(_message(error))}")
    if isinstance(error, pymongo.PyMongoError | bson.BSONError) or _from_driver(error):
        return InvalidInputError(f"{_message(error)}.")
    return None


def _is_gone(error: Exception, pymongo: Any) -> bool:
    """Tell whether MongoDB is not there, or broke off; one that only takes too long is."""
    if isinstance(error, pymongo.ServerSelectionTimeoutError):
        return True
    return isinstance(error, pymongo.ConnectionFailure) and not error.timeout


def _from_driver(error: Exception) -> bool:
    """Tell whether bson or pymongo refuse a value: for some they raise Python's own errors."""
    if not isinstance(error, ValueError | TypeError | OverflowError | RecursionError):
        return False
    innermost = next(reversed(list(walk_tb(error.__traceback__))), None)
    return innermost is not None and innermost[0].f_globals.get("__name__", "").partition(".")[0] in ("bson", "pymongo")


def _message(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "a document is nested too deeply, or contains itself"
    details = getattr(error, "details", None)
    text = (details or {}).get("errmsg") or str(error).partition(", full error:")[0]
    return shorten(visible(" ".join(text.split())), 300).rstrip(".")


def _hint(message: str) -> str:
    if not re.search(r"unknown|unrecognized", message, re.IGNORECASE):
        return ""
    known = STAGES if "stage" in message else OPERATORS
    for name in _NAMED.findall(message):
        if (hint := did_you_mean(name, known)).startswith(" Did"):
            return hint
    return ""
