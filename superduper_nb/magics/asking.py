"""``%sddb find?``: IPython's way to ask, which by itself would look for a variable called ``find``."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["answered"]

_QUESTION: Final = re.compile(r"^\s*%{1,2}sddb\s+(\w+)\s*\?{1,2}\s*$")


def answered(lines: list[str]) -> list[str]:
    """Turn a cell that asks about a sub-command into the line that answers (an input transformer of IPython)."""
    told = [line for line in lines if line.strip()]
    if len(told) != 1 or (match := _QUESTION.match(told[0])) is None:
        return lines
    return [f"%sddb {match.group(1)} --help\n"]
