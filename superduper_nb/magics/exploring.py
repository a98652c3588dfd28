"""``explore`` and ``map``: looking around."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from superduper_nb.magics.body import parse
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.line import Parser
from superduper_nb.magics.operators import check_reading
from superduper_nb.magics.reading import whole_argument
from superduper_nb.widgets.embedding import LIMIT
from superduper_nb.widgets.explore import MOST, Explorer
from superduper_nb.widgets.map import LAYOUTS, EmbeddingMap

__all__ = ["COMMANDS", "explore", "map"]


def explore(call: Call) -> Explorer:
    """Show documents with buttons for more and for less like each."""
    filter, args = _filter(call), call.args
    like = filter.pop("$like", None)
    names = dict(call.names)

    def read(text: str) -> Mapping[str, Any]:
        return _checked(parse(text, names).evaluate(names))

    name = call.connection.alias if args.target is None else ""
    return Explorer(
        call.collection, filter, like=like, n=args.n, semantic_index=args.index, name=name or "docs", read=read
    )


def map(call: Call) -> EmbeddingMap:
    """Show the vectors of a semantic index as points of a plane."""
    args = call.args
    options = {"semantic_index": args.index, "label": args.label, "color": args.color, "layout": args.layout}
    return EmbeddingMap(call.collection, _filter(call), limit=args.n, **options)


def _filter(call: Call) -> dict[str, Any]:
    return _checked(call.filter())


def _checked(filter: Any) -> dict[str, Any]:
    check_reading(filter)
    return dict(filter)


def _explore_options(parser: Parser) -> None:
    told = f"how many (default 12, at most {MOST})"
    parser.add_argument("-n", type=whole_argument, default=12, metavar="N", help=told)
    parser.add_argument("--index", metavar="ID", help="the semantic index; needed where the collection has several")


def _map_options(parser: Parser) -> None:
    parser.add_argument("-n", type=whole_argument, default=LIMIT, metavar="N", help=f"how many (default {LIMIT})")
    parser.add_argument("--index", metavar="ID", help="whose vectors; needed where the collection has several")
    parser.add_argument("--label", metavar="FIELD", help="shown when a point is pointed at; default: the indexed field")
    parser.add_argument("--color", metavar="FIELD", help="colours the points")
    parser.add_argument("--layout", choices=LAYOUTS, default="pca", help="umap is computed by a job")


_EXPLORE: Final = """
  %%sddb explore -n 24 -o seen
  {"price": {"$lt": 50}, "$like": {"text": "something warm"}}

seen.result holds the documents, seen.query the Python that finds them.""".lstrip("\n")

_MAP: Final = """
  %sddb map --color brand --layout umap -o seen

Draw a lasso (press the mouse a moment, then move): seen.filter is the filter for what is inside, seen.documents() what
it finds. The layout is computed by seen.job; seen.job.cancel() ends it, and the principal components stay.
Needs the extra map.""".lstrip("\n")

COMMANDS: Final = (
    Command(
        "explore",
        explore,
        "look around: more like this",
        _explore_options,
        "may",
        target=True,
        examples=_EXPLORE,
        twins=('superduper_nb.widgets.explore.Explorer(docs, like={"text": "warm scarf"}, n=5)',),
    ),
    Command(
        "map",
        map,
        "draw the vectors as a map",
        _map_options,
        "may",
        target=True,
        examples=_MAP,
        twins=('superduper_nb.widgets.map.EmbeddingMap(docs, color="color")', 'docs.lay_out("meaning", begin=False)'),
    ),
)
