"""``insert``, ``update`` and ``delete``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.line import Parser
from superduper_nb.magics.operators import check_reading
from superduper_nb.magics.working import follow
from superduper_nb.widgets.display import sentence

__all__ = ["COMMANDS", "delete", "insert", "update"]


def insert(call: Call) -> Any:
    """Insert the document, or the list of documents, in the body; the jobs that follow show their progress."""
    return _followed(call, call.collection.insert_many(_documents(_given(call))))


def _followed(call: Call, result: Any) -> Any:
    """Return a write result; with ``--wait`` when its jobs have ended, of which the view is what is shown then."""
    if call.args.wait and (jobs := list(result.jobs.values())):
        follow(jobs)
        print(sentence(result))
        call.quiet = True
    return result


def _given(call: Call) -> Any:
    """Return what is to be inserted: the body, or the user's variable that ``--from`` names."""
    name = call.args.source
    if name is None:
        return call.value()
    if call.body is not None:
        raise InvalidInputError("insert takes a body or --from, not both.")
    if name not in call.names:
        raise InvalidInputError(f"--from {name}: there is no such variable.")
    return call.names[name]


def _documents(value: Any) -> list[Any]:
    if type(value).__name__ == "DataFrame" and hasattr(value, "to_dict"):
        value = value.to_dict("records") if hasattr(value, "iloc") else value.to_dicts()
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


def update(call: Call) -> Any:
    """Change the documents that the filter matches; the body is ``filter, change`` as in mongosh's updateMany."""
    filter, change = _filter_and_change(call.value())
    collection, args = call.collection, call.args
    if not filter and not args.yes and not args.one:
        count = collection.estimated_document_count()
        raise InvalidInputError(f"that changes all {count:,} documents of {call.target}: say --yes, or give a filter.")
    change_some = collection.update_one if args.one else collection.update_many
    return _followed(call, change_some(filter, change, upsert=args.upsert))


def _filter_and_change(value: Any) -> tuple[dict[str, Any], Any]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not isinstance(value[0], Mapping):
        raise InvalidInputError('the body is "filter, change", such as {"price": 5}, {"$set": {"price": 6}}.')
    filter, change = value
    check_reading(filter)
    if "$like" in filter:
        raise InvalidInputError("update takes no $like: every document is more or less like another.")
    if isinstance(change, Mapping) and not all(str(key).startswith("$") for key in change):
        raise InvalidInputError('the change is made of operators, such as {"$set": {"price": 6}}.')
    return dict(filter), change


def delete(call: Call) -> Any:
    """Delete the documents that the filter in the body matches; says how many, and needs ``--yes``."""
    filter, collection = call.filter(), call.collection
    check_reading(filter)
    if "$like" in filter:
        raise InvalidInputError("delete takes no $like: every document is more or less like another.")
    if call.args.yes:
        return collection.delete_many(filter)
    count = collection.count_documents(filter)
    every = ", which is all of them" if count and not filter else ""
    raise InvalidInputError(
        f"that deletes {count:,} document{'' if count == 1 else 's'} of {call.target}{every}: say --yes to do it."
    )


def _insert_options(parser: Parser) -> None:
    parser.add_argument("--from", dest="source", metavar="VARIABLE", help="a list or data frame of yours, for a body")
    _wait_option(parser)


def _wait_option(parser: Parser) -> None:
    parser.add_argument("--wait", action="store_true", help="until the jobs that follow have ended")


def _update_options(parser: Parser) -> None:
    parser.add_argument("--one", action="store_true", help="only the first document that matches")
    parser.add_argument("--upsert", action="store_true", help="insert a document where none matches")
    parser.add_argument("--yes", action="store_true", help="also with an empty filter, which matches everything")
    _wait_option(parser)


def _delete_options(parser: Parser) -> None:
    parser.add_argument("--yes", action="store_true", help="do it; without, it only says how many it would be")


_UPDATE: Final = """
  %%sddb update
  {"color": "red"}, {"$set": {"price": 30}}""".lstrip("\n")

COMMANDS: Final = (
    Command(
        "insert",
        insert,
        "insert documents",
        _insert_options,
        body="may",
        target=True,
        examples='  %%sddb insert\n  [{"text": "a red scarf"}]\n\n  %sddb insert --from frame',
        twins=('docs.insert_many([{"text": "red scarf"}])', 'docs.insert_many(frame.to_dict("records"))'),
    ),
    Command(
        "update",
        update,
        "change documents",
        _update_options,
        body="must",
        target=True,
        examples=_UPDATE,
        twins=('docs.update_many({"color": "red"}, {"$set": {"price": 30}})',),
    ),
    Command(
        "delete",
        delete,
        "delete documents",
        _delete_options,
        body="must",
        target=True,
        examples='  %%sddb delete --yes\n  {"price": {"$gt": 100}}',
        twins=('docs.delete_many({"price": {"$gt": 100}})',),
    ),
)
