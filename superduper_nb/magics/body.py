"""The body of a ``%%sddb`` cell: one value, written as Python or as in mongosh.

A body that reads as a Python expression is one, of the user's own, and is evaluated in the user's namespace, as the
text of any other cell is. Anything else is read as MongoDB shell syntax or Extended JSON
(:mod:`~superduper_nb.magics.shell`) into the same kind of tree. Three rules hold in both, for the dicts and lists that
make up the value (not inside calls):

- a bare word as key is the name of a field (``{price: 1}`` is ``{"price": 1}``), ``[word]`` the value of a variable;
- ``{"$oid": "…"}`` and the other Extended JSON wrappers are what they stand for;
- ``true``, ``false``, ``null`` and the constructors of mongosh are known.
"""

from __future__ import annotations

import ast
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.magics.keys import Namespace, shaped
from superduper_nb.magics.syntax import FILE, placed, read

__all__ = ["Body", "parse", "parse_statement"]


@dataclass(frozen=True, slots=True)
class Body:
    """A body that was read, and not yet evaluated.

    Attributes
    ----------
    tree : ast.expr
        The value as Python's syntax tree.
    text : str
        What was read.
    quiet : bool
        Whether a semicolon ends it: the result is not to be shown.
    """

    tree: ast.expr
    text: str
    quiet: bool = False

    @property
    def python(self) -> str:
        """The Python expression that gives the same value."""
        return ast.unparse(self.tree)

    def needs(self, names: Mapping[str, Any]) -> list[str]:
        """Return the constructors that the expression uses and that `names` lacks: what a script has to import."""
        from superduper_nb.magics.constructors import CONSTRUCTORS

        used = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        return sorted(name for name in used if name in CONSTRUCTORS and name not in names)

    def part(self, tree: ast.expr, names: Mapping[str, Any]) -> Body:
        """Return a part of the tree as a body of its own: an argument of a call, say."""
        return Body(ast.fix_missing_locations(shaped(tree, Namespace(self.text, names))), self.text, self.quiet)

    def refusal(self, message: str, node: ast.expr) -> InvalidInputError:
        """Return an error that tells where `node` stands."""
        return InvalidInputError(placed(self.text, message, node.lineno, node.col_offset))

    def evaluate(self, names: Mapping[str, Any]) -> Any:
        """Return the value, with `names` as the namespace.

        Raises
        ------
        InvalidInputError
            A name is unknown, or the expression raises.
        """
        from superduper_nb.magics.constructors import CONSTANTS, CONSTRUCTORS

        scope = {**CONSTANTS, **CONSTRUCTORS, **names}
        try:
            return eval(_compiled(self.tree), scope)
        except Exception as error:  # the user's own expression may raise anything; the cause stays attached
            line, offset = _position(error)
            raise InvalidInputError(placed(self.text, _told(error, scope), line, offset)) from error


def parse(text: str, names: Mapping[str, Any] | None = None) -> Body:
    """Read a body.

    Parameters
    ----------
    text : str
        What stands below the ``%%sddb`` line.
    names : mapping, optional
        The user's namespace: where a bare key is also the name of a text there, it is refused as ambiguous.

    Raises
    ------
    InvalidInputError
        It is neither Python nor shell syntax; the message has line and column.
    """
    tree, quiet = read(text, "start")
    return Body(ast.fix_missing_locations(shaped(tree, Namespace(text, names or {}))), text, quiet)


def parse_statement(text: str) -> Body:
    """Read one expression of mongosh, ``db.collection.method(…)…``; its arguments are taken out by :meth:`Body.part`.

    Raises
    ------
    InvalidInputError
        It is something else; the message has line and column.
    """
    tree, quiet = read(text, "statement")
    return Body(tree, text, quiet)


def _told(error: Exception, scope: Mapping[str, Any]) -> str:
    if isinstance(error, NameError) and error.name:
        builtins = scope.get("__builtins__")
        hint = did_you_mean(error.name, [*scope, *(builtins if isinstance(builtins, dict) else ())])
        return f"{error.name!r} is not defined.{hint if hint.startswith(' Did') else ''}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _compiled(tree: ast.expr) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return compile(ast.Expression(tree), FILE, "eval")


def _position(error: BaseException) -> tuple[int | None, int | None]:
    """Return where in the body `error` was raised: line, and offset in it."""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == FILE:
            return frame.lineno, frame.colno or 0
    return None, None
