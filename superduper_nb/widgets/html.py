"""HTML of tables, galleries and notes: pure functions from cells to text, through autoescaping templates.

No output is larger than :data:`LARGEST`: rows are drawn one by one until the next would not fit, and the caller says in
its footer how many were shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.widgets.grid import Grid
from superduper_nb.widgets.marking import marked, pattern_of
from superduper_nb.widgets.values import Cell

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["LARGEST", "Score", "cards", "foot_html", "gallery_html", "note_html", "render", "rows", "table_html"]

LARGEST: Final = 900_000
"""Bytes of drawn rows; with style, footer and the plain text an output stays below one megabyte."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score as text, and as the filled share of a bar."""

    text: str
    share: float


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("superduper_nb.widgets", "templates"), autoescape=True, undefined=StrictUndefined
    )
    made.filters["marked"] = marked
    made.globals["css"] = _css
    return made


@cache
def _css(name: str) -> Any:
    """Return one of the style sheets: each view brings those that it needs, and an output is small."""
    from markupsafe import Markup

    return Markup(resources.files(__package__).joinpath(f"templates/{name}.css").read_text("utf-8").replace("\n", ""))


def render(template: str, **values: Any) -> Any:
    """Fill one of the package's templates; every value is escaped."""
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(**values))


def in_notebook() -> bool:
    """Tell whether a notebook front-end listens; a terminal can neither show widgets nor change what it printed."""
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def rows(table: Grid, scores: Sequence[Score | None], *, ranked: bool, words: Sequence[str] = ()) -> list[Any]:
    """Draw as many rows of `table` as fit."""
    numeric = [table.numeric(column) for column in range(len(table.columns))]
    sought = pattern_of(words)
    drawn = (
        render(
            "row.html.j2",
            rank=number if ranked else None,
            score=score,
            cells=zip(cells, numeric, strict=True),
            sought=sought,
        )
        for number, (cells, score) in enumerate(zip(table.rows, scores, strict=True), 1)
    )
    return _fitting(drawn)


def cards(
    table: Grid, scores: Sequence[Score | None], *, words: Sequence[str] = (), roles: Sequence[str] = ()
) -> list[Any]:
    """Draw as many rows of `table` as fit, each as a card: its first picture or sound large, its other fields below.

    With `roles` ("more", "less" or "" for each), a card has buttons to make it an example.
    """
    sought = pattern_of(words)
    given: Sequence[str | None] = roles or [None] * len(table.rows)
    drawn = (
        render("card.html.j2", rank=number, score=score, framed=framed, fields=fields, sought=sought, role=role)
        for number, (cells, score, role) in enumerate(zip(table.rows, scores, given, strict=True), 1)
        for framed, fields in [_card(table.columns, cells)]
    )
    return _fitting(drawn)


def _card(names: Sequence[str], cells: Sequence[Cell | None]) -> tuple[Cell | None, list[tuple[str, Cell]]]:
    kept = [(name, part) for name, part in zip(names, cells, strict=True) if part is not None]
    media = [part for kind in ("picture", "sound") for _, part in kept if part.kind == kind]
    framed = media[0] if media else None
    return framed, [(name, part) for name, part in kept if part is not framed]


def _fitting(drawn: Iterable[Any]) -> list[Any]:
    kept, left = [], LARGEST
    for piece in drawn:
        left -= len(piece.encode())
        if left < 0:
            break
        kept.append(piece)
    return kept


def table_html(
    columns: Sequence[tuple[str, bool]], drawn: Sequence[Any], *, heading: str = "", footer: str = ""
) -> str:
    """Put drawn rows under their headings; a column is its name and whether it is numeric."""
    names = [{"name": name, "numeric": numeric} for name, numeric in columns]
    return str(render("table.html.j2", columns=names, rows=drawn, heading=heading, footer=footer))


def gallery_html(drawn: Sequence[Any], *, footer: str = "") -> str:
    """Put drawn cards side by side."""
    return str(render("gallery.html.j2", cards=drawn, footer=footer))


def foot_html(text: str) -> str:
    """Show plain text as what stands below a view."""
    return str(render("foot.html.j2", text=text))


def note_html(text: str) -> str:
    """Show plain text as it is."""
    return str(render("note.html.j2", text=text))
