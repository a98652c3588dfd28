"""What a search gives: one object over documents and scores, for programs and for eyes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, overload

from superduper_nb.widgets import columns, export, html
from superduper_nb.widgets.clean import shorten, visible
from superduper_nb.widgets.grid import Grid, grid, grid_text
from superduper_nb.widgets.lazy import Decoded
from superduper_nb.widgets.plot import ScorePlot, score_plot
from superduper_nb.widgets.values import Cell, is_vector

__all__ = ["HIDDEN", "LAST", "MOST_ROWS", "Document", "Facts", "Layout", "Result", "scores_of"]

MOST_ROWS: Final = 50
"""Most rows of one output."""

Layout = Literal["table", "gallery"]

HIDDEN: Final = frozenset({"_score", "_distance", "_fold", "_sddb", "_like"})
LAST: Final = ("_outputs", "_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """How a result came about: what its footer tells.

    Attributes
    ----------
    query : str
        Python that gives the same documents.
    source : str
        Connection and collection.
    total : int or None
        How many documents match, where that is known.
    more : bool
        Whether documents beyond these match.
    index, strategy : str
        The semantic index that ranked the documents, and how it was searched.
    candidates : int
        How many vectors or documents the search looked at.
    words : tuple of str
        The texts that were searched for; their words are marked where they occur.
    pending : int
        Documents that wait for their model output, and could not be found yet.
    took_ms : float or None
        Time of the whole request in milliseconds.
    """

    query: str = ""
    source: str = ""
    total: int | None = None
    more: bool = False
    index: str = ""
    strategy: str = ""
    candidates: int = 0
    words: tuple[str, ...] = ()
    pending: int = 0
    took_ms: float | None = None

    def lines(self) -> Iterable[str]:
        """Yield what is known besides the number of documents."""
        if self.index:
            yield f"index {self.index} ({self.strategy}; {self.candidates:,} candidates)"
        if self.pending:
            yield f"{self.pending:,} still wait for their output (%sddb wait)"
        if self.took_ms is not None:
            yield _duration(self.took_ms)
        if self.source:
            yield self.source


class Result(Sequence[dict[str, Any]]):
    """Documents in order, the best first where they were searched by meaning.

    ``result[0]`` is a document, ``result[:3]`` a result. Displayed, it is a table (or a gallery) of at most
    :data:`MOST_ROWS` rows; programs get every document.

    Parameters
    ----------
    documents : iterable of dict
        The documents; those of a similarity search have ``_score``. `Decoded` ones stay as they are stored until they
        are looked at.
    facts : Facts
        How they were found.
    layout : {"table", "gallery"}
        How to show them.
    limit : int
        Most rows to show.
    """

    def __init__(
        self,
        documents: Iterable[dict[str, Any]],
        *,
        facts: Facts | None = None,
        layout: Layout = "table",
        limit: int = MOST_ROWS,
    ) -> None:
        self._documents = documents if isinstance(documents, Decoded) else list(documents)
        self.facts = facts or Facts()
        self.layout: Layout = layout
        self._limit = min(max(limit, 1), MOST_ROWS)

    @property
    def query(self) -> str:
        """The Python that gives the same documents."""
        return self.facts.query

    @property
    def scores(self) -> list[float]:
        """The scores of a similarity search; empty for any other result."""
        return [document["_score"] for document in self._documents if "_score" in document]

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Result: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Result:
        if isinstance(index, slice):
            facts = replace(self.facts, more=self.facts.more or len(self._documents[index]) < len(self))
            return Result(self._documents[index], facts=facts, layout=self.layout, limit=self._limit)
        if not -len(self) <= index < len(self):
            raise IndexError(f"no document {index}: {self.footer(len(self))}")
        return self._documents[index]

    def to_list(self) -> list[dict[str, Any]]:
        """Return the documents as a list of their own."""
        return list(self._documents)

    def to_pandas(self) -> Any:
        """Return a :class:`pandas.DataFrame` with one row for each document and one column for each field."""
        return export.to_pandas(self._documents)

    def to_numpy(self, field: str) -> Any:
        """Return one field of every document as an array: ``hits.to_numpy("_outputs.text.minilm")`` is of shape (n, d).

        Raises
        ------
        InvalidInputError
            A document lacks the field (dots for nested ones), or the values do not go into one array.
        """
        return columns.to_numpy(self._documents, field)

    def to_polars(self) -> Any:
        """Return a :class:`polars.DataFrame`; what its columns can't hold becomes text or lists."""
        return columns.to_polars(self._documents)

    def to_arrow(self) -> Any:
        """Return a :class:`pyarrow.Table`; what its columns can't hold becomes text or lists."""
        return columns.to_arrow(self._documents)

    def to_parquet(self, path: str | Path) -> None:
        """Write a Parquet file with the columns of :meth:`to_arrow`."""
        columns.to_parquet(self._documents, path)

    def plot(self, label: str | None = None) -> ScorePlot:
        """Draw the scores, best first, and the widest gap between two of them: relevant hits often end there.

        Parameters
        ----------
        label : str, optional
            The field to write beside each score; default: the first that holds text.

        Raises
        ------
        InvalidInputError
            The result has no scores: it is of no search by meaning.
        """
        return score_plot([document for document in self._documents if "_score" in document], label)

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """Return CSV, or write it to `path`; nested values are JSON in their cell."""
        return export.written(export.to_csv(self._documents), path)

    def to_json(self, path: str | Path | None = None) -> str | None:
        """Return relaxed MongoDB Extended JSON, or write it to `path`."""
        return export.written(export.to_json(self._documents), path)

    def save(self, path: str | Path, *, overwrite: bool = False) -> int:
        """Write the documents to a ``.csv``, ``.json``, ``.jsonl`` or ``.parquet`` file; return how many they are."""
        return export.save(self._documents, path, overwrite=overwrite)

    def __repr__(self) -> str:
        return self._text(self._grid())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        table = self._grid()
        return {"text/plain": self._text(table), "text/html": self._html(table)}

    def _grid(self) -> Grid:
        shown = map(_without_vectors, self._documents[: self._limit])
        return grid(shown, hidden=HIDDEN, last=LAST)

    def _text(self, table: Grid) -> str:
        if not table.rows:
            return self.footer(0)
        scored = _with_scores(table, scores_of(self._documents[: self._limit]))
        return f"{grid_text(scored)}\n{self.footer(len(table.rows))}"

    def _html(self, table: Grid) -> str:
        if not table.rows:
            return html.note_html(self.footer(0))
        scores = scores_of(self._documents[: self._limit])
        if self.layout == "gallery":
            drawn = html.cards(table, scores, words=self.facts.words)
            return html.gallery_html(drawn, footer=self.footer(len(drawn), table))
        drawn = html.rows(table, scores, ranked=True, words=self.facts.words)
        return html.table_html(_headings(table, scores), drawn, footer=self.footer(len(drawn), table))

    def footer(self, shown: int, table: Grid | None = None) -> str:
        """Tell how many are shown, and how the result came about."""
        parts = [_counted(shown, len(self), self.facts), *self.facts.lines()]
        if table is not None and table.columns_left_out:
            parts.insert(1, f"{table.columns_left_out} more fields")
        return " · ".join(" ".join(visible(shorten(part, 120)).split()) for part in parts)


