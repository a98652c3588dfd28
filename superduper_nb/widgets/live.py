"""Views that are read anew every second: the jobs of a collection, the state of the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any, ClassVar, Final, Protocol

from superduper_nb.widgets import html
from superduper_nb.widgets.panel import Action, Panel, panel

__all__ = ["Live", "Shown"]

INTERVAL: Final = 1.0
LASTS: Final = 3600.0


class Shown(Protocol):
    """Anything with text and HTML."""

    def _repr_mimebundle_(self) -> dict[str, str]: ...


class Live:
    """Something that changes, shown as it is now, until it is stopped.

    Only one view of a kind follows: displaying the next one ends the last. Where it ends, its last picture stays as
    static output. Without a notebook it is the picture of the moment.

    Parameters
    ----------
    look : callable
        Reads it. What it raises is told in the view, and it is tried again.
    kind : str
        Which views take each other's place.
    interval : float
        Seconds between two looks.
    lasts : float
        Seconds until the view stops by itself.

    Attributes
    ----------
    ended : threading.Event
        Set when nothing follows any more.
    """

    _following: ClassVar[dict[str, Live]] = {}
    _lock: ClassVar[Lock] = Lock()

    def __init__(
        self, look: Callable[[], Shown], kind: str, *, interval: float = INTERVAL, lasts: float = LASTS
    ) -> None:
        self._look, self._kind, self._interval, self._lasts = look, kind, interval, lasts
        self._stop = Event()
        self._bundle: dict[str, str] = {}
        self.ended = Event()

    def stop(self) -> None:
        """Stop following; the last picture stays."""
        self._stop.set()

    def __repr__(self) -> str:
        return repr(self._look())

    def _ipython_display_(self) -> None:
        from IPython.display import display

        show: Any = display  # untyped in IPython
        self._bundle = self._look()._repr_mimebundle_()
        drawn = panel(self._bundle["text/html"], self._act) if html.in_notebook() else None
        if drawn is None:
            show(self._bundle, raw=True)
            self.ended.set()
            return
        self._take_over()
        drawn.offer("stop")
        handle = show({**drawn.bundle(), **self._bundle}, raw=True, display_id=True)
        Thread(target=self._follow, args=(drawn, handle), name=f"superduper-live-{self._kind}", daemon=True).start()

    def _take_over(self) -> None:
        with self._lock:
            last, self._following[self._kind] = self._following.get(self._kind), self
        if last is not None and last is not self:
            last.stop()

    def _act(self, _: Action) -> None:
        self.stop()

    def _follow(self, drawn: Panel, handle: Any) -> None:
        deadline = time.monotonic() + self._lasts
        while not self._stop.wait(self._interval) and time.monotonic() < deadline:
            try:
                self._bundle = self._look()._repr_mimebundle_()
                drawn.draw(self._bundle["text/html"])
            except Exception as error:  # whatever a lost server raises: say so in the view, and try again
                told = html.note_html(f"it can't be read at the moment ({type(error).__name__})")
                drawn.draw(self._bundle["text/html"] + told)
        handle.update(self._bundle, raw=True)
        drawn.close()
        with self._lock:
            if self._following.get(self._kind) is self:
                del self._following[self._kind]
        self.ended.set()
