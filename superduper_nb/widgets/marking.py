"""Words of a search, marked where they occur in the texts that it found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["marked", "pattern_of"]

MOST_SOUGHT: Final = 1_000
"""Characters of a text whose words are marked."""

_SMALL: Final = """
about all also and any are been but can for from had has have her his how into its like more not one our out she some
something than that the their them then there these they this was were what when which who will with you your
"""
"""Words that say nothing about what is sought."""


def pattern_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    """Return what finds the words of `texts` that say something; None where there are none."""
    words = {word for text in texts for word in re.findall(r"\w+", text[:MOST_SOUGHT].casefold()) if len(word) > 2}
    telling = sorted(words.difference(_SMALL.split()), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, telling))})\b", re.IGNORECASE) if telling else None


def marked(text: str, sought: re.Pattern[str] | None) -> Any:
    """Escape `text`, and mark what was sought."""
    from markupsafe import Markup, escape

    if sought is None:
        return escape(text)
    pieces, at = [], 0
    for match in sought.finditer(text):
        pieces += [escape(text[at : match.start()]), Markup("<mark>{}</mark>").format(match.group())]
        at = match.end()
    return Markup("").join([*pieces, escape(text[at:])])
