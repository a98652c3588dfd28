"""Short texts and tables of things: what every sub-command that is no search answers with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, overload

from superduper_nb.widgets import export, html
from superduper_nb.widgets.clean import visible
from superduper_nb.widgets.grid import Grid, grid, grid_text

__all__ = ["Listing", "Note", "Values"]

MOST_ROWS: Final = 200


class Note:
    """A text that shows itself as it is."""

    def __init__(self, text: str) -> None:
        self.text = visible(text)

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": html.note_html(self.text)}


class Listing(Sequence[dict[str, Any]]):
    """Things of one kind as rows with the same fields.

    Parameters
    ----------
    rows : iterable of mapping
        One for each thing.
    heading : str
        What they are.
    empty : str
        What to show where there are none, and how to make one.
    columns : sequence of str
        Which fields to show, in this order; default: all. Programs get all.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        heading: str = "",
        empty: str = "nothing",
        columns: Sequence[str] = (),
    ) -> None:
        self._rows = [dict(row) for row in rows]
        self._columns = tuple(columns)
        self.heading = heading
        self.empty = empty

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._rows[index]

    def to_pandas(self) -> Any:
        """Return a :class:`pandas.DataFrame` of the rows."""
        return export.to_pandas(self._rows)

    def __repr__(self) -> str:
        return self._text(self._grid())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        table = self._grid()
        return {"text/plain": self._text(table), "text/html": self._html(table)}

    def _text(self, table: Grid) -> str:
        if not table.rows:
            return visible(self.empty)
        return "\n".join(
            part for part in (visible(self.heading), grid_text(table), self._footer(len(table.rows))) if part
        )

    def _html(self, table: Grid) -> str:
        if not table.rows:
            return html.note_html(visible(self.empty))
        drawn = html.rows(table, [None] * len(table.rows), ranked=False)
        columns = [(name, table.numeric(column)) for column, name in enumerate(table.columns)]
        return html.table_html(columns, drawn, heading=visible(self.heading), footer=self._footer(len(drawn)))

    def _grid(self) -> Grid:
        shown = self._rows[:MOST_ROWS]
        if self._columns:
            shown = [{name: row[name] for name in self._columns if name in row} for row in shown]
        return grid(shown)

    def _footer(self, shown: int) -> str:
        return "" if shown == len(self) else f"{shown:,} shown of {len(self):,}"


class Values(list[Any]):
    """A list of values that shows itself as a column."""

    def __init__(self, values: Iterable[Any], *, name: str) -> None:
        super().__init__(values)
        self.name = name

    def __repr__(self) -> str:
        return repr(self._listing())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self._listing()._repr_mimebundle_()

    def _listing(self) -> Listing:
        return Listing(({self.name: value} for value in self), empty=f"no document has {self.name}")
