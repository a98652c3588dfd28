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
import io
import token as tokens
import tokenize
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.magics.shell import ShellSyntaxError, Start, joined_surrogates, parse_shell

__all__ = ["Body", "parse", "parse_statement"]

LARGEST: Final = 1_000_000
DEEPEST: Final = 100
"""MongoDB's own limit of nesting."""

_FILE: Final = "<%%sddb>"
_WRAPPERS: Final = {
    "$oid": "ObjectId",
    "$date": "ISODate",
    "$numberLong": "NumberLong",
    "$numberDecimal": "NumberDecimal",
    "$numberInt": "NumberInt",
    "$uuid": "UUID",
}
_OTHER_WRAPPERS: Final = frozenset(
    {"$binary", "$maxKey", "$minKey", "$numberDouble", "$regularExpression", "$symbol", "$timestamp"}
)


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
        return Body(ast.fix_missing_locations(_shaped(tree, _Namespace(self.text, names))), self.text, self.quiet)

    def refusal(self, message: str, node: ast.expr) -> InvalidInputError:
        """Return an error that tells where `node` stands."""
        return InvalidInputError(_at(self.text, message, node.lineno, node.col_offset))

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
            raise InvalidInputError(_at(self.text, _told(error, scope), line, offset)) from error


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
    tree, quiet = _read(text, "start")
    return Body(ast.fix_missing_locations(_shaped(tree, _Namespace(text, names or {}))), text, quiet)


def parse_statement(text: str) -> Body:
    """Read one expression of mongosh, ``db.collection.method(…)…``; its arguments are taken out by :meth:`Body.part`.

    Raises
    ------
    InvalidInputError
        It is something else; the message has line and column.
    """
    tree, quiet = _read(text, "statement")
    return Body(tree, text, quiet)


def _read(text: str, start: Start) -> tuple[ast.expr, bool]:
    if len(text) > LARGEST:
        raise InvalidInputError(
            f"the body has {len(text):,} characters, more than {LARGEST:,}: load large data in Python, and name it."
        )
    if not text.strip():
        raise InvalidInputError("the body is empty.")
    try:
        tree, quiet = _python(text)
    except SyntaxError as error:
        tree, quiet = _shell(text, error, start)
    _check_depth(tree)
    return tree, quiet


@dataclass(frozen=True, slots=True)
class _Namespace:
    """What the rules of keys need: the user's names, and the text for positions."""

    text: str
    names: Mapping[str, Any]

    def refusal(self, message: str, node: ast.expr) -> InvalidInputError:
        return InvalidInputError(_at(self.text, message, node.lineno, node.col_offset))


def _python(text: str) -> tuple[ast.expr, bool]:
    try:
        return _expression(text), False
    except SyntaxError:
        if (bare := _without_semicolon(text)) is None:
            raise
        return _expression(bare), True


def _expression(text: str) -> ast.expr:
    stripped = text.lstrip()
    lines_before = text.count("\n", 0, len(text) - len(stripped))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return ast.parse("\n" * lines_before + stripped, _FILE, mode="eval").body
        except (ValueError, RecursionError, MemoryError) as error:  # NUL characters, endless nesting
            raise SyntaxError(str(error) or "nested too deeply") from None


def _without_semicolon(text: str) -> str | None:
    """Return `text` with a closing ``;`` blanked; None where it does not end in one."""
    last = None
    try:
        for found in tokenize.generate_tokens(io.StringIO(text).readline):
            if found.type not in (tokens.NEWLINE, tokens.ENDMARKER, tokenize.NL, tokenize.COMMENT, tokens.DEDENT):
                last = found
    except (tokenize.TokenError, SyntaxError):
        return None
    if last is None or last.string != ";":
        return None
    lines = text.splitlines(keepends=True)
    line, column = last.start[0] - 1, last.start[1]
    lines[line] = lines[line][:column] + " " + lines[line][column + 1 :]
    return "".join(lines)


