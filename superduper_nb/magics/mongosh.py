"""One expression of mongosh: ``db.products.find({price: {$lt: 50}}).sort({price: -1}).limit(5)``.

Only what is named here runs, and it runs as the sub-command of that name: nothing of the expression is evaluated but
the arguments. What writes has sub-commands of its own, which say how many documents they mean.
"""

from __future__ import annotations

import ast
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.errors import did_you_mean
from superduper_nb.magics import querying
from superduper_nb.magics.body import Body, parse_statement
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.looking import collections
from superduper_nb.magics.reading import form_options

__all__ = ["COMMANDS", "mongosh"]

_READING: Final[Mapping[str, tuple[str, ...]]] = {
    "find": ("filter", "fields"),
    "findOne": ("filter", "fields"),
    "countDocuments": ("filter",),
    "distinct": ("field", "filter"),
    "aggregate": ("filter",),
}
"""What may be asked of a collection, and what its arguments are."""
_SHAPING: Final = ("sort", "limit", "skip", "projection", "explain", "count", "toArray", "pretty")
"""What may be asked of a cursor."""
_SAME: Final[Mapping[str, str]] = {
    "find_one": "findOne",
    "count_documents": "countDocuments",
    "count": "countDocuments",
    "to_list": "toArray",
    "project": "projection",
    "size": "count",
    "itcount": "count",
}
_WRITING: Final[Mapping[str, str]] = {"insert": "insert", "update": "update", "replace": "update", "delete": "delete"}
_RUN: Final[Mapping[str, Callable[[Call], Any]]] = {
    "find": querying.find,
    "findOne": querying.find_one,
    "countDocuments": querying.count,
    "distinct": querying.distinct,
    "aggregate": querying.aggregate,
}


@dataclass(frozen=True, slots=True)
class Step:
    """A method that is called, or (without arguments) a name that is followed."""

    name: str
    node: ast.expr
    arguments: tuple[ast.expr, ...] | None = None


def mongosh(call: Call) -> Any:
    """Run the expression in the body."""
    body = parse_statement(call.cell or "")
    call.quiet = body.quiet
    steps = _steps(body)
    path = _path(steps)
    if len(path) == len(steps):
        raise body.refusal(f"it ends too early: db.collection.find(…), with one of {', '.join(_READING)}.", body.tree)
    asked, *shaping = steps[len(path) :]
    names = [step.name if step.arguments is None else _text(body, step) for step in path]
    if asked.name == "getCollectionNames" and not names:
        return collections(call)
    return _asked(call, body, ".".join(names), asked, shaping)


def _asked(call: Call, body: Body, collection: str, asked: Step, shaping: list[Step]) -> Any:
    name = _checked(body, asked, _READING, "a collection")
    if not collection:
        raise body.refusal(f"db has no {name}: write db.collection.{name}(…).", asked.node)
    defaults = vars(_FIND.parser.read(()))  # whatever options there are: an expression names few of them
    args = Namespace(**{**defaults, **vars(call.args), "target": f"{call.target.database}.{collection}"})
    args.n = 1 if name == "findOne" else None
    inner = Call(args, call.connections, call.names, options=call.options)
    given = dict(zip(_READING[name], _bounded(body, asked, len(_READING[name])), strict=False))
    inner.body = body.part(given["filter"], call.names) if "filter" in given else None
    for option in ("field", "fields"):
        if option in given:
            setattr(args, option, body.part(given[option], call.names).evaluate(call.names))
    for step in shaping:
        name = _shape(inner, body, name, step)
    return _RUN[name](inner)


