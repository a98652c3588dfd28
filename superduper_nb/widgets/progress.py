"""Live progress of jobs.

A view shows itself only when its jobs take longer than half a second, moves by changing one trait of one widget from a
thread (text printed by a thread would land in another cell), and ends as static output in the same place, its widget
closed: a saved notebook holds how it ended, and no widget state. Without a live kernel it is one block of text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from threading import Event, Thread
from typing import Any, Final, Protocol

from superduper_nb.widgets.jobs import JobState, finished, jobs_html, jobs_text, snapshot

__all__ = ["JobLike", "JobsView"]

DELAY: Final = 0.5
INTERVAL: Final = 0.25
PATIENCE: Final = 40
"""Failed looks at the jobs, one after another, until a view gives up."""


class JobLike(Protocol):
    """What a view reads of a job: its record, as it is now."""

    @property
    def record(self) -> Mapping[str, Any]:
        """``_id``, ``name``, ``state``, ``progress``, ``error``."""


class JobsView:
    """Progress of some jobs, in the output of the cell that shows it.

    Parameters
    ----------
    jobs : iterable of JobLike
        What to follow.
    delay : float
        Seconds for which nothing is shown: jobs that end sooner get their final picture only.
    interval : float
        Seconds between two looks at the jobs.

    Attributes
    ----------
    ended : threading.Event
        Set when the jobs are finished and their final picture stands, or the view was closed.
    states : list of JobState
        What was seen last.
    """

    def __init__(self, jobs: Iterable[JobLike], *, delay: float = DELAY, interval: float = INTERVAL) -> None:
        self._jobs = list(jobs)
        self._delay, self._interval = delay, interval
        self._began = time.monotonic()
        self._stop = Event()
        self._widget: Any = None
        self._handle: Any = None
        self.ended = Event()
        self.states: list[JobState] = []

    def show(self) -> None:
        """Display the jobs and return; what is unfinished after the delay is followed by a thread."""
        if not self._jobs:
            self.ended.set()
            return
        while not self._look() and self._seconds() < self._delay:
            self._stop.wait(0.05)
        if not finished(self.states) and _has_kernel():
            self._widget = _widget(jobs_html(self.states))
        self._handle = _display(self._bundle())
        if finished(self.states):
            self.ended.set()
        else:
            Thread(target=self._follow, name="superduper-progress", daemon=True).start()

    def close(self) -> None:
        """Stop following and close the widget; safe to call twice, and before :meth:`show`."""
        self._stop.set()
        _close(self._widget)
        self._widget = None
        self.ended.set()

    def _follow(self) -> None:
        failures = 0
        while failures < PATIENCE and not self._stop.wait(self._interval):
            try:
                done = self._look()
                failures = 0
            except Exception as error:  # whatever a lost server raises: say so in the view, and try again
                failures += 1
                self._draw(f"the jobs can't be read at the moment ({type(error).__name__})")
                continue
            if done:
                break
            self._draw()
        if not self._stop.is_set():
            self._finish()
        self.close()

    def _look(self) -> bool:
        self.states = snapshot(job.record for job in self._jobs)
        return finished(self.states)

    def _draw(self, problem: str = "") -> None:
        if self._widget is not None:
            self._widget.value = jobs_html(self.states, seconds=self._seconds(), problem=problem)

    def _finish(self) -> None:
        """Put the final picture where the widget stood."""
        widget, self._widget = self._widget, None
        if self._handle is not None and _has_kernel():
            self._handle.update(self._bundle(), raw=True)
        _close(widget)

    def _bundle(self) -> dict[str, Any]:
        own = {
            "text/plain": jobs_text(self.states, seconds=self._seconds()),
            "text/html": jobs_html(self.states, seconds=self._seconds()),
        }
        view = {} if self._widget is None else self._widget._repr_mimebundle_() or {}
        return {**view, **own}

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def _has_kernel() -> bool:
    """Tell whether a notebook front-end listens; a terminal can neither show widgets nor change what it printed."""
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def _display(bundle: dict[str, Any]) -> Any:
    from IPython.display import display

    show: Any = display  # untyped in IPython
    return show(bundle, raw=True, display_id=True)


def _widget(html: str) -> Any:
    """Return one HTML widget; None where ipywidgets is missing or broken: the static view is complete by itself."""
    try:
        widgets = import_module("ipywidgets")
    except ImportError:
        return None
    return widgets.HTML(html)


def _close(widget: Any) -> None:
    if widget is None:
        return
    for part in (widget, widget.layout, widget.style):  # ipywidgets keeps the two helpers alive otherwise
        part.close()
