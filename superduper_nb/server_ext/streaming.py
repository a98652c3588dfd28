"""How pieces follow each other in one answer: server-sent events, or BSON documents one after the other."""

from __future__ import annotations

import json
from typing import Any, Final

import bson

from superduper_nb.serving import Form

__all__ = ["EVENTS", "last", "piece"]

EVENTS: Final = "text/event-stream"


def piece(form: Form, written: bytes) -> bytes:
    """Return a written piece as a part of the answer."""
    return b"data: %b\n\n" % written if form == "json" else written


def last(form: Form, event: str, fields: dict[str, Any]) -> bytes:
    """Return what ends the answer: an event with fields of plain values."""
    if form == "json":
        return b"event: %b\ndata: %b\n\n" % (event.encode(), json.dumps(fields).encode())
    return bson.encode({event: fields})
