"""MongoDB shell syntax and Extended JSON, read into the same syntax tree that Python bodies have.

Lark does the reading: a grammar of thirty lines (``shell.lark``) gives positions and expected tokens for the messages,
in linear time and without recursion, whatever the nesting. It is built when the first body that is no Python comes.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from lark import Lark
    from lark.exceptions import UnexpectedInput

__all__ = ["ShellSyntaxError", "Start", "parse_shell"]

Start = Literal["start", "statement"]
"""Values, or one expression that begins with ``db``."""

_TERMINALS: Final = {
    "COLON": "':'",
    "COMMA": "','",
    "DOT": "'.'",
    "LBRACE": "'{'",
    "LPAR": "'('",
    "LSQB": "'['",
    "NAME": "a name",
    "NUMBER": "a number",
    "RBRACE": "'}'",
    "REGEX": "a regular expression",
    "RPAR": "')'",
    "RSQB": "']'",
    "STRING": "a text in quotes",
    "$END": "the end",
    "END": "';'",
}
_OPERATORS: Final = frozenset(".+-*/%|&<>=(")


class ShellSyntaxError(Exception):
    """A body is not what mongosh would read; `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


def parse_shell(text: str, start: Start = "start") -> tuple[ast.expr, bool]:
    """Read values (several make a tuple), or a ``statement``; tell also whether a semicolon ends it.

    Raises
    ------
    ShellSyntaxError
        The text is something else.
    """
    from lark.exceptions import UnexpectedInput

    try:
        tree: tuple[ast.expr, bool] = _parser().parse(text, start=start)  # type: ignore[assignment]
    except UnexpectedInput as error:
        raise _explained(error, text) from None
    return tree


@cache
def _parser() -> Lark:
    from lark import Lark

    from superduper_nb.magics.shell_tree import TreeBuilder

    grammar = resources.files(__package__).joinpath("shell.lark").read_text("utf-8")
    options: dict[str, Any] = {"maybe_placeholders": False, "keep_all_tokens": False, "transformer": TreeBuilder()}
    return Lark(grammar, parser="lalr", start=["start", "statement"], **options)


def _explained(error: UnexpectedInput, text: str) -> ShellSyntaxError:
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return _unfinished(text)
    found = str(token)[:40] if token is not None else text[getattr(error, "pos_in_stream", 0)]
    expected = _expected(error)
    message = f"unexpected {found!r}{_listed(expected)}"
    if found == "." and "':'" in expected:
        message += '; a field with dots is written in quotes, "a.b"'
    elif found in _OPERATORS:
        message += "; write all keys in quotes to compute in Python here"
    return ShellSyntaxError(message, max(int(error.line), 1), max(error.column, 1))


def _expected(error: UnexpectedInput) -> list[str]:
    """Return what could have stood there, in words."""
    sources = (getattr(error, name, None) for name in ("accepts", "expected", "allowed"))
    names = next((source for source in sources if source), ())
    return sorted({_TERMINALS[name] for name in names if name in _TERMINALS})


def _listed(expected: list[str]) -> str:
    *others, last = expected or [""]
    return f", expected {', '.join(others)} or {last}" if others else f", expected {last}" * bool(last)


def _unfinished(text: str) -> ShellSyntaxError:
    lines = text.rstrip().split("\n")
    return ShellSyntaxError(
        "the text ends too early: a bracket, brace or quote is not closed", len(lines), len(lines[-1]) + 1
    )
