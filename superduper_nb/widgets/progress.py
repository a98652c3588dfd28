"""Live progress of jobs.

A view shows itself only when its jobs take longer than half a second, moves by changing one trait of one widget from a
thread (text printed by a thread would land in another cell), and ends as static output in the same place, its widgets
closed: a saved notebook holds how it ended, and no widget state. Where something failed it first offers for a while to
try that again. Without a live kernel it is one block of text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Final, Protocol

from superduper_nb.errors import ServiceError
from superduper_nb.widgets.html import in_notebook
from superduper_nb.widgets.jobs import FINISHED, JobState, finished, jobs_html, jobs_text, snapshot, with_line
from superduper_nb.widgets.panel import Action, Panel, panel

__all__ = ["JobLike", "JobsView"]

DELAY: Final = 0.5
INTERVAL: Final = 0.25
PATIENCE: Final = 40
"""Failed looks at the jobs, one after another, until a view gives up."""
OFFER: Final = 120.0
"""Seconds for which the button to retry stays."""


class JobLike(Protocol):
    """What a view needs of a job."""

    @property
    def record(self) -> Mapping[str, Any]:
        """``_id``, ``name``, ``state``, ``progress``, ``error``, ``logged``, as they are now."""

    @property
    def workers(self) -> int:
        """How many workers there are; 0 where jobs run in this process."""

    def logs(self, since: int = 0) -> list[dict[str, Any]]:
        """What it printed, from a line on."""

    def cancel(self) -> Any:
        """Stop it."""

    def retry(self) -> Any:
        """Queue it again."""


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
    offer : float
        Seconds for which failed jobs can be retried by the view's button; then it becomes static.

    Attributes
    ----------
    ended : threading.Event
        Set when the jobs are finished and their final picture stands, or the view was closed.
    states : list of JobState
        What was seen last.
    """

    def __init__(
        self, jobs: Iterable[JobLike], *, delay: float = DELAY, interval: float = INTERVAL, offer: float = OFFER
    ) -> None:
        self._jobs = list(jobs)
        self._delay, self._interval, self._offer = delay, interval, offer
        self._began, self._over = time.monotonic(), 0.0
        self._stop, self._again = Event(), Event()
        self._workers = 0
        self._panel: Panel | None = None
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
        if not finished(self.states):
            with suppress(ServiceError):  # a footnote, which a lost server must not turn into an error
                self._workers = self._jobs[0].workers
        if not finished(self.states) and in_notebook():
            self._panel = panel(self._html(), self._act)
            self._draw()
        self._handle = _display(self._bundle())
        if finished(self.states):
            self.ended.set()
        else:
            Thread(target=self._follow, name="superduper-progress", daemon=True).start()

    def close(self) -> None:
        """Stop following and close the widgets; safe to call twice, and before :meth:`show`."""
        self._stop.set()
        self._again.set()
        self._drop_panel()
        self.ended.set()

    def _follow(self) -> None:
        while self._followed_to_the_end() and self._tried_again():
            pass
        if not self._stop.is_set():
            self._finish()
        self.close()

    def _followed_to_the_end(self) -> bool:
        """Draw until the jobs are finished; False where they can't be read, or the view was closed."""
        failures = 0
        while failures < PATIENCE and not self._stop.wait(self._interval):
            try:
                done = self._look()
                failures = 0
            except Exception as error:  # whatever a lost server raises: say so in the view, and try again
                failures += 1
                self._draw(f"the jobs can't be read at the moment ({type(error).__name__})")
                continue
            self._draw()
            if done:
                return True
        return False

    def _tried_again(self) -> bool:
        """Offer for a while to retry what failed; True when the offer was taken."""
        if self._panel is None or not any(state.can_retry for state in self.states):
            return False
        self._over = time.monotonic()
        self._panel.offer("")  # a click on the last offer is settled
        self._draw()
        if self._handle is not None:
            self._handle.update(self._bundle(), raw=True)  # what is saved meanwhile
        self.ended.set()
        deadline = self._over + self._offer
        while not self._again.wait(min(self._interval, 1.0)) and time.monotonic() < deadline:
            self._draw()  # why a click failed, say
        taken = self._again.is_set() and not self._stop.is_set()
        self._again.clear()
        if taken:
            self._over = 0.0
        return taken

    def _act(self, action: Action) -> None:
        """Do what the button says."""
        pairs = list(zip(self._jobs, self.states, strict=True))
        if action == "cancel":
            for job in (job for job, state in pairs if state.state not in FINISHED):
                job.cancel()
            return
        self.ended.clear()
        try:
            for job in (job for job, state in pairs if state.can_retry):
                job.retry()
        finally:
            self._again.set()

    def _look(self) -> bool:
        records = [job.record for job in self._jobs]
        lines = map(_last_line, self._jobs, records)
        self.states = list(map(with_line, snapshot(records), lines))
        return finished(self.states)

    def _draw(self, problem: str = "") -> None:
        if (shown := self._panel) is None:
            return
        over, failed = finished(self.states), any(state.can_retry for state in self.states)
        shown.offer("cancel" if not over else "retry" if failed else "")
        shown.draw(self._html(problem or shown.problem))

    def _finish(self) -> None:
        """Put the final picture where the widget stood."""
        leaving, self._panel = self._panel, None
        if self._handle is not None and in_notebook():
            self._handle.update(self._bundle(), raw=True)
        if leaving is not None:
            leaving.close()

    def _drop_panel(self) -> None:
        leaving, self._panel = self._panel, None
        if leaving is not None:
            leaving.close()

    def _bundle(self) -> dict[str, Any]:
        text = jobs_text(self.states, seconds=self._seconds())
        own = {"text/plain": text, "text/html": self._html()}
        return {**(self._panel.bundle() if self._panel else {}), **own}

    def _html(self, problem: str = "") -> str:
        return jobs_html(self.states, seconds=self._seconds(), workers=self._workers, problem=problem)

    def _seconds(self) -> float:
        return (self._over or time.monotonic()) - self._began


def _last_line(job: JobLike, record: Mapping[str, Any]) -> str:
    """Return the last line that a job printed; asked for only where there is one."""
    logged = record.get("logged") or 0
    lines = job.logs(logged - 1) if logged else []
    return str(lines[-1].get("text", "")) if lines else ""


def _display(bundle: dict[str, Any]) -> Any:
    from IPython.display import display

    show: Any = display  # untyped in IPython
    return show(bundle, raw=True, display_id=True)
