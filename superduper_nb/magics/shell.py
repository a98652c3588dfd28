"""MongoDB shell syntax and Extended JSON, read into the same syntax tree that Python bodies have.

Lark does the reading: a grammar of thirty lines (``shell.lark``) gives positions and expected tokens for the messages,
in linear time and without recursion, whatever the nesting. It is built when the first body that is no Python comes.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from lark import Lark
    from lark.exceptions import UnexpectedInput

__all__ = ["ShellSyntaxError", "joined_surrogates", "parse_shell"]

_CONSTANTS: Final[dict[str, Any]] = {
    "true": True,
    "false": False,
    "null": None,
    "undefined": None,
    "True": True,
    "False": False,
    "None": None,
    "NaN": float("nan"),
    "Infinity": float("inf"),
}
_ESCAPE: Final = re.compile(r"\\(u\{[0-9a-fA-F]{1,6}\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|\r\n|[\s\S])")
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0", "\n": "", "\r\n": ""}
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


Start = Literal["start", "statement"]
_HALVES: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
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

    grammar = resources.files(__package__).joinpath("shell.lark").read_text("utf-8")
    options: dict[str, Any] = {"maybe_placeholders": False, "keep_all_tokens": False, "transformer": _builder()}
    return Lark(grammar, parser="lalr", start=["start", "statement"], **options)


def _builder() -> Any:
    from lark import Token, Transformer

    def at(node: ast.expr, token: Token) -> ast.expr:
        node.lineno, node.col_offset = token.line or 1, (token.column or 1) - 1
        node.end_lineno, node.end_col_offset = token.end_line, (token.end_column or 1) - 1
        return node

    class Builder(Transformer[Token, Any]):
        """Builds Python's syntax tree while Lark reads."""

        def start(self, parts: list[Any]) -> tuple[ast.expr, bool]:
            values = [part for part in parts if isinstance(part, ast.expr)]
            whole = values[0] if len(values) == 1 else ast.copy_location(ast.Tuple(values, ast.Load()), values[0])
            return whole, len(parts) > len(values)

        def statement(self, parts: list[Any]) -> tuple[ast.expr, bool]:
            chain: ast.expr = at(ast.Name(str(parts[0]), ast.Load()), parts[0])
            steps = [part for part in parts[1:] if callable(part)]
            for step in steps:
                chain = step(chain)
            return chain, len(parts) - 1 > len(steps)

        def attribute(self, parts: list[Token]) -> Any:
            return lambda chain: at(ast.Attribute(chain, str(parts[0]), ast.Load()), parts[0])

        def method(self, parts: list[Any]) -> Any:
            name, *arguments = parts
            return lambda chain: at(
                ast.Call(at(ast.Attribute(chain, str(name), ast.Load()), name), arguments, []), name
            )

        def item(self, parts: list[Token]) -> Any:
            key = at(ast.Constant(_unescaped(parts[0][1:-1])), parts[0])
            return lambda chain: at(ast.Subscript(chain, key, ast.Load()), parts[0])

        def object(self, pairs: list[tuple[ast.expr, ast.expr]]) -> ast.expr:
            return ast.Dict([key for key, _ in pairs], [value for _, value in pairs])

        def pair(self, parts: list[ast.expr]) -> tuple[ast.expr, ast.expr]:
            return parts[0], parts[1]

        def bare_key(self, parts: list[Token]) -> ast.expr:
            return at(ast.Constant(str(parts[0])), parts[0])

        def number_key(self, parts: list[Token]) -> ast.expr:
            return at(ast.Constant(str(_number(parts[0]))), parts[0])

        def computed_key(self, parts: list[ast.expr]) -> ast.expr:
            return ast.List(parts, ast.Load())

        def array(self, parts: list[ast.expr]) -> ast.expr:
            return ast.List(parts, ast.Load())

        def string(self, parts: list[Token]) -> ast.expr:
            return at(ast.Constant(_unescaped(parts[0][1:-1])), parts[0])

        def number(self, parts: list[Token]) -> ast.expr:
            return at(ast.Constant(_number(parts[0])), parts[0])

        def name(self, parts: list[Token]) -> ast.expr:
            return at(_name(str(parts[0])), parts[0])

        def regex(self, parts: list[Token]) -> ast.expr:
            pattern, _, flags = parts[0][1:].rpartition("/")
            called = ast.Name("Regex", ast.Load())
            return at(ast.Call(called, [ast.Constant(pattern.replace("\\/", "/")), ast.Constant(flags)], []), parts[0])

        def call(self, parts: list[Any]) -> ast.expr:
            name, *arguments = parts[1:] if getattr(parts[0], "type", "") == "NEW" else parts
            return at(ast.Call(at(ast.Name(str(name), ast.Load()), name), arguments, []), name)

    return Builder()


def _name(name: str) -> ast.expr:
    return ast.Constant(_CONSTANTS[name]) if name in _CONSTANTS else ast.Name(name, ast.Load())


def _number(text: str) -> int | float:
    if "x" in text.lower():
        return int(text, 16)
    return int(text) if re.fullmatch(r"[+-]?\d{1,400}", text) else float(text.replace("Infinity", "inf"))


def _unescaped(text: str) -> str:
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