def _shape(call: Call, body: Body, asked: str, step: Step) -> str:
    """Apply a cursor's method to the arguments of the sub-command; return which sub-command it is now."""
    name = _checked(body, step, _SHAPING, "a cursor")
    if asked != "find" and name not in ("toArray", "pretty"):
        raise body.refusal(f"{name} follows find(…), not {asked}(…).", step.node)
    takes_value = name in ("sort", "limit", "skip", "projection")
    given = [body.part(each, call.names).evaluate(call.names) for each in _bounded(body, step, 1)]
    if takes_value and not given:
        raise body.refusal(f"{name} needs a value, such as {_EXAMPLES[name]}.", step.node)
    if name in ("limit", "skip") and (not isinstance(given[0], int) or isinstance(given[0], bool) or given[0] < 0):
        raise body.refusal(f"{name} takes a whole number from 0 on, such as {_EXAMPLES[name]}.", step.node)
    if name in ("sort", "projection") and not isinstance(given[0], Mapping):
        raise body.refusal(f"{name} takes fields, such as {_EXAMPLES[name]}.", step.node)
    args = call.args
    match name:
        case "sort":
            args.sort = list(given[0].items())
        case "limit":
            args.n = given[0]
        case "skip":
            args.skip = given[0]
        case "projection":
            args.fields = dict(given[0])
        case "explain":
            args.explain = True
        case "count":
            return "countDocuments"
    return asked


def _steps(body: Body) -> list[Step]:
    """Take the chain ``db.a.b(…)["c"]`` apart."""
    steps: list[Step] = []
    node = body.tree
    while not isinstance(node, ast.Name):
        arguments: tuple[ast.expr, ...] | None = None
        called = node
        if isinstance(node, ast.Call):
            if node.keywords or any(isinstance(each, ast.Starred) for each in node.args):
                raise body.refusal("mongosh has no keyword arguments: write db.collection.find({…}).limit(5).", node)
            arguments, node = tuple(node.args), node.func
        if isinstance(node, ast.Attribute):
            steps.append(Step(node.attr, called, arguments))
            node = node.value
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and arguments is None:
            steps.append(Step(str(node.slice.value), called))
            node = node.value
        else:
            raise body.refusal(_EXPECTED, node)
    if node.id != "db" or not steps:
        raise body.refusal(_EXPECTED, node)
    return steps[::-1]


def _path(steps: list[Step]) -> list[Step]:
    """Return the steps that name the collection."""
    path: list[Step] = []
    for step in steps:
        if step.arguments is not None and not (step.name == "getCollection" and not path):
            break
        path.append(step)
    return path


def _text(body: Body, step: Step) -> str:
    (name,) = _bounded(body, step, 1) or (None,)
    if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
        raise body.refusal(
            'getCollection takes the name of a collection, such as getCollection("products").', step.node
        )
    return name.value


def _checked(body: Body, step: Step, allowed: Mapping[str, Any] | tuple[str, ...], of: str) -> str:
    """Return the name of a method under which it is known here."""
    name = step.name if step.name in allowed else _SAME.get(step.name, "")
    if name in allowed:
        return name
    for beginning, command in _WRITING.items():
        if step.name.startswith(beginning):
            raise body.refusal(f"{step.name} writes, and this only reads: use %%sddb {command}.", step.node)
    what = f"{step.name} is not among what runs here.{did_you_mean(step.name, allowed)}"
    raise body.refusal(f"{what} Everything else of {of} is there in Python.", step.node)


def _bounded(body: Body, step: Step, most: int) -> tuple[ast.expr, ...]:
    arguments = step.arguments or ()
    if len(arguments) > most:
        raise body.refusal(f"{step.name} takes at most {most} argument{'s' * (most > 1)} here.", step.node)
    return arguments


_EXPECTED: Final = (
    "without a sub-command, the body is one expression that begins with db, such as db.products.find({price: 5}). "
    "For a filter alone write %%sddb find."
)
_EXAMPLES: Final = {"sort": "{price: -1}", "limit": "5", "skip": "10", "projection": "{text: 1}"}
_FIND: Final = next(command for command in querying.COMMANDS if command.name == "find")
COMMANDS: Final = (
    Command(
        "mongosh",
        mongosh,
        "run one expression of mongosh that reads; a body without a sub-command is one",
        form_options,
        body="must",
        target=True,
        examples="  %%sddb\n  db.products.find({price: {$lt: 50}}).sort({price: -1}).limit(5)",
        twins=('docs.find({"price": {"$lt": 50}}).sort({"price": -1}).limit(5)',),
    ),
)
