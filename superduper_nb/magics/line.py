"""The line of ``%sddb``: how it splits into words, and what becomes of wrong ones.

Nothing in the line is expanded, neither ``{braces}`` nor ``$names``: both belong to MongoDB's language.
"""

from __future__ import annotations

import argparse
import builtins
import keyword
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.widgets.clean import shorten, visible

__all__ = ["HelpShown", "Line", "Parser", "check_variable", "split"]

LONGEST: Final = 10_000
_BINDING: Final = re.compile(r"\s*(\S+)\s*<<(?:\s+(.*)|)\Z", re.DOTALL)
_TAKES_DASH: Final = frozenset({"--fields", "--sort"})


@dataclass(frozen=True, slots=True)
class Line:
    """A line, split.

    Attributes
    ----------
    words : tuple of str
        Sub-command and arguments.
    variable : str
        The name before ``<<``; empty where there is none.
    quiet : bool
        A semicolon ended the line: the result is not to be shown.
    """

    words: tuple[str, ...]
    variable: str = ""
    quiet: bool = False


def split(line: str) -> Line:
    """Split a line as a POSIX shell would, quotes included.

    Raises
    ------
    InvalidInputError
        It has an open quote, control characters, or is endless.
    """
    line = line.strip()
    if len(line) > LONGEST:
        raise InvalidInputError(f"the line has {len(line):,} characters, more than {LONGEST:,}.")
    if visible(line) != line or "\n" in line:
        raise InvalidInputError(f"the line holds control characters: {visible(shorten(line, 60))!r}.")
    variable = ""
    if (match := _BINDING.match(line)) is not None:
        variable, line = check_variable(match.group(1)), match.group(2) or ""
    quiet = line.endswith(";")
    try:
        words = shlex.split(line.removesuffix(";"))
    except ValueError as error:
        raise InvalidInputError(f"{str(error).lower()} in the line: {shorten(line, 60)!r}.") from None
    return Line(tuple(words), variable, quiet)


def check_variable(name: str) -> str:
    """Return `name` if a result may be bound to it.

    Raises
    ------
    InvalidInputError
        It is no plain name, or one that Python or its user can't do without.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidInputError(
            f"a result can't be named {shorten(visible(name), 40)!r}: give a Python variable, such as 'hits'."
        )
    if name.startswith("__") or hasattr(builtins, name) or name == "get_ipython":
        raise InvalidInputError(f"a result can't be named {name!r}: Python uses that name itself.")
    return name


class HelpShown(Exception):  # noqa: N818 - no error: the way out of argparse with a text in hand
    """``--help`` was asked for; the argument is the help."""


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise HelpShown(parser.format_help())


class Parser(argparse.ArgumentParser):
    """Argparse whose errors are one of ours, in one line with a hint, so that a headless run fails on them.

    IPython's own way, ``UsageError``, prints to stderr and leaves a notebook test green.
    """

    def __init__(self, name: str, summary: str, ending: str = "") -> None:
        super().__init__(
            prog=f"%sddb {name}",
            description=summary,
            epilog=ending,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.add_argument("-h", "--help", action=_Help, nargs=0, help="show this help")

    @property
    def options(self) -> list[str]:
        """All option strings."""
        return sorted(self._option_string_actions)

    def read(self, words: Iterable[str]) -> argparse.Namespace:
        """Parse; a value that begins with a dash is allowed where fields are named (``--sort -price``)."""
        joined: list[str] = []
        for word in words:
            if joined and joined[-1] in _TAKES_DASH:
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return self.parse_args(joined)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have printed."""
        text = shorten(visible(" ".join(message.split())), 200)
        raise InvalidInputError(f"{self.prog}: {text}.{self._hint(message)} See {self.prog} --help.")

    def _hint(self, message: str) -> str:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown is None:
            return ""
        if not unknown.group(1).startswith("-"):
            return " What it works on stands in the body, below the line." if "--file" in self.options else ""
        hint = did_you_mean(unknown.group(1).partition("=")[0], self.options)
        return hint if hint.startswith(" Did") else ""
