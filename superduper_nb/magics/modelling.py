"""``model`` and ``predict``."""

from __future__ import annotations

import ast
import linecache
from typing import Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.line import Parser
from superduper_nb.widgets.listing import Note

__all__ = ["COMMANDS", "model", "predict"]

_FILE: Final = "<%%sddb model>"


def model(call: Call) -> Any:
    """Run the body as Python, and register what it defines: its last expression, function or class."""
    assert call.cell is not None  # the table checks that there is a body
    scope = dict(call.names) if call.scope is None else call.scope
    made = _made(call.cell, scope)
    obj = made() if isinstance(made, type) else made
    options = {name: getattr(call.args, name) for name in ("type", "batch_size", "device", "optimize")}
    given = {name: value for name, value in options.items() if value is not None}
    database = call.database
    jobs = database.create_model(call.args.id, obj, **given)
    if len(jobs):
        return jobs
    version = database.models.describe(call.args.id)["version"]
    return Note(f"{call.args.id}, version {version}: collection.predict({call.args.id!r}, x), or a watcher, applies it")


def _made(text: str, scope: dict[str, Any]) -> Any:
    """Run statements in `scope`; return what the last of them gives or defines."""
    try:
        tree = ast.parse(text, _FILE)
    except SyntaxError as error:
        where = f"in the body, line {error.lineno}, column {error.offset}"
        raise InvalidInputError(f"{where}: {error.msg}.") from None
    last = tree.body[-1] if tree.body else None
    linecache.cache[_FILE] = (len(text), None, text.splitlines(keepends=True), _FILE)  # for tracebacks and getsource
    if isinstance(last, ast.Expr):
        exec(compile(ast.Module(tree.body[:-1], []), _FILE, "exec"), scope)
        return eval(compile(ast.Expression(last.value), _FILE, "eval"), scope)
    name = _defined(last)
    exec(compile(tree, _FILE, "exec"), scope)
    return scope[name]


def _defined(last: ast.stmt | None) -> str:
    if isinstance(last, ast.FunctionDef | ast.ClassDef):
        return last.name
    if isinstance(last, ast.Assign) and isinstance(last.targets[-1], ast.Name):
        return last.targets[-1].id
    raise InvalidInputError(
        "the body ends in no model: let its last line be a function, a class, an assignment or an expression."
    )


def predict(call: Call) -> Any:
    """Apply a model to a text on the line, or to the body; with ``--many`` to each item of the list there."""
    value = _input(call)
    if not call.args.many:
        return call.database.predict(call.args.model, value, version=call.args.version)
    if not isinstance(value, list | tuple):
        raise InvalidInputError(
            f"with --many the body is a list of inputs, not a value of type {type(value).__name__}."
        )
    return call.database.predict_many(call.args.model, value, version=call.args.version)


def _input(call: Call) -> Any:
    text = call.args.text
    if (text is None) == (call.body is None):
        raise InvalidInputError(
            "predict needs one input: a text on the line, or a value in the body, below %%sddb predict."
        )
    return call.value() if text is None else text


def _model_options(parser: Parser) -> None:
    parser.add_argument("id", metavar="NAME", help="its name")
    parser.add_argument(
        "--type", metavar="TYPE", help="how outputs are stored, such as vector; default: by their class"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="inputs a batch")
    parser.add_argument("--device", metavar="DEVICE", help="a torch device; default: the GPU where there is one")
    parser.add_argument("--optimize", metavar="HOW", help="a quicker variant: compile, int8 or bf16")


def _predict_options(parser: Parser) -> None:
    parser.add_argument("model", help="the model")
    parser.add_argument("text", nargs="?", help="the input, where it is a text; others stand in the body")
    parser.add_argument("--many", action="store_true", help="the body is a list of inputs")
    parser.add_argument("--version", type=int, metavar="N", help="of the model; default: the newest")


_MODEL: Final = """
  %%sddb model length --type vector
  def length(text):
      return [float(len(text))]

The body is Python and runs as any other cell does. A class is called without arguments.""".lstrip("\n")

COMMANDS: Final[tuple[Command, ...]] = (
    Command(
        "model",
        model,
        "define a model and register it",
        _model_options,
        "must",
        target=True,
        examples=_MODEL,
        twins=('docs.create_model("length", length, type="vector")',),
    ),
    Command(
        "predict",
        predict,
        "apply a model",
        _predict_options,
        body="may",
        target=True,
        examples='  %sddb predict minilm "a red scarf"\n\n  %%sddb predict clip -o vector\n  picture',
        twins=('docs.predict("minilm", "a red scarf")', 'docs.predict_many("minilm", ["a red scarf", "a hat"])'),
    ),
)
