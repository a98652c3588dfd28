"""``insert`` and ``predict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.line import Parser

__all__ = ["COMMANDS", "insert", "predict"]


def insert(call: Call) -> Any:
    """Insert the document, or the list of documents, in the body; the jobs that follow show their progress."""
    return call.collection.insert_many(_documents(call.value()))


def _documents(value: Any) -> list[Any]:
    documents = [value] if isinstance(value, Mapping) else value
    if not isinstance(documents, list | tuple) or not documents:
        kind = "an empty list" if documents in ([], ()) else f"a value of type {type(value).__name__}"
        raise InvalidInputError(f"the body is a document or a list of them, not {kind}.")
    for number, document in enumerate(documents):
        if not isinstance(document, Mapping):
            raise InvalidInputError(
                f"item {number} of the list is no document but a value of type {type(document).__name__}."
            )
    return list(documents)


def predict(call: Call) -> Any:
    """Apply a model to the value in the body, or with ``--many`` to each item of the list there."""
    value = call.value()
    if not call.args.many:
        return call.database.predict(call.args.model, value, version=call.args.version)
    if not isinstance(value, list | tuple):
        raise InvalidInputError(
            f"with --many the body is a list of inputs, not a value of type {type(value).__name__}."
        )
    return call.database.predict_many(call.args.model, value, version=call.args.version)


def _predict_options(parser: Parser) -> None:
    parser.add_argument("model", help="the model")
    parser.add_argument("--many", action="store_true", help="the body is a list of inputs")
    parser.add_argument("--version", type=int, metavar="N", help="of the model; default: the newest")


COMMANDS: Final = (
    Command(
        "insert",
        insert,
        "insert documents",
        body="must",
        target=True,
        examples='  %%sddb insert\n  [{"text": "a red scarf"}]',
    ),
    Command(
        "predict",
        predict,
        "apply a model",
        _predict_options,
        body="must",
        target=True,
        examples='  %%sddb predict minilm -o vector\n  "a red scarf"',
    ),
)
