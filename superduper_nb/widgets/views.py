"""Models of views that have JavaScript of their own; imported when the first is shown, as anywidget takes 200 ms."""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

import anywidget
import traitlets

__all__ = ["ExplorerView", "PageTheme", "close"]

_SCRIPTS: Final = resources.files(__package__).joinpath("templates")


class ExplorerView(anywidget.AnyWidget):
    """What `superduper_nb.widgets.explore.Explorer` draws, and its controls; clicks come as messages."""

    _esm = _SCRIPTS.joinpath("explore.js").read_text("utf-8")
    html = traitlets.Unicode().tag(sync=True)
    filter = traitlets.Unicode().tag(sync=True)
    n = traitlets.Int().tag(sync=True)
    most = traitlets.Int().tag(sync=True)


class PageTheme(anywidget.AnyWidget):
    """Knows whether the page that it is on is dark; shows nothing."""

    _esm = _SCRIPTS.joinpath("theme.js").read_text("utf-8")
    dark = traitlets.Bool(default_value=False).tag(sync=True)


def close(*views: Any) -> None:
    """Close widgets with their layouts and styles, which ipywidgets keeps alive otherwise."""
    for view in views:
        for part in (view, view.layout, getattr(view, "style", None)):
            if part is not None:
                part.close()
