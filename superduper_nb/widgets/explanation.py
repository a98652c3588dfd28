"""How a query was answered, and where its time went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from superduper_nb.widgets import html
from superduper_nb.widgets.clean import shorten, visible
from superduper_nb.widgets.grid import grid, grid_text
from superduper_nb.widgets.results import Document

__all__ = ["Explanation"]


class Explanation(dict[str, Any]):
    """What ``cursor.explain()`` says: a dict that shows the time of each stage, or MongoDB's plan.

    Parameters
    ----------
    facts : mapping
        The reply of ``explain()``: of a search by meaning, or of MongoDB.
    measure : str
        The measure of the semantic index.
    took_ms : float
        Time of the whole call in milliseconds: what no stage accounts for was spent on the way.
    """

    def __init__(self, facts: Mapping[str, Any], *, measure: str = "", took_ms: float = 0.0) -> None:
        super().__init__(facts)
        self._measure, self._took_ms = measure, took_ms

    def __repr__(self) -> str:
        return f"{self._heading()}\n{grid_text(grid(self._rows()))}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._html()}

    def _heading(self) -> str:
        told = self._of_search(self["search"]) if "search" in self else self._of_plan()
        return " · ".join(visible(shorten(part, 200)) for part in told)

    def _of_search(self, search: Mapping[str, Any]) -> Iterator[str]:
        yield f"index {search['index']} by {self._measure}"
        yield search["strategy"]
        yield f"{search['candidates']:,} candidates"
        if search["survivors"]:
            yield f"{search['survivors']:,} of them match"
        if search["pending"]:
            yield f"{search['pending']:,} still wait for their output"
        yield f"{search['found']:,} found in {self._took_ms:,.1f} ms"

    def _of_plan(self) -> Iterator[str]:
        plan = self.get("queryPlanner", {}).get("winningPlan", {})
        yield " ← ".join(_stages(plan.get("queryPlan", plan))) or "MongoDB's plan"
        if ran := self.get("executionStats"):
            yield f"{ran['totalKeysExamined']:,} keys and {ran['totalDocsExamined']:,} documents looked at"
            yield f"{ran['nReturned']:,} found in {ran['executionTimeMillis']:,} ms"

    def _times(self) -> dict[str, float]:
        """Return the milliseconds of each stage of a search."""
        stages = {str(name): float(ms) for name, ms in self["search"]["stages_ms"].items()}
        rest = self._took_ms - sum(stages.values())
        return stages | {"on the way": max(rest, 0.0)}

    def _rows(self) -> list[dict[str, Any]]:
        if "search" in self:
            return [{"stage": stage, "ms": round(ms, 2)} for stage, ms in self._times().items()]
        return [{"field": name, "value": value} for name, value in self.items()]

    def _html(self) -> str:
        heading = self._heading()
        if "search" not in self:
            return html.note_html(heading) + Document(self)._repr_mimebundle_()["text/html"]
        times = self._times()
        longest = max(times.values()) or 1.0
        bars = [
            {"name": visible(name), "ms": f"{ms:,.2f}", "share": round(ms / longest, 3)} for name, ms in times.items()
        ]
        return str(html.render("stages.html.j2", heading=heading, stages=bars))


def _stages(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield the stages of MongoDB's plan from the last to the first, with the index that one reads."""
    while plan.get("stage"):
        yield f"{plan['stage']} {plan.get('indexName', '')}".rstrip()
        plan = plan.get("inputStage", {})
