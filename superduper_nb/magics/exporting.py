"""``export``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.line import Parser
from superduper_nb.magics.operators import check_reading
from superduper_nb.magics.reading import fields_argument, sort_argument, whole_argument
from superduper_nb.widgets.export import checked_path, save
from superduper_nb.widgets.listing import Note

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COMMANDS", "export"]

_LOSSLESS: Final = (".json", ".jsonl")


def export(call: Call) -> Note:
    """Write a result, or what the filter in the body matches, to a file."""
    args = call.args
    path = checked_path(args.path, overwrite=args.overwrite)
    documents = _matching(call, path) if args.source is None else _held(call)
    count = save(documents, path, overwrite=args.overwrite)
    return Note(f"{count:,} document{'' if count == 1 else 's'} written to {path} ({path.stat().st_size:,} bytes)")


def _held(call: Call) -> Iterable[dict[str, Any]]:
    """Return the documents that a variable holds."""
    name = call.args.source
    if call.body or call.args.sort or call.args.fields or call.args.n:
        raise InvalidInputError(f"--from {name} writes what the variable holds: no filter, --fields, --sort or -n.")
    if name not in call.names:
        raise InvalidInputError(f"there is no variable {name!r}.{did_you_mean(name, call.names)}")
    held = call.names[name]
    if not isinstance(held, Iterable) or isinstance(held, str | bytes | Mapping):
        raise InvalidInputError(f"{name} is no result and no list of documents: it is of type {type(held).__name__}.")
    documents = list(held)
    if wrong := next((part for part in documents if not isinstance(part, Mapping)), None):
        raise InvalidInputError(f"{name} holds something of type {type(wrong).__name__}: documents are written.")
    return [dict(document) for document in documents]


def _matching(call: Call, path: Path) -> Iterator[dict[str, Any]]:
    """Yield what matches; for JSON as MongoDB holds it, so that an import brings back the same."""
    filter, args = call.filter(), call.args
    if "$like" in filter:
        raise InvalidInputError("export takes no $like: find first, then export the result with --from.")
    check_reading(filter)
    options = {"projection": args.fields, "sort": args.sort, "limit": args.n}
    given = {name: value for name, value in options.items() if value is not None}
    for document in call.collection.find(filter, raw=path.suffix.lower() in _LOSSLESS, **given):
        document.pop("_sddb", None)  # bookkeeping of this cluster: nothing that another place can use
        yield document


def _export_options(parser: Parser) -> None:
    parser.add_argument("path", metavar="FILE", help="ends in .csv, .json, .jsonl or .parquet")
    parser.add_argument("--from", dest="source", metavar="VARIABLE", help="write the result in this variable instead")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("-n", type=whole_argument, metavar="N", help="how many at most (default: all)")
    parser.add_argument("--sort", type=sort_argument, metavar="FIELDS", help="price,-rating: in this order")
    parser.add_argument(
        "--fields", type=fields_argument, metavar="FIELDS", help="text,price: only these; -vector: all but this"
    )


_EXPORT: Final = """
  %sddb export hits.csv --from hits
  %sddb export products.jsonl

  %%sddb export cheap.parquet --fields -_outputs
  {"price": {"$lt": 50}}

.json and .jsonl hold MongoDB Extended JSON, which mongoimport reads; .csv and .parquet what notebooks compute with.
Of a result in hand, hits.save("hits.csv").""".lstrip("\n")

COMMANDS: Final = (
    Command(
        "export",
        export,
        "write documents to a file",
        _export_options,
        "may",
        target=True,
        examples=_EXPORT,
        twins=('superduper_nb.widgets.export.save(docs.find(), "docs.csv")',),
    ),
)
