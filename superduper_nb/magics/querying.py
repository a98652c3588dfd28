"""``find``, ``find_one``, ``count``, ``aggregate`` and ``distinct``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.body import parse
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.operators import check_reading
from superduper_nb.magics.reading import NEAREST, aggregate_options, distinct_options, find_one_options, find_options
from superduper_nb.widgets.explanation import Explanation
from superduper_nb.widgets.lazy import Decoded
from superduper_nb.widgets.listing import Note, Values
from superduper_nb.widgets.results import Document, Facts, Result

if TYPE_CHECKING:
    from superduper_nb.client import Collection

__all__ = ["COMMANDS", "aggregate", "count", "distinct", "find", "find_one", "search_words"]

COUNT_MS: Final = 500
"""Longest time that counting the rest may take: the footer then says no total."""
PATIENCE_S: Final = 30.0
"""So long a find that would show nothing waits for the first outputs of what matches."""
_LOOK_EVERY_S: Final = 0.25


def find(call: Call) -> Any:
    """Find documents by the filter in the body; with ``$like`` in it, by meaning."""
    filter = _filter(call)
    options = _options(filter, call)
    if call.args.explain:
        return _explained(call, filter, options)
    started = time.perf_counter()
    limit = options.get("limit", 0)
    one_more = {"limit": limit + 1} if limit else {}  # tells whether there are more
    cursor = call.collection.find(filter, **options | one_more, raw=True)
    stored = list(cursor) or _first_of(cursor, call, filter, options)
    facts = Facts(
        query=_query(call, "find", _near(call) | options), source=call.source, words=search_words(filter, options)
    )
    if (reply := cursor.reply) is not None:
        searched = {name: getattr(reply, name) for name in ("index", "strategy", "candidates", "pending")}
        facts = replace(facts, **searched)
    elif limit and len(stored) > limit:
        facts = replace(facts, more=True, total=None if call.args.skip else _total(call.collection, filter))
    documents = Decoded(stored[: limit or None], call.collection.decoded)
    return _shown(call, documents, replace(facts, took_ms=_since(started)))


def _first_of(cursor: Any, call: Call, filter: Mapping[str, Any], options: Mapping[str, Any]) -> list[Any]:
    """Return what a search finds that found nothing, once there are outputs of documents that match.

    A find in the cell below an insert is often quicker than the insert's job. It doesn't wait for all of it: of a
    hundred thousand documents the first thousand answer.
    """
    found: list[Any] = []
    rest = {name: value for name, value in filter.items() if name != "$like"}
    narrow = options.keys() & {"min_score", "max_score", "skip"}  # with these, nothing may well be the answer
    if narrow or cursor.reply is None or not call.collection.find_one(rest, {"_id": 1}, raw=True):
        return found
    deadline, waits = time.monotonic() + PATIENCE_S, True
    while not found and waits and time.monotonic() < deadline:
        waits = cursor.reply.pending > 0  # if not, the job may have ended just after the search: one more look
        time.sleep(_LOOK_EVERY_S if waits else 0)
        call.collection.catch_up()
        found = list(cursor.rewind())
    return found


def _explained(call: Call, filter: Mapping[str, Any], options: Mapping[str, Any]) -> Explanation:
    started = time.perf_counter()
    facts = call.collection.find(filter, **options).explain()
    took_ms = _since(started)
    searched = facts.get("search")
    measure = call.collection.semantic_indexes.describe(searched["index"])["measure"] if searched else ""
    return Explanation(facts, measure=measure, took_ms=took_ms)


def find_one(call: Call) -> Document | None:
    """Find the first document that the filter in the body matches, or the nearest."""
    filter = _filter(call)
    document = call.collection.find_one(filter, **_options(filter, call))
    if document is None:
        print("no document matches")
        return None
    return Document(document)


def count(call: Call) -> int:
    """Count the documents that the filter in the body matches."""
    filter = _filter(call)
    if "$like" in filter:
        raise InvalidInputError("count takes no $like: every document is more or less like another.")
    return call.collection.count_documents(filter)


def distinct(call: Call) -> Values:
    """List the distinct values of a field."""
    filter = _filter(call)
    options = _options(filter, call)
    return Values(call.collection.find(filter, **options).distinct(call.args.field), name=call.args.field)


def aggregate(call: Call) -> Any:
    """Run the pipeline in the body."""
    pipeline, args = call.value(), call.args
    if not isinstance(pipeline, list | tuple):
        kind = type(pipeline).__name__
        raise InvalidInputError(f'the body is a pipeline: a list of stages such as [{{"$match": …}}], not {kind}.')
    check_reading(pipeline)
    limit = call.options.fetch_limit if args.n is None else args.n
    options = {"n": limit or call.options.fetch_limit, "semantic_index": args.index} if _searches(pipeline) else {}
    options = {name: value for name, value in options.items() if value is not None}
    started = time.perf_counter()
    with call.collection.aggregate(list(pipeline), **options) as cursor:
        documents = list(islice(cursor, limit + 1 if limit else None))
    more = bool(limit) and len(documents) > limit
    facts = Facts(query=_query(call, "aggregate", options), source=call.source, more=more, took_ms=_since(started))
    return _shown(call, documents[: limit or None], facts)


def _filter(call: Call) -> dict[str, Any]:
    filter = call.filter()
    if near := _near(call):
        if "$like" in filter:
            raise InvalidInputError("--like and $like in the body say the same: give one of them.")
        filter["$like"] = near["like"]
    check_reading(filter)
    return filter


def _near(call: Call) -> dict[str, Any]:
    """Return what ``--like`` gives, as an argument of `Collection.find`."""
    near = _examples(call, getattr(call.args, "like", None))
    return {} if near is None else {"like": near}


def _searches(pipeline: Sequence[Any]) -> bool:
    return any(isinstance(stage, Mapping) and "$like" in stage for stage in pipeline[:2])


def search_words(filter: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts that are searched for, so that their words can be marked in the result."""
    like = filter.get("$like")
    examples = [like] if isinstance(like, Mapping) else like if isinstance(like, list | tuple) else []
    texts = [value for each in examples if isinstance(each, Mapping) for name, value in each.items() if name != "_id"]
    return tuple(text for text in [*texts, options.get("text")] if isinstance(text, str))


