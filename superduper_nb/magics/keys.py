"""The rules of keys and Extended JSON, applied to the dicts and lists that make up the value of a body."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.strings import joined_surrogates
from superduper_nb.magics.syntax import placed

__all__ = ["Namespace", "shaped"]

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
class Namespace:
    """What the rules of keys need: the user's names, and the text for positions."""

    text: str
    names: Mapping[str, Any]

    def refusal(self, message: str, node: ast.expr) -> InvalidInputError:
        """Return an error that tells where `node` stands."""
        return InvalidInputError(placed(self.text, message, node.lineno, node.col_offset))


def shaped(node: ast.expr, space: Namespace) -> ast.expr:
    """Apply the rules of keys and wrappers to the dicts and lists that make up the value."""
    if isinstance(node, ast.List | ast.Tuple):
        node.elts = [shaped(part, space) for part in node.elts]
    elif isinstance(node, ast.Dict):
        node.keys = [key and _key(key, space) for key in node.keys]
        node.values = [shaped(value, space) for value in node.values]
        return _unwrapped(node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        node.value = joined_surrogates(node.value)
    return node


def _key(key: ast.expr, space: Namespace) -> ast.expr:
    if isinstance(key, ast.List) and len(key.elts) == 1:
        return key.elts[0]
    if isinstance(key, ast.Attribute):
        raise space.refusal(f'a field with dots is written in quotes, "{ast.unparse(key)}".', key)
    if not isinstance(key, ast.Name):
        return shaped(key, space)
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
