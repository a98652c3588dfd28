"""Values of documents as cells: small, bounded pieces that the HTML templates and the text tables draw.

A cell never holds more than :data:`LONGEST` characters of one value, a folded document never more than :data:`NODES` of
its parts, an output never more than :data:`ALL_NODES`: one hostile or huge document makes no output huge, or slow.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final, Literal

from superduper_nb.widgets.clean import shorten, spell, visible
from superduper_nb.widgets.pictures import Budget, Picture, is_picture, thumbnail
from superduper_nb.widgets.sniffing import media_kind
from superduper_nb.widgets.sounds import Sound, is_sound, player

__all__ = ["Bytes", "Cell", "Kind", "Limits", "cell", "is_vector", "sized"]

LONGEST: Final = 500
NODES: Final = 80
ALL_NODES: Final = 6_000
DEPTH: Final = 5
VECTOR: Final = 8
"""A list of this many numbers or more is a vector: its first and last numbers and its length are shown."""

Kind = Literal["text", "number", "flag", "null", "id", "time", "vector", "bytes", "other", "picture", "sound", "nested"]


class Bytes(int):
    """A number of bytes: a number to programs, ``12.4 KiB`` to readers."""


def sized(count: int) -> str:
    """Return a number of bytes as one reads it."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:,.3g} {unit}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One value, ready to be drawn.

    Attributes
    ----------
    kind : str
        What it is; becomes a CSS class.
    text : str
        The value as one bounded text, without control characters; of nested values a summary.
    picture : Picture or None
        The thumbnail of a picture.
    sound : Sound or None
        The player of a sound.
    items : tuple of (str or None, Cell)
        The parts of a nested value; list items have no name.
    left_out : int
        How many parts there was no room for.
    """

    kind: Kind
    text: str
    picture: Picture | None = None
    sound: Sound | None = None
    items: tuple[tuple[str | None, Cell], ...] = ()
    left_out: int = 0


@dataclass(slots=True)
class Limits:
    """What drawing one output may still use: bytes of its media, parts of all values, parts of the one at hand."""

    pictures: Budget = field(default_factory=lambda: Budget(400_000))
    sounds: Budget = field(default_factory=lambda: Budget(400_000))
    all_nodes: int = ALL_NODES
    nodes: int = NODES


def cell(value: Any, *, name: str = "", limits: Limits | None = None) -> Cell:
    """Turn one value of a document into a cell.

    Parameters
    ----------
    value : Any
        Anything that MongoDB, a model or a type gave.
    name : str
        What to call it in the alternative text of pictures.
    limits : Limits, optional
        Shared by the cells of one output.
    """
    limits = limits or Limits()
    limits.nodes = given = min(NODES, max(limits.all_nodes, 1))
    try:
        return _cell(value, visible(shorten(name, 60)), limits, DEPTH)
    except Exception:  # an object may lie about what it is, and a view must not fail
        return Cell("other", f"<{visible(type(value).__name__)}>")
    finally:
        limits.all_nodes -= given - limits.nodes


def _cell(value: Any, name: str, limits: Limits, depth: int) -> Cell:
    limits.nodes -= 1
    if is_picture(value):
        picture = thumbnail(value, name=name or "value", budget=limits.pictures)
        return Cell("picture", f"image {picture.width}×{picture.height}", picture=picture)
    if is_sound(value):
        sound = player(value, budget=limits.sounds)
        return Cell("sound", sound.told, sound=sound)
    if (vector := _vector(value)) is not None:
        return Cell("vector", vector)
    if isinstance(value, Mapping):
        return _nested(value, ((spell(key), part) for key, part in value.items()), name, limits, depth)
    if isinstance(value, list | tuple):
        return _nested(value, ((None, part) for part in value), name, limits, depth)
    return _plain(value)


def _nested(
    value: Mapping[Any, Any] | list[Any] | tuple[Any, ...],
    parts: Iterator[tuple[str | None, Any]],
    name: str,
    limits: Limits,
    depth: int,
) -> Cell:
    if not value:
        return Cell("other", "{}" if isinstance(value, Mapping) else "[]")
    items: list[tuple[str | None, Cell]] = []
    while depth and limits.nodes > 0 and (found := next(parts, None)) is not None:
        key, part = found
        label = None if key is None else visible(shorten(key, 60))
        items.append((label, _cell(part, name if label is None else f"{name}.{label}", limits, depth - 1)))
    return Cell("nested", _summary(value, items), items=tuple(items), left_out=len(value) - len(items))


def _summary(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], items: list[tuple[str | None, Cell]]) -> str:
    if isinstance(value, Mapping):
        fields = ", ".join(f"{key}: {part.text}" for key, part in islice(items, 8)) or f"{len(value):,} fields"
        return f"{{{_ellipsis(fields, 48)}}}"
    texts = ", ".join(part.text for _, part in islice(items, 8)) or f"{len(value):,} items"
    return f"[{_ellipsis(texts, 48)}]" + (f" {len(value):,} items" if len(value) > 8 else "")


def _ellipsis(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _plain(value: Any) -> Cell:
    if value is None:
        return Cell("null", "null")
    if isinstance(value, bool):
        return Cell("flag", "true" if value else "false")
    if isinstance(value, Bytes):
        return Cell("number", sized(value))
    if isinstance(value, int | float):
        return Cell("number", _number(value))
    if isinstance(value, str):
        return Cell("text", shorten(visible(value), LONGEST))
    if isinstance(value, datetime):
        return Cell("time", value.isoformat(sep=" ", timespec="seconds").removesuffix(" 00:00:00"))
    if isinstance(value, bytes | bytearray | memoryview):
        kind = media_kind(value)
        return Cell("bytes", f"{kind}, {len(value):,} bytes" if kind else f"{len(value):,} bytes")
    if type(value).__name__ in ("ObjectId", "UUID"):
        return Cell("id", visible(str(value)))
    if _is_scalar(value):
        return _plain(value.item())
    return Cell("other", shorten(visible(_told(value)), LONGEST))


def _told(value: Any) -> str:
    # bson's own numbers and dates read better as themselves than as Decimal128('1.5')
    return str(value) if type(value).__name__ in ("Decimal128", "Timestamp") else spell(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value) if value.bit_length() < 1024 else f"integer of {value.bit_length():,} bits"
    if not math.isfinite(value) or (value and not 1e-4 <= abs(value) < 1e15):
        return f"{value:.6g}"
    return f"{round(value, 6):.15g}"


def _is_scalar(value: Any) -> bool:
    return callable(getattr(type(value), "item", None)) and getattr(value, "shape", None) == ()


def _vector(value: Any) -> str | None:
    """Return an abbreviation of an array, tensor, binary vector or long list of numbers; None for anything else."""
    if isinstance(value, list | tuple):
        numbers = len(value) >= VECTOR and all(type(number) in (int, float) for number in value)
        return _abbreviated(list(value[:3]), value[-1], f"{len(value):,} numbers") if numbers else None
    if _is_array(value):
        return _array(value)
    if getattr(value, "subtype", None) == 9 and hasattr(value, "as_vector"):
        return f"binary vector, {len(value):,} bytes"
    return None


def is_vector(value: Any) -> bool:
    """Tell whether `value` is shown by its first and last numbers."""
    try:
        return _vector(value) is not None
    except Exception:  # an object may lie about what it is
        return False


def _is_array(value: Any) -> bool:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    kinds = tuple(kind for kind in (getattr(numpy, "ndarray", None), getattr(torch, "Tensor", None)) if kind)
    return isinstance(value, kinds) and bool(value.ndim)


def _array(value: Any) -> str:
    shape = " × ".join(f"{size:,}" for size in value.shape)
    kind = f"{shape} {str(value.dtype).removeprefix('torch.')}"
    if value.ndim > 1 or not len(value) or len(value) < 4:
        return kind if value.ndim > 1 else f"{value.tolist()} {kind}"
    return _abbreviated(value[:3].tolist(), value[-1].item(), kind)


def _abbreviated(first: list[Any], last: Any, kind: str) -> str:
    def short(number: Any) -> str:
        return f"{number:.3g}" if isinstance(number, int | float) else shorten(spell(number), 20)

    return f"[{', '.join(short(number) for number in first)}, …, {short(last)}] {kind}"
