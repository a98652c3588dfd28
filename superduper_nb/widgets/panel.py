"""The live part of a progress view: one HTML, its style, and one button, in one box."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, Literal

from superduper_nb.widgets.clean import shorten

__all__ = ["Action", "Panel", "panel"]

log = logging.getLogger(__name__)

Action = Literal["cancel", "retry", "stop", ""]
"""What the button does; empty: there is none."""

_LABELS: Final[Mapping[str, tuple[str, str, str]]] = {
    "cancel": ("Cancel", "Cancelling…", "Stop these jobs; what they have written stays"),
    "retry": ("Retry", "Queueing…", "Queue what failed again"),
    "stop": ("Stop following", "Stopping…", "Leave the view as it is now"),
}


_STYLE: Final = re.compile(r"<style>.*?</style>", re.DOTALL)


def panel(html: str, act: Callable[[Action], None]) -> Panel | None:
    """Return a panel; None where ipywidgets is missing or broken: the static view is complete by itself."""
    try:
        return Panel(html, act)
    except ImportError:
        return None


class Panel:
    """An ipywidgets view that shows HTML, with a button below it.

    While a cell runs, a click arrives only where front-end and kernel speak over subshells (JupyterLab 4.4 and
    ipykernel 7); elsewhere it waits for the cell. Nothing depends on it: ``job.cancel()`` and ``%sddb cancel``
    do the same.

    Parameters
    ----------
    html : str
        What it shows at first.
    act : callable
        Does what the button says. What it raises is told in the panel, and logged: a widget's callback has nobody to
        raise to.
    """

    def __init__(self, html: str, act: Callable[[Action], None]) -> None:
        widgets = import_module("ipywidgets")
        self._act, self._action, self._problem = act, "", ""
        shared = widgets.Layout()
        self._html = widgets.HTML(layout=shared)
        # Apart, and sent once: with a style in what changes, a browser looks at the whole page anew each time.
        self._style = widgets.HTML(layout=shared, style=self._html.style)
        self._style.add_class("sddb-unseen")
        self.draw(html)
        beside = widgets.Layout(width="auto", align_self="flex-start", margin=None, display="none")
        self._button = widgets.Button(layout=beside)
        self._button.add_class("sddb-act")
        self._button.on_click(self._clicked)
        self._box = widgets.VBox([self._style, self._html, self._button], layout=shared)
        self._box.add_class("sddb-acting")
        _heard_while_busy(self._button)

    @property
    def problem(self) -> str:
        """Why the last click did not do what it says; empty where it did."""
        return self._problem

    def draw(self, html: str) -> None:
        """Show other HTML."""
        self._style.value = "".join(_STYLE.findall(html))
        self._html.value = _STYLE.sub("", html)

    def offer(self, action: Action) -> None:
        """Let the button do something else; the same again changes nothing, so that a click is not forgotten."""
        if action == self._action:
            return
        self._action = action
        if action:
            self._button.description, _, self._button.tooltip = _LABELS[action]
        self._button.disabled = False
        self._button.layout.display = None if action else "none"
        _heard_while_busy(self._button)

    def bundle(self) -> dict[str, Any]:
        """Return the view as a mime bundle."""
        return dict(self._box._repr_mimebundle_() or {})

    def close(self) -> None:
        """Close every widget; ipywidgets keeps layouts and styles alive otherwise."""
        for part in (self._box, self._style, self._html, self._button):
            for widget in (part, part.layout, getattr(part, "style", None)):
                if widget is not None:
                    widget.close()

    def _clicked(self, _: Any) -> None:
        action = self._action
        if not action:
            return
        self._problem, self._button.disabled, self._button.description = "", True, _LABELS[action][1]
        try:
            self._act(action)  # type: ignore[arg-type]
        except Exception as error:  # told where the click was made; nobody else would see it
            log.warning("the %s button failed", action, exc_info=True)
            self._problem = shorten(f"{action} failed: {type(error).__name__}: {error}", 300)
            self._button.disabled, self._button.description = False, _LABELS[action][0]


def _heard_while_busy(button: Any) -> None:
    """Let clicks arrive by the subshell that JupyterLab sends them to.

    ipykernel 7.4 notes on a comm the shell that last sent something by it, and hands all answers to that one: here the
    main shell, which is busy as long as a cell waits for the job. Without the note the sender's choice counts again.
    """
    getattr(button.comm, "__dict__", {}).pop("_reply_subshell_id", None)
