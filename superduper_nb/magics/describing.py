"""``describe``, ``stats``, ``types``, ``config`` and ``trust``: what something is like, and whose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.magics.fields import sampled
from superduper_nb.magics.line import Parser
from superduper_nb.widgets.listing import Listing, Note
from superduper_nb.widgets.results import Document
from superduper_nb.widgets.values import Bytes

__all__ = ["COMMANDS", "KINDS", "component", "config", "describe", "stats", "trust", "types"]

KINDS: Final[Mapping[str, str]] = {
    "models": "database",
    "types": "database",
    "measures": "database",
    "losses": "database",
    "metrics": "database",
    "splitters": "database",
    "functions": "database",
    "trainers": "database",
    "watchers": "collection",
    "semantic_indexes": "collection",
    "imputations": "collection",
    "neighbourhoods": "collection",
    "validation_sets": "collection",
}
"""What is registered, and whether with the database or with a collection."""
_SHORT: Final = {"indexes": "semantic_indexes"}


def describe(call: Call) -> Listing | Document:
    """Describe the documents of the collection in use, or one component, such as ``models/minilm``."""
    if call.args.what:
        registry, id = component(call, call.args.what)
        return Document(registry.describe(id))
    collection = call.collection
    fields, size = sampled(collection, call.args.n)
    rows = (
        {
            "field": each.name,
            "type": " | ".join(kind for kind, _ in each.kinds.most_common()),
            "in": f"{each.found / size:.0%}",
            "example": each.example,
        }
        for each in fields
    )
    total = collection.estimated_document_count()
    heading = f"{call.target}: {total:,} documents, judged by {size:,} of them"
    return Listing(rows, heading=heading, empty=f"{call.target} has no document")


def component(call: Call, path: str) -> tuple[Any, str]:
    """Return the registry that ``kind/id`` means, and the identifier.

    Raises
    ------
    InvalidInputError
        There is no such kind.
    """
    _, slash, id = path.partition("/")
    kind = _kind(path)
    if not slash or not id or kind not in KINDS:
        hint = did_you_mean(kind, KINDS) if slash else ""
        raise InvalidInputError(f"{path!r} is no component: write kind/name, such as models/minilm.{hint}")
    return getattr(call.database if KINDS[kind] == "database" else call.collection, kind), id


def stats(call: Call) -> Document:
    """Show how much there is: documents, bytes, indexes."""
    database, target = call.database, call.target
    if not target.collection:
        found = database.command("dbStats")
        return Document({name: _sized(name, found[key]) for name, key in _OF_DATABASE.items() if key in found})
    (found, *_) = database[target.collection].aggregate([{"$collStats": {"storageStats": {}}}])
    told = {name: found["storageStats"].get(key) for name, key in _OF_COLLECTION.items()}
    sizes = {name: Bytes(size) for name, size in found["storageStats"].get("indexSizes", {}).items()}
    shown = {name: _sized(name, value) for name, value in told.items() if value is not None}
    return Document(shown | {"size of each index": sizes})


def _sized(name: str, value: Any) -> Any:
    return Bytes(value) if name.startswith("size") else value


_OF_DATABASE: Final = {
    "database": "db",
    "collections": "collections",
    "documents": "objects",
    "size": "dataSize",
    "size on disk": "storageSize",
    "indexes": "indexes",
    "size of indexes": "indexSize",
}
_OF_COLLECTION: Final = {
    "documents": "count",
    "size": "size",
    "size of a document": "avgObjSize",
    "size on disk": "storageSize",
    "indexes": "nindexes",
    "size of indexes": "totalIndexSize",
}


def types(call: Call) -> Listing:
    """List the types: how objects become bytes, and for which classes each is chosen."""
    from superduper_nb.documents.types import builtin_types

    database = call.database
    rows = [_type_row(name, each, "built in") for name, each in builtin_types().items()]
    rows += [_type_row(name, database.types[name], database.name) for name in database.types]
    return Listing(rows, heading=f"types of {database.name}")


def _type_row(name: str, type_: Any, where: str) -> dict[str, Any]:
    from superduper_nb.documents.types import classes_of

    chosen = [
        each if isinstance(each, str) else f"{each.__module__}.{each.__qualname__}" for each in classes_of(name, type_)
    ]
    return {"type": name, "from": where, "for": ", ".join(chosen) or "only where it is named"}


def config(call: Call) -> Listing:
    """List the settings that hold for the connection, and the options of the magics.

    Of a secret only whether there is one.
    """
    from superduper_nb.config import Config

    settings = Config.load(**call.connection.settings).model_dump(mode="python")
    flat = [*_flat(settings), *_flat(asdict(call.options), "SuperduperMagics.")]
    heading = (
        "explicit arguments, else SUPERDUPER_… variables, else config.json, else defaults; "
        "of the magics: %config, else SUPERDUPER_MAGICS__… variables, else pyproject.toml, else IPython's own files"
    )
    return Listing(({"setting": name, "value": value} for name, value in flat), heading=heading)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif hasattr(value, "get_secret_value"):
            yield f"{prefix}{name}", "(set, not shown)"
        else:
            yield f"{prefix}{name}", _setting(value)


def _setting(value: Any) -> str:
    if isinstance(value, tuple | list | frozenset | set):
        return ", ".join(sorted(map(str, value)))
    return "" if value is None else str(value)


def trust(call: Call) -> Note:
    """Vouch for a component that another installation made: from now on its code is loaded and run here."""
    registry, id = component(call, call.args.what)
    found = registry.trust(id, version=call.args.version)
    made = f"{found['bytes']:,} bytes, stored under Python {found['python']}"
    return Note(f"{call.args.what}, version {found['version']}, is trusted here: {made}")


def _kind(path: str) -> str:
    kind = path.partition("/")[0]
    return _SHORT.get(kind, kind)


def _trust_options(parser: Parser) -> None:
    parser.add_argument("what", metavar="KIND/NAME", help="the component; make sure that you know who made it")
    parser.add_argument("--version", type=int, metavar="N", help="of it; default: the newest")


def _describe_options(parser: Parser) -> None:
    parser.add_argument("what", nargs="?", metavar="KIND/NAME", help="a component; default: the collection's documents")
    parser.add_argument("-n", type=_size, default=100, metavar="N", help="documents to look at (default 100)")


def _size(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise ArgumentTypeError(f"{text!r} is no whole number from 1 to 10,000")
    return int(text)


COMMANDS: Final = (
    Command(
        "describe",
        describe,
        "describe the documents in use, or a component",
        _describe_options,
        target=True,
        examples="  %sddb describe\n  %sddb describe models/minilm\n  %sddb describe watchers/minilm/text",
        twins=("superduper_nb.magics.fields.sampled(docs)", 'docs.models.describe("minilm")'),
    ),
    Command(
        "stats",
        stats,
        "show how much there is",
        target=True,
        twins=('docs.aggregate([{"$collStats": {"storageStats": {}}}])', 'docs.database.command("dbStats")'),
    ),
    Command(
        "types",
        types,
        "list the types that objects are stored as",
        target=True,
        twins=("superduper_nb.documents.types.builtin_types()", "docs.types"),
    ),
    Command(
        "trust",
        trust,
        "load what another installation made",
        _trust_options,
        target=True,
        examples="  %sddb trust models/minilm",
        twins=('docs.models.trust("minilm")',),
    ),
    Command(
        "config",
        config,
        "list the settings of the connection",
        twins=("sd.Config.load()",),
    ),
)