class Document(dict[str, Any]):
    """One document: a dict that shows itself as fields and values."""

    def __repr__(self) -> str:
        return grid_text(self._grid())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        table = self._grid()
        drawn = html.rows(table, [None] * len(table.rows), ranked=False)
        headings = [(name, False) for name in table.columns]
        return {"text/plain": grid_text(table), "text/html": html.table_html(headings, drawn)}

    def _grid(self) -> Grid:
        fields = [(name, value) for name, value in self.items() if name not in HIDDEN or name == "_score"]
        return grid({"field": name, "value": value} for name, value in fields[:MOST_ROWS])


def _without_vectors(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out outputs that tell a reader nothing: the vectors that searches compare."""
    if not isinstance(outputs := document.get("_outputs"), dict):
        return document
    rest = {name: value for name, value in document.items() if name != "_outputs"}
    return {**rest, "_outputs": telling} if (telling := _telling(outputs)) else rest


def _telling(outputs: dict[str, Any]) -> dict[str, Any]:
    telling = {}
    for name, value in outputs.items():
        if isinstance(value, dict):
            if inner := _telling(value):
                telling[name] = inner
        elif not is_vector(value):
            telling[name] = value
    return telling


def _duration(ms: float) -> str:
    if ms >= 1_000:
        return f"{ms / 1000:,.1f} s" if ms >= 10_000 else f"{ms / 1000:.2f} s"
    return f"{ms:,.0f} ms" if ms >= 1 else "under 1 ms"


def _counted(shown: int, fetched: int, facts: Facts) -> str:
    if not fetched:
        return "no document matches"
    told = f"{fetched:,}" if shown == fetched else f"{shown:,} shown of {fetched:,}"
    if facts.total is not None and facts.total > fetched:
        return f"{told} of {facts.total:,} documents"
    more = ", more match" if facts.more and facts.total is None else ""
    return f"{told} document{'' if fetched == 1 else 's'}{more}"


def scores_of(documents: Sequence[dict[str, Any]]) -> list[html.Score | None]:
    """Return each document's score with its bar: full at one, or at the best score where measures go beyond."""
    numbers = [document.get("_score") for document in documents]
    best = max((float(number) for number in numbers if isinstance(number, int | float)), default=1.0)
    return [_score(number, max(best, 1.0)) for number in numbers]


def _score(number: Any, full: float) -> html.Score | None:
    if not isinstance(number, int | float):
        return None
    share = min(max(float(number) / full, 0.0), 1.0) if number == number else 0.0
    return html.Score(f"{number:.3f}", round(share, 3))


def _headings(table: Grid, scores: Sequence[html.Score | None]) -> list[tuple[str, bool]]:
    own = [(name, table.numeric(column)) for column, name in enumerate(table.columns)]
    return [("#", True), *([("score", False)] if any(scores) else []), *own]


def _with_scores(table: Grid, scores: Sequence[html.Score | None]) -> Grid:
    """Put rank and score before the other columns, for the plain text."""
    ranked = [(Cell("number", str(rank)), *row) for rank, row in enumerate(table.rows, 1)]
    if not any(scores):
        return replace(table, columns=("#", *table.columns), rows=tuple(ranked))
    shown = [Cell("number", score.text) if score else None for score in scores]
    rows = tuple((row[0], score, *row[1:]) for row, score in zip(ranked, shown, strict=True))
    return replace(table, columns=("#", "score", *table.columns), rows=rows)