def _shell(text: str, python: SyntaxError, start: Start) -> tuple[ast.expr, bool]:
    """Read shell syntax; where that fails too, tell what the reader says that came further."""
    try:
        return parse_shell(text, start)
    except ShellSyntaxError as shell:
        line, column = python.lineno or 1, python.offset or 1
        if _is_statements(text):
            message = "it is one expression, not statements: compute in a cell of its own, and name the result here."
        elif (shell.line, shell.column) > (line, column):
            message, line, column = shell.message, shell.line, shell.column
        else:
            message = python.msg
        raise InvalidInputError(f"in the body, line {line}, column {column}: {message}") from None


def _is_statements(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _at(text: str, message: str, line: int | None, offset: int | None) -> str:
    """Say where: `offset` counts UTF-8 bytes, as Python does."""
    if line is None:
        return f"in the body: {message}"
    lines = text.split("\n")
    before = lines[line - 1].encode()[:offset] if line <= len(lines) else b""
    return f"in the body, line {line}, column {len(before.decode(errors='ignore')) + 1}: {message}"


def _told(error: Exception, scope: Mapping[str, Any]) -> str:
    if isinstance(error, NameError) and error.name:
        builtins = scope.get("__builtins__")
        hint = did_you_mean(error.name, [*scope, *(builtins if isinstance(builtins, dict) else ())])
        return f"{error.name!r} is not defined.{hint if hint.startswith(' Did') else ''}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _check_depth(tree: ast.expr) -> None:
    """Refuse nesting that MongoDB refuses; without recursion, which deep nesting would break."""
    level: list[ast.AST] = [tree]
    for _ in range(2 * DEEPEST + 20):  # a call and a key add levels of syntax that the value does not have
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise InvalidInputError(f"the body is nested too deeply: MongoDB allows {DEEPEST} levels.")


def _shaped(node: ast.expr, space: _Namespace) -> ast.expr:
    """Apply the rules of keys and wrappers to the dicts and lists that make up the value."""
    if isinstance(node, ast.List | ast.Tuple):
        node.elts = [_shaped(part, space) for part in node.elts]
    elif isinstance(node, ast.Dict):
        node.keys = [key and _key(key, space) for key in node.keys]
        node.values = [_shaped(value, space) for value in node.values]
        return _unwrapped(node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        node.value = joined_surrogates(node.value)
    return node


def _key(key: ast.expr, space: _Namespace) -> ast.expr:
    if isinstance(key, ast.List) and len(key.elts) == 1:
        return key.elts[0]
    if isinstance(key, ast.Attribute):
        raise space.refusal(f'a field with dots is written in quotes, "{ast.unparse(key)}".', key)
    if not isinstance(key, ast.Name):
        return _shaped(key, space)
    name = key.id
    if isinstance(space.names.get(name), str):
        what = f'{name!r} is a field and also your variable: write "{name}" for the field, [{name}] for the variable.'
        raise space.refusal(what, key)
    return ast.copy_location(ast.Constant(name), key)


def _unwrapped(node: ast.Dict) -> ast.expr:
    if len(node.keys) != 1 or not isinstance(key := node.keys[0], ast.Constant):
        return node
    simple = isinstance(node.values[0], ast.Constant) and isinstance(node.values[0].value, str)
    if simple and (constructor := _WRAPPERS.get(str(key.value))):
        return ast.copy_location(ast.Call(ast.Name(constructor, ast.Load()), node.values, []), key)
    if key.value in _WRAPPERS or key.value in _OTHER_WRAPPERS:
        return ast.copy_location(ast.Call(ast.Name("extended_json", ast.Load()), [node], []), key)
    return node


def _compiled(tree: ast.expr) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return compile(ast.Expression(tree), _FILE, "eval")


def _position(error: BaseException) -> tuple[int | None, int | None]:
    """Return where in the body `error` was raised: line, and offset in it."""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == _FILE:
            return frame.lineno, frame.colno or 0
    return None, None
