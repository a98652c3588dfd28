"""The map of embeddings: every document a point, near to what is like it; a lasso around some is a filter."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Literal

from superduper_nb.errors import InvalidInputError, JobCancelledError, SuperduperError, did_you_mean
from superduper_nb.widgets import html
from superduper_nb.widgets.clean import spell
from superduper_nb.widgets.embedding import LIMIT, Points, read_points
from superduper_nb.widgets.progress import JobsView
from superduper_nb.widgets.results import Facts, Result

if TYPE_CHECKING:
    from superduper_nb.client import Collection
    from superduper_nb.client.jobs import Layout as LayoutJob

__all__ = ["LAYOUTS", "EmbeddingMap", "Layout"]

log = logging.getLogger(__name__)

Layout = Literal["pca", "umap"]
LAYOUTS: Final = ("pca", "umap")
_SHADES: Final = " ·░▒▓█"
_COLUMNS, _ROWS = 64, 18
_MOST_COLORS: Final = 20
_VIEWS: Final = "superduper_nb.widgets.views"
_PLANE: Final = "superduper_nb.search.plane"


class EmbeddingMap:
    """Documents as points of a plane.

    The principal components are there at once; UMAP's layout is a job, and takes their place when it has ended. Without
    a notebook server a thread runs it here. Without jupyter-scatter (the extra ``map``), or a notebook, the map is a
    text.

    Parameters
    ----------
    collection : Collection
        Whose documents.
    filter : mapping, optional
        Only these.
    semantic_index : str, optional
        Whose vectors; not needed where the collection has only one.
    label : str, optional
        The field to show where a point is pointed at; default: the one that the index is of.
    color : str, optional
        The field that colours them.
    layout : {"umap", "pca"}, default "pca"
        How they are laid out.
    limit : int
        Most points.

    Attributes
    ----------
    job : Layout or None
        What computes the layout, where one was asked for: ``map.job.cancel()``.
    """

    def __init__(
        self,
        collection: Collection[dict[str, Any]],
        filter: Mapping[str, Any] | None = None,
        *,
        semantic_index: str | None = None,
        label: str | None = None,
        color: str | None = None,
        layout: Layout = "pca",
        limit: int = LIMIT,
    ) -> None:
        if layout not in LAYOUTS:
            raise InvalidInputError(f"a layout is 'pca' or 'umap', not {layout!r}.{did_you_mean(str(layout), LAYOUTS)}")
        self._collection = collection
        self.points: Points = read_points(
            collection, filter, semantic_index=semantic_index, label=label, color=color, limit=limit
        )
        self.layout: Layout = "pca"
        self._group = "group" if color in (None, "x", "y", "label") else str(color)
        """What the column that colours the points is called: the legend shows it."""
        self.xy, self._share = import_module(_PLANE).principal(self.points.vectors)
        self._scatter: Any = None
        self._parts: tuple[Any, ...] = ()
        self._problem, self._progress_shown = "", False
        self._thread = Thread(target=self._lay_out, name="superduper-layout", daemon=True)
        self.job: LayoutJob | None = None
        if layout == "umap":
            index = self.points.semantic_index
            self.job = collection.lay_out(index, filter, limit=limit or LIMIT, begin=False)
            self._thread.start()

    def __len__(self) -> int:
        return len(self.points.ids)

    @property
    def selected(self) -> list[Any]:
        """The ``_id`` of each document inside the lasso."""
        if self._scatter is None:
            return []
        return [self.points.ids[number] for number in self._scatter.selection()]

    @property
    def filter(self) -> dict[str, Any]:
        """The filter for what is inside the lasso: ``docs.find(map.filter)``."""
        return {"_id": {"$in": self.selected}}

    def select(self, ids: list[Any]) -> None:
        """Select documents by their ``_id``, as the lasso does."""
        where = {id: number for number, id in enumerate(self.points.ids)}
        self._drawn().selection([where[id] for id in ids if id in where])

    def documents(self) -> Result:
        """Return the documents inside the lasso."""
        filter = self.filter
        facts = Facts(query=f"docs.find({filter!r})", source=self._collection.full_name)
        return Result(self._collection.find(filter), facts=facts)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the layout that was asked for."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def close(self) -> None:
        """Close the view."""
        leaving, self._scatter, self._parts = self._parts, None, ()
        if leaving:
            import_module(_VIEWS).close(*leaving)

    def __repr__(self) -> str:
        return "\n".join([*self._shaded(), self._told()])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        still = {"text/plain": repr(self), "text/html": html.note_html(repr(self))}
        if not html.in_notebook():
            return still
        if self.job is not None and self._thread.is_alive() and not self._progress_shown:
            self._progress_shown = True
            JobsView([self.job], delay=0.0, offer=0.0).show()
        try:
            self._drawn()
            shown = self._parts[-1]._repr_mimebundle_() or {}
        except ImportError:
            note = "pip install 'superduper-nb[map]' draws it, with hover and lasso."
            return {**still, "text/html": html.note_html(f"{still['text/plain']}\n{note}")}
        return {**shown, **still}

    def _drawn(self) -> Any:
        if self._scatter is None:
            self._scatter = scatter = self._made()
            theme, widgets = import_module(_VIEWS).PageTheme(), import_module("ipywidgets")
            theme.observe(lambda change: self._paint(scatter, dark=change["new"]), "dark")
            caption = widgets.HTML(html.foot_html(self._told()))
            self._parts = scatter.widget, theme, caption, widgets.VBox([scatter.widget, theme, caption])
        return self._scatter

    def _made(self) -> Any:
        scatter = import_module("jscatter").Scatter(data=self._frame(), x="x", y="y", height=440, width="auto")
        scatter.tooltip(enable=True, properties=[], preview="label", preview_type="text")
        scatter.axes(False)
        scatter.size(default=max(2, min(9, 220 // math.isqrt(len(self)))))
        scatter.camera(distance=1.2)  # room around, so that a lasso gets around the outermost
        scatter.legend(self._colored())
        self._paint(scatter, dark=False)
        return scatter

    def _paint(self, scatter: Any, *, dark: bool) -> None:
        """Choose colours that are seen on the page."""
        scatter.background("#111111" if dark else "#ffffff")
        scatter.axes(True)
        scatter.axes(False)  # which their new colour has drawn
        labeling = {"variable": self._group}
        by = {"by": self._group, "map": self._palette(dark), "labeling": labeling} if self._colored() else {}
        scatter.color(default="#7fb0ff" if dark else "#2f6fd6", **by)

    def _palette(self, dark: bool) -> Any:
        """Return colours that the page lets see: viridis without one of its ends; Okabe and Ito's, white for black."""
        if self._numeric():
            shades = import_module("numpy").linspace(0.25 if dark else 0.0, 1.0 if dark else 0.85, 256)
            return import_module("matplotlib").colormaps["viridis"](shades).tolist()
        colors: list[Any] = import_module("jscatter").okabe_ito
        if len(set(self.points.groups)) > len(colors):
            return "auto"  # longer ones, of which the library has one for each background
        return [*colors[:-1], "#ffffff"] if dark else colors

    def _colored(self) -> bool:
        return 1 < len(set(self.points.groups)) <= _MOST_COLORS or self._numeric()

    def _numeric(self) -> bool:
        """Tell whether colours stand for numbers, of which there are too many to name each."""
        groups = self.points.groups
        numbers = (type(group) in (int, float) and math.isfinite(group) for group in groups)
        return len(set(groups)) > _MOST_COLORS and all(numbers)

    def _frame(self) -> Any:
        pandas = import_module("pandas")
        frame = pandas.DataFrame({"x": self.xy[:, 0], "y": self.xy[:, 1], "label": self.points.labels})
        if self._colored():
            texts = [group if isinstance(group, str) else spell(group) for group in self.points.groups]
            frame[self._group] = self.points.groups if self._numeric() else pandas.Categorical(texts)
            # In one text: beside a column of its own, the tooltip is as narrow as that.
            frame["label"] = [f"{text} · {label}" for text, label in zip(texts, frame["label"], strict=True)]
        return frame

    def _lay_out(self) -> None:
        assert self.job is not None  # it is what the thread is for
        try:
            ids, places = self.job.places()
            self.points, at = self.points.among(ids)
            self.xy, self.layout = places[at], "umap"
        except JobCancelledError:
            self._problem = "the better layout was cancelled"
        except SuperduperError as error:  # a thread has nobody to raise to; the principal components stay
            self._problem = f"the better layout failed ({error})"
        except Exception as error:
            log.warning("the layout failed", exc_info=True)
            self._problem = f"the better layout failed ({type(error).__name__}: {error})"
        if self._scatter is not None:
            if self.layout == "umap":
                self._scatter.data(self._frame(), reset_scales=True, animate=True)
            self._parts[2].value = html.foot_html(self._told(busy=False))

    def _told(self, busy: bool | None = None) -> str:
        how = "UMAP" if self.layout == "umap" else f"principal components, {self._share:.0%} of the variance"
        points = self.points
        what = f"{len(self):,} documents of {self._collection.full_name} by {points.model} on {points.key}"
        computing = self._thread.is_alive() if busy is None else busy
        more = "UMAP is being computed" if computing else self._problem
        values = len(set(points.groups))
        plain = (
            f"{values:,} values of {self._group} are too many to colour" if values > 1 and not self._colored() else ""
        )
        return " · ".join(part for part in (what, how, plain, more) if part)

    def _shaded(self) -> list[str]:
        """Return the density of the points as lines of shades."""
        import numpy as np

        counts, _, _ = np.histogram2d(self.xy[:, 1], self.xy[:, 0], bins=(_ROWS, _COLUMNS))
        full = np.sqrt(counts / max(counts.max(), 1.0))
        shades = np.ceil(full * (len(_SHADES) - 1)).astype(int)
        return ["".join(_SHADES[shade] for shade in row).rstrip() for row in shades[::-1]]