def _options(filter: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """Return the arguments of `Collection.find` that the line stands for."""
    args = call.args
    ranking = {name: getattr(args, option) for name, option in _RANKING.items()} | {
        "unlike": _examples(call, args.unlike)
    }
    choosing = {"skip": args.skip, "sort": args.sort, "projection": args.fields, "features": args.features}
    options = {name: value for name, value in (ranking | choosing).items() if value is not None and value is not False}
    if "$like" in filter:
        if args.n == 0:
            raise InvalidInputError("-n 0 (all documents) does not go with $like: say how many of the nearest.")
        return {"n": NEAREST if args.n is None else args.n, **options}
    if unused := [name for name in ranking if name in options]:
        option = "--" + _RANKING.get(unused[0], unused[0]).replace("_", "-")
        raise InvalidInputError(
            f'{option} needs a $like in the body, such as {{"$like": {{"text": "warm"}}}}, or --like.'
        )
    limit = call.options.fetch_limit if args.n is None else args.n
    return {"limit": limit, **options} if limit else options


_RANKING: Final[Mapping[str, str]] = {
    "semantic_index": "index",
    **{name: name for name in ("exact", "min_score", "max_score", "diversity", "text", "group_by")},
}
"""Arguments of `Collection.find` that go with ``$like``, and the options that give them."""


def _examples(call: Call, texts: Sequence[str] | None) -> Any:
    """Return examples that the line gives, each an expression in the language of the body; None for none."""
    examples = [parse(text, call.names).evaluate(call.names) for text in texts or ()]
    return examples[0] if len(examples) == 1 else examples or None


def _total(collection: Collection[dict[str, Any]], filter: Mapping[str, Any]) -> int | None:
    from pymongo.errors import PyMongoError

    try:
        if not filter:
            return collection.estimated_document_count(maxTimeMS=COUNT_MS)
        return collection.count_documents(filter, maxTimeMS=COUNT_MS)
    except PyMongoError:  # too slow, or an operator that can't be counted: the footer says only that there are more
        return None


def _query(call: Call, method: str, options: Mapping[str, Any]) -> str:
    """Return the Python that does the same."""
    name, lines = call.connection.alias, []
    if call.args.target is not None or not name:
        target, settings = call.target, call.connection.settings
        name = f"client[{target.database!r}][{target.collection!r}]"
        lines += ["import superduper_nb as sd", f"client = sd.connect({_arguments(settings)})"]
    if call.body and (needs := call.body.needs(call.names)):
        lines.append(f"from superduper_nb.magics.constructors import {', '.join(needs)}")
    body = call.body.python if call.body else "{}"
    given = f", {_arguments(options)}" if options else ""
    return "\n".join([*lines, f"{name}.{method}({body}{given})"])


def _arguments(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def _shown(call: Call, documents: Sequence[dict[str, Any]], facts: Facts) -> Any:
    form = call.args.form
    result = Result(
        documents, facts=facts, limit=call.options.display_limit, layout="gallery" if form == "gallery" else "table"
    )
    if form == "pandas":
        return result.to_pandas()
    return Note(result.to_json() or "") if form == "json" else result


_BODY: Final = """
  %%sddb find -n 6 -o hits
  {"price": {"$lt": limit}, "$like": {"text": "something warm"}}

  %%sddb warm << find --sort -price
  {price: {$lt: 50}, name: /^wool/i};

  %sddb find --like '{text: "something warm"}' -n 5

  %%sddb find --unlike '{text: "cotton"}' --min-score 0.3 --group-by brand
  {"$like": {"text": "something warm"}}

The body is a Python expression with your variables, or mongosh syntax. -o binds and shows, << binds only.""".lstrip(
    "\n"
)

COMMANDS: Final = (
    Command(
        "find",
        find,
        "find documents, by filter and by meaning",
        find_options,
        "may",
        target=True,
        examples=_BODY,
        twins=('docs.find({"price": {"$lt": 50}}, like={"text": "warm scarf"}, n=5)',),
    ),
    Command(
        "find_one",
        find_one,
        "find the first or nearest document",
        find_one_options,
        "may",
        target=True,
        twins=('docs.find_one({"price": {"$lt": 50}})',),
    ),
    Command(
        "count",
        count,
        "count documents",
        body="may",
        target=True,
        twins=('docs.count_documents({"price": {"$lt": 50}})',),
    ),
    Command(
        "aggregate",
        aggregate,
        "run a pipeline",
        aggregate_options,
        "must",
        target=True,
        twins=('docs.aggregate([{"$group": {"_id": "$color", "n": {"$sum": 1}}}, {"$sort": {"_id": 1}}])',),
    ),
    Command(
        "distinct",
        distinct,
        "list the distinct values of a field",
        distinct_options,
        "may",
        target=True,
        twins=('docs.distinct("color", {"price": {"$lt": 50}})',),
    ),
)
