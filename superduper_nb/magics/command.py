"""What a sub-command is: a name, how its line is parsed, and a function of a call."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from superduper_nb.magics.call import Call
from superduper_nb.magics.line import Parser, check_variable

__all__ = ["Command", "name_argument"]

Options = Callable[[Parser], None]


def _no_options(parser: Parser) -> None:
    """Add nothing."""


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes
    ----------
    name : str
        The first word of the line.
    run : callable
        What it does; its value is shown and may be bound.
    summary : str
        One line of help.
    options : callable
        Adds its arguments to the parser.
    body : {"no", "may", "must"}
        Whether a cell body belongs to it.
    target : bool
        Whether it works on a database or collection, which ``--in`` can name.
    examples : str
        Lines at the end of its help.
    twins : tuple of str
        What gives the same in Python; `docs` is the collection in use, `client` the connection's, `sd` the package.
    """

    name: str
    run: Callable[[Call], Any]
    summary: str
    options: Options = _no_options
    body: Literal["no", "may", "must"] = "no"
    target: bool = False
    examples: str = ""
    twins: tuple[str, ...] = field(kw_only=True)

    @cached_property
    def parser(self) -> Parser:
        """The parser of its line; made when it is first needed."""
        parser = Parser(self.name, self.summary, self._ending())
        self.options(parser)
        if self.target:
            parser.add_argument("--in", dest="target", metavar="DB.COLLECTION", help="instead of the collection in use")
        parser.add_argument("--on", metavar="NAME", help="the connection; default: the current one")
        if self.body != "no":
            parser.add_argument("--file", metavar="PATH", help="the body is in this file")
        if "--timeout" not in parser.options:
            parser.add_argument(
                "--timeout",
                dest="allowed",
                type=float,
                metavar="SECONDS",
                help="how long it may take",
            )
        parser.add_argument(
            "-o", dest="output", metavar="VARIABLE", type=name_argument, help="bind the result, and show it"
        )
        return parser

    def _ending(self) -> str:
        examples = f"examples:\n{self.examples}\n\n" if self.examples else ""
        return f"{examples}in Python:\n" + "\n".join(f"  {twin}" for twin in self.twins)


def name_argument(text: str) -> str:
    """Check the name of a variable, as argparse wants it."""
    try:
        return check_variable(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None
