"""Job progress as text and HTML: pure functions of a snapshot, so that drawing never waits for a database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from superduper_nb.widgets import html
from superduper_nb.widgets.clean import shorten, visible
from superduper_nb.widgets.curves import Chart, charts
from superduper_nb.widgets.grid import Grid, grid
from superduper_nb.widgets.listing import MOST_ROWS, Listing
from superduper_nb.widgets.values import cell

__all__ = ["FINISHED", "JobState", "JobTable", "finished", "job_row", "jobs_html", "jobs_text", "snapshot", "with_line"]

FINISHED: Final = frozenset({"succeeded", "failed", "cancelled", "blocked"})
MOST_JOBS: Final = 50

Mood = Literal["good", "busy", "warn", "bad", ""]
_MOODS: Final[Mapping[str, tuple[Mood, str]]] = {
    "pending": ("", "○"),
    "running": ("busy", "◐"),
    "succeeded": ("good", "✓"),
    "failed": ("bad", "✕"),
    "cancelled": ("warn", "⊘"),
    "blocked": ("warn", "‖"),
}


@dataclass(frozen=True, slots=True)
class JobState:
    """One job at one moment.

    Attributes
    ----------
    id, name, state : str
        As in its record.
    done, total, failed : int
        Documents: worked through, to work through (0: unknown), failed one by one.
    error : str
        Why it failed, or the first of its documents that did; empty where none did.
    rate, eta : float
        Documents in a second, and seconds to go (0: unknown).
    note : str
        What it says of itself: the curve of a training's loss and its last results.
    charts : tuple of Chart
        The same as pictures.
    created : str
        When it was queued.
    printed : str
        The last line that it printed.
    """

    id: str
    name: str
    state: str
    done: int = 0
    total: int = 0
    failed: int = 0
    error: str = ""
    rate: float = 0.0
    eta: float = 0.0
    note: str = ""
    created: str = ""
    charts: tuple[Chart, ...] = ()
    printed: str = ""

    @property
    def mood(self) -> Mood:
        """Which colour goes with its state."""
        return self._look[0]

    @property
    def mark(self) -> str:
        """The sign that stands before its state: colour alone tells nothing to many readers."""
        return self._look[1]

    @property
    def _look(self) -> tuple[Mood, str]:
        if self.state == "succeeded" and self.failed:
            return "warn", "!"
        return _MOODS.get(self.state, ("", "○"))

    @property
    def count(self) -> str:
        """Its progress in words."""
        told = f"{self.done:,}/{self.total:,}" if self.total else (f"{self.done:,}" if self.done else "")
        return f"{told}, {self.failed:,} failed".lstrip(", ") if self.failed else told

    @property
    def speed(self) -> str:
        """How fast it goes, and how long it will take."""
        if self.state != "running" or not self.rate:
            return ""
        left = f", {_clock(max(self.eta, 1.0))} left" if self.eta else ""
        return f"{self.rate:,.0f}/s{left}" if self.rate >= 1 else f"{self.rate * 60:,.0f}/min{left}"

    @property
    def can_retry(self) -> bool:
        """Tell whether queueing it again would do anything."""
        return self.state in ("failed", "cancelled") or (self.state == "succeeded" and self.failed > 0)


def snapshot(records: Iterable[Mapping[str, Any]]) -> list[JobState]:
    """Read job records."""
    return [_state(record) for record in records]


def _state(record: Mapping[str, Any]) -> JobState:
    numbers = record.get("progress", {})
    done, total, failed = (int(numbers.get(name) or 0) for name in ("done", "total", "failed"))
    rate, eta = (float(numbers.get(name) or 0.0) for name in ("rate", "eta"))
    name, id = visible(shorten(str(record["name"]), 80)), visible(str(record["_id"]))
    error, note = _reason(record), visible(shorten(str(record.get("note") or ""), 200))
    created = cell(record["created"]).text if record.get("created") else ""
    drawn = charts(record.get("curves", ()))
    return JobState(id, name, str(record["state"]), done, total, failed, error, rate, eta, note, created, drawn)


def _reason(record: Mapping[str, Any]) -> str:
    """Return why a job failed, else how the first of its documents did."""
    if error := record.get("error"):
        return visible(shorten(f"{error.get('type')}: {error.get('message')}", 300))
    first = (record.get("failures") or {}).get("first") or ()
    return visible(shorten(f"_id {first[0]['_id']!r}: {first[0]['error']}", 300)) if first else ""


def job_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job record as a row of a table."""
    progress = record.get("progress", {})
    return {
        "job": record["name"],
        "state": record["state"],
        "done": progress.get("done"),
        "of": progress.get("total"),
        "failed": progress.get("failed"),
        "created": record.get("created"),
        "error": _reason(record),
        "id": record["_id"],
        **({"note": record["note"]} if record.get("note") else {}),
    }


def finished(states: Sequence[JobState]) -> bool:
    """Tell whether nothing will change any more."""
    return all(state.state in FINISHED for state in states)


def with_line(state: JobState, line: str) -> JobState:
    """Return the state with the last line that its job printed."""
    return replace(state, printed=visible(shorten(line.strip(), 120)))


def jobs_text(states: Sequence[JobState], *, seconds: float = 0.0) -> str:
    """Draw jobs as lines: ``◐ running  minilm/text  42/100  00:13``."""
    if not states:
        return "no jobs"
    clock = _clock(seconds)
    lines = [
        "  ".join(
            part
            for part in (
                f"{job.mark} {job.state:<9}",
                job.name,
                job.count,
                job.speed,
                clock,
                job.note,
                job.printed,
                job.error,
                job.id,
            )
            if part
        )
        for job in states[:MOST_JOBS]
    ]
    return "\n".join([*lines, *_left_out(states)])


def jobs_html(
    states: Sequence[JobState], *, seconds: float = 0.0, workers: int = 0, problem: str = "", heading: str = ""
) -> str:
    """Draw jobs as a table with bars; `problem` tells why the picture may be old."""
    told = f"{workers:,} worker{'' if workers == 1 else 's'}" if workers else ""
    notes = [_clock(seconds), told, *_left_out(states), visible(problem)]
    footer = " · ".join(note for note in notes if note)
    return str(html.render("jobs.html.j2", jobs=states[:MOST_JOBS], footer=footer, heading=visible(heading)))


class JobTable(Listing):
    """Jobs, as rows for programs and text, and with bars in a notebook.

    Parameters
    ----------
    records : iterable of mapping
        Of jobs, as they are stored.
    heading, empty : str
        As those of a `Listing`.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], *, heading: str = "", empty: str = "no jobs") -> None:
        records = list(records)
        super().__init__(map(job_row, records), heading=heading, empty=empty)
        self._states = snapshot(records)

    def _grid(self) -> Grid:
        """Leave notes to the lines under the table: as a column, they are what a narrow one leaves out."""
        return grid(self[:MOST_ROWS], hidden=frozenset({"note"}))

    def _text(self, table: Grid) -> str:
        notes = [f"{state.name}: {state.note}" for state in self._states[:MOST_ROWS] if state.note]
        return "\n".join([super()._text(table), *notes])

    def _html(self, table: Grid) -> str:
        return jobs_html(self._states, heading=self.heading) if self._states else super()._html(table)


def _left_out(states: Sequence[JobState]) -> list[str]:
    return [f"{len(states) - MOST_JOBS:,} more jobs"] if len(states) > MOST_JOBS else []


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}" if seconds >= 1 else ""
