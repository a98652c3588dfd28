"""Texts in quotes, as JavaScript and JSON write them."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["joined_surrogates", "unescaped"]

_ESCAPE: Final = re.compile(r"\\(u\{[0-9a-fA-F]{1,6}\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|\r\n|[\s\S])")
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0", "\n": "", "\r\n": ""}
_HALVES: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def unescaped(text: str) -> str:
    """Return what stands between the quotes with its escapes as the characters that they mean."""
    return joined_surrogates(_ESCAPE.sub(_character, text))


def joined_surrogates(text: str) -> str:
    r"""Join characters that are written as two halves (``\ud83d\ude00``), as JSON and JavaScript do."""
    return _HALVES.sub(lambda match: match.group().encode("utf-16", "surrogatepass").decode("utf-16"), text)


def _character(match: re.Match[str]) -> str:
    escape = match.group(1)
    if len(escape) > 2:
        code = int(escape[1:].strip("{}"), 16)
        return chr(code) if code < 0x110000 else "\N{REPLACEMENT CHARACTER}"
    return _ESCAPES.get(escape, escape)
