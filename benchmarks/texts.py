"""Real texts that are on every machine that has the project: what docstrings of installed packages begin with."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

__all__ = ["docstrings"]

PACKAGES = ("sklearn", "scipy", "pandas", "torch", "sympy", "numpy", "transformers", "distributed")


def docstrings(count: int) -> list[str]:
    """Return so many different texts of 20 to 400 characters, always the same ones with the same packages."""
    found = list(islice(dict.fromkeys(_paragraphs()), count))
    if len(found) < count:
        raise SystemExit(f"The packages here hold {len(found)} texts, {count} are asked for: pip install more of them.")
    return found


def _paragraphs() -> Iterator[str]:
    folder = Path(sysconfig.get_path("purelib"))
    for file in (file for package in PACKAGES for file in sorted((folder / package).rglob("*.py"))):
        for docstring in re.findall(r'"""(.+?)"""', file.read_text(errors="ignore"), re.DOTALL):
            text = " ".join(docstring.strip().partition("\n\n")[0].split())
            if 20 <= len(text) <= 400 and text.count(" ") >= 3:
                yield text
