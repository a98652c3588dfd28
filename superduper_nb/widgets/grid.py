"""Documents as a table of cells, and that table as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.widgets.clean import shorten, spell, visible
from superduper_nb.widgets.values import Cell, Limits, cell

__all__ = ["Grid", "grid", "grid_text"]

COLUMNS: Final = 24
WIDTH: Final = 110
TEXT: Final = 48
OTHER: Final = 26
"""Widths that columns of words and of anything else are cut to at first."""
GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows of cells under named columns; an absent field is None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    columns_left_out: int = 0

    def numeric(self, column: int) -> bool:
        """Tell whether a column holds nothing but numbers (and null)."""
        kinds = {part.kind for row in self.rows if (part := row[column]) is not None}
        return "number" in kinds and kinds <= {"number", "null"}

    def wordy(self, column: int) -> bool:
        """Tell whether a column holds texts."""
        return any(part.kind == "text" for row in self.rows if (part := row[column]) is not None)


def grid(
    documents: Iterable[Mapping[str, Any]], *, hidden: frozenset[str] = frozenset(), last: Sequence[str] = ()
) -> Grid:
    """Lay documents out: one row each, one column for each field in the order of first appearance.

    Parameters
    ----------
    documents : iterable of mapping
        As many as are to be shown; the caller bounds them.
    hidden : frozenset of str
        Fields without a column.
    last : sequence of str
        Fields whose columns come after all others.
    """
    shown = list(documents)
    names = [name for name in dict.fromkeys(name for document in shown for name in document) if name not in hidden]
    ordered = [name for name in names if name not in last] + [name for name in last if name in names]
    columns, limits = ordered[:COLUMNS], Limits()
    rows = tuple(
        tuple(
            cell(document[name], name=f"{spell(name)} of row {number}", limits=limits) if name in document else None
            for name in columns
        )
        for number, document in enumerate(shown, 1)
    )
    labels = tuple(visible(shorten(spell(name), 60)) for name in columns)
    return Grid(labels, rows, columns_left_out=len(ordered) - len(columns))


def grid_text(table: Grid, *, width: int = WIDTH) -> str:
    """Draw a table with spaces, at most `width` columns of a terminal wide."""
    texts = [[_flat(part) for part in row] for row in table.rows]
    widths = _widths(table, texts, width)
    shown = list(zip(table.columns, widths, strict=False))
    lines = [GAP.join(_fit(name, size) for name, size in shown)]
    right = [table.numeric(column) for column in range(len(shown))]
    for row in texts:
        fitted = (_fit(text, size, right=end) for text, size, end in zip(row, widths, right, strict=False))
        lines.append(GAP.join(fitted))
    lines += _left_out(table, len(shown))
    return "\n".join(line.rstrip() for line in lines)


def _left_out(table: Grid, shown: int) -> list[str]:
    names = table.columns[shown : shown + 8]
    missing = len(table.columns) - shown + table.columns_left_out
    if not missing:
        return []
    return [f"({missing} more: {', '.join(names)}{', …' if missing > len(names) else ''})"]


def _flat(part: Cell | None) -> str:
    return "" if part is None else " ".join(part.text.split())


def _widths(table: Grid, texts: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the widths of as many columns as fit, in order; what is left of `width` goes to those that were cut."""
    needed = [
        max([_columns_of(name), *(_columns_of(row[column]) for row in texts)])
        for column, name in enumerate(table.columns)
    ]
    capped = [min(size, TEXT if table.wordy(column) else OTHER) for column, size in enumerate(needed)]
    while len(capped) > 1 and _total(capped) > width:
        capped.pop()
    for column, size in enumerate(capped):
        capped[column] = min(needed[column], size + max(width - _total(capped), 0))
    return capped


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _columns_of(text: str) -> int:
    """Return how many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return max(wcswidth(text), 0)


def _fit(text: str, size: int, *, right: bool = False) -> str:
    if _columns_of(text) > size:
        text = _cut(text, size - 1) + "…"
    padding = " " * (size - _columns_of(text))
    return padding + text if right else text + padding


def _cut(text: str, size: int) -> str:
    end = min(len(text), size)
    while _columns_of(text[:end]) > size:
        end -= 1
    return text[:end]
