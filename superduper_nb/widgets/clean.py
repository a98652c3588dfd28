"""Text from documents, made safe to look at: no terminal escapes, no direction tricks, no endless strings."""

from __future__ import annotations

import re
from typing import Any, Final

__all__ = ["shorten", "spell", "visible"]

# C0 and C1 controls (but tab and newline), bidirectional overrides and isolates, line separators, zero-width marks that
# reorder text, and lone surrogates, which no UTF-8 message could carry.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def visible(text: str) -> str:
    r"""Write control and direction characters as escapes (``\x1b``, ``\u202e``): text must not act on its reader."""
    return _HIDDEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shorten(text: str, limit: int) -> str:
    """Cut `text` to `limit` characters; what was cut is told with the real length."""
    if len(text) <= limit:
        return text
    note = f"… ({len(text):,} characters)"
    return text[: max(limit - len(note), 0)] + note


def spell(value: Any) -> str:
    """Return `value` as text; an object whose own ``repr`` fails is named by its type."""
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception:  # a repr is somebody else's code, and a view must not fail
        return f"<{type(value).__name__}>"
