"""The parts of the cluster, where each runs and how it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from superduper_nb.widgets import html
from superduper_nb.widgets.clean import shorten, spell, visible
from superduper_nb.widgets.values import sized

__all__ = ["Status"]

Mood = Literal["good", "busy", "warn", "bad", ""]

_MOODS: Final[Mapping[str, Mood]] = {
    "running": "good",
    "ready": "good",
    "ok": "good",
    "foreground": "good",
    "behind": "warn",
    "starting": "busy",
    "restarting": "busy",
    "loading": "busy",
    "stopped": "warn",
    "closed": "warn",
    "off": "",
    "none": "",
    "failed": "bad",
    "unreachable": "bad",
    "down": "bad",
}
_MARKS: Final[Mapping[Mood, str]] = {"good": "●", "busy": "◌", "warn": "▲", "bad": "✕", "": "○"}


class Status(Mapping[str, Any]):
    """What :meth:`Client.status` answers, as a table; a mapping for programs.

    Parameters
    ----------
    status : mapping
        ``{"version", "python", "mode", "components": {name: {"state", "where", "version", …}}}``.
    connection : str
        Name of the connection.
    how : str
        How it was found.
    """

    def __init__(self, status: Mapping[str, Any], *, connection: str = "", how: str = "") -> None:
        self._status = dict(status)
        self.connection = connection
        self.how = how

    def __getitem__(self, key: str) -> Any:
        return self._status[key]

    def __iter__(self) -> Any:
        return iter(self._status)

    def __len__(self) -> int:
        return len(self._status)

    def __repr__(self) -> str:
        table = [
            ("component", "state", "where", "version", ""),
            *((p["name"], f"{p['mark']} {p['state']}", p["where"], p["version"], p["more"]) for p in self._parts()),
        ]
        widths = [max(len(row[column]) for row in table) for column in range(5)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        return "\n".join([self._heading(), *lines])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/plain": repr(self),
            "text/html": str(html.render("status.html.j2", heading=self._heading(), parts=self._parts())),
        }

    def _heading(self) -> str:
        version = f"superduper_nb {self._status.get('version', '?')}"
        python = f"Python {self._status['python']}" if self._status.get("python") else ""
        mode = str(self._status.get("mode", ""))
        parts = [self.connection, self.how, "" if mode in self.how else mode, version, python]
        return " · ".join(visible(shorten(part, 200)) for part in parts if part)

    def _parts(self) -> list[dict[str, str]]:
        components = self._status.get("components") or {}
        return [
            _part(name, facts if isinstance(facts, Mapping) else {"state": facts}) for name, facts in components.items()
        ]


def _part(name: str, facts: Mapping[str, Any]) -> dict[str, str]:
    state = str(facts.get("state", "?"))
    mood = _MOODS.get(state, "")
    more = ", ".join(_fact(key, value) for key, value in facts.items() if _is_more(key, value))
    told = {
        "name": name.replace("_", " "),
        "state": state,
        "where": facts.get("where") or "",
        "version": facts.get("version") or "",
    }
    return {key: _short(value) for key, value in told.items()} | {"mood": mood, "mark": _MARKS[mood], "more": more}


def _is_more(key: str, value: Any) -> bool:
    if key in ("state", "where", "version") or value is False or value in (None, "", [], {}):
        return False
    return key != "restarts" or value != 0  # none is no news


def _fact(name: str, value: Any) -> str:
    if name in ("rss", "bytes"):
        return f"memory: {sized(value)}"
    if isinstance(value, list):
        value = len(value)
    told = _short(name.replace("_", " "))
    return told if value is True else f"{told}: {_short(value)}"


def _short(value: Any) -> str:
    return visible(shorten(spell(value), 120))
