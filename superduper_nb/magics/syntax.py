"""The text of a body as Python's syntax tree: read as Python, else as MongoDB shell syntax, else refused, and why."""

from __future__ import annotations

import ast
import io
import token as tokens
import tokenize
import warnings
from typing import Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.shell import ShellSyntaxError, Start, parse_shell

__all__ = ["FILE", "placed", "read"]

FILE: Final = "<%%sddb>"
"""What tracebacks call a body."""
LARGEST: Final = 1_000_000
DEEPEST: Final = 100
"""MongoDB's own limit of nesting."""


def read(text: str, start: Start) -> tuple[ast.expr, bool]:
    """Return the tree of a value (``start``) or a ``statement``, and whether a semicolon ends it.

    Raises
    ------
    InvalidInputError
        It is neither Python nor shell syntax; the message has line and column.
    """
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
            return ast.parse("\n" * lines_before + stripped, FILE, mode="eval").body
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


def _check_depth(tree: ast.expr) -> None:
    """Refuse nesting that MongoDB refuses; without recursion, which deep nesting would break."""
    level: list[ast.AST] = [tree]
    for _ in range(2 * DEEPEST + 20):  # a call and a key add levels of syntax that the value does not have
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise InvalidInputError(f"the body is nested too deeply: MongoDB allows {DEEPEST} levels.")


def placed(text: str, message: str, line: int | None, offset: int | None) -> str:
    """Say where in a body something is wrong: `offset` counts UTF-8 bytes, as Python does."""
    if line is None:
        return f"in the body: {message}"
    lines = text.split("\n")
    before = lines[line - 1].encode()[:offset] if line <= len(lines) else b""
    return f"in the body, line {line}, column {len(before.decode(errors='ignore')) + 1}: {message}"
