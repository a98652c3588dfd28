"""Python's syntax tree, built while Lark reads MongoDB shell syntax; imported when the first such body comes."""

# ruff: noqa: D102 - the grammar says what each rule is

from __future__ import annotations

import ast
import re
from typing import Any, Final, TypeVar

from lark import Token, Transformer

from superduper_nb.magics.strings import unescaped

__all__ = ["TreeBuilder"]

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

_N = TypeVar("_N", bound=ast.expr)


class TreeBuilder(Transformer[Token, Any]):
    """Has a method for each rule of ``shell.lark``; those for steps of a chain return what appends the step."""

    def start(self, parts: list[Any]) -> tuple[ast.expr, bool]:
        values = [part for part in parts if isinstance(part, ast.expr)]
        whole = values[0] if len(values) == 1 else ast.copy_location(ast.Tuple(values, ast.Load()), values[0])
        return whole, len(parts) > len(values)

    def statement(self, parts: list[Any]) -> tuple[ast.expr, bool]:
        chain: ast.expr = _at(ast.Name(str(parts[0]), ast.Load()), parts[0])
        steps = [part for part in parts[1:] if callable(part)]
        for step in steps:
            chain = step(chain)
        return chain, len(parts) - 1 > len(steps)

    def attribute(self, parts: list[Token]) -> Any:
        return lambda chain: _at(ast.Attribute(chain, str(parts[0]), ast.Load()), parts[0])

    def method(self, parts: list[Any]) -> Any:
        name, *arguments = parts
        return lambda chain: _at(ast.Call(_at(ast.Attribute(chain, str(name), ast.Load()), name), arguments, []), name)

    def item(self, parts: list[Token]) -> Any:
        key = _at(ast.Constant(unescaped(parts[0][1:-1])), parts[0])
        return lambda chain: _at(ast.Subscript(chain, key, ast.Load()), parts[0])

    def object(self, pairs: list[tuple[ast.expr, ast.expr]]) -> ast.expr:
        return ast.Dict([key for key, _ in pairs], [value for _, value in pairs])

    def pair(self, parts: list[ast.expr]) -> tuple[ast.expr, ast.expr]:
        return parts[0], parts[1]

    def bare_key(self, parts: list[Token]) -> ast.expr:
        return _at(ast.Constant(str(parts[0])), parts[0])

    def number_key(self, parts: list[Token]) -> ast.expr:
        return _at(ast.Constant(str(_number(parts[0]))), parts[0])

    def computed_key(self, parts: list[ast.expr]) -> ast.expr:
        return ast.List(parts, ast.Load())

    def array(self, parts: list[ast.expr]) -> ast.expr:
        return ast.List(parts, ast.Load())

    def string(self, parts: list[Token]) -> ast.expr:
        return _at(ast.Constant(unescaped(parts[0][1:-1])), parts[0])

    def number(self, parts: list[Token]) -> ast.expr:
        return _at(ast.Constant(_number(parts[0])), parts[0])

    def name(self, parts: list[Token]) -> ast.expr:
        return _at(_name(str(parts[0])), parts[0])

    def regex(self, parts: list[Token]) -> ast.expr:
        pattern, _, flags = parts[0][1:].rpartition("/")
        called = ast.Name("Regex", ast.Load())
        return _at(ast.Call(called, [ast.Constant(pattern.replace("\\/", "/")), ast.Constant(flags)], []), parts[0])

    def call(self, parts: list[Any]) -> ast.expr:
        name, *arguments = parts[1:] if getattr(parts[0], "type", "") == "NEW" else parts
        return _at(ast.Call(_at(ast.Name(str(name), ast.Load()), name), arguments, []), name)


def _at(node: _N, token: Token) -> _N:
    """Give a node the place of a token."""
    node.lineno, node.col_offset = token.line or 1, (token.column or 1) - 1
    node.end_lineno, node.end_col_offset = token.end_line, (token.end_column or 1) - 1
    return node


def _name(name: str) -> ast.expr:
    return ast.Constant(_CONSTANTS[name]) if name in _CONSTANTS else ast.Name(name, ast.Load())


def _number(text: str) -> int | float:
    if "x" in text.lower():
        return int(text, 16)
    return int(text) if re.fullmatch(r"[+-]?\d{1,400}", text) else float(text.replace("Infinity", "inf"))
