"""``databases``, ``collections``, ``models``, ``watchers`` and ``indexes``: what there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command
from superduper_nb.widgets.listing import Listing
from superduper_nb.widgets.values import Bytes

if TYPE_CHECKING:
    from superduper_nb.client import Collection, Database

__all__ = ["COMMANDS", "SERVERS_OWN", "collection_names", "collections", "databases", "indexes", "models", "watchers"]

SERVERS_OWN: Final = frozenset({"admin", "config", "local"})


def databases(call: Call) -> Listing:
    """List the databases."""
    found = (entry for entry in call.connection.client.list_databases() if entry["name"] not in SERVERS_OWN)
    rows = ({"database": entry["name"], "on disk": Bytes(entry["sizeOnDisk"])} for entry in found)
    return Listing(rows, empty="no database yet: the first insert makes one")


def collections(call: Call) -> Listing:
    """List the collections of the database in use."""
    database = call.database
    names = collection_names(database)
    rows = ({"collection": name, "documents": database[name].estimated_document_count()} for name in names)
    return Listing(rows, heading=f"collections of {database.name}", empty=f"{database.name} has no collection yet")


def models(call: Call) -> Listing:
    """List the models of the database in use, and what is loaded of them."""
    database = call.database
    found = call.connection.client.services.models(database.name)
    rows = ({**row, **_memory(row, "rss"), **_times(row)} for row in found)
    return Listing(
        rows,
        heading=f"models of {database.name}",
        empty=f"{database.name} has no model: collection.create_model(…)",
        columns=_MODEL,
    )


def watchers(call: Call) -> Listing:
    """List the watchers: which model's outputs are kept up to date on which key."""
    rows = (
        {"watcher": name, "collection": collection.name, **_chosen(collection.watchers.describe(name), _WATCHER)}
        for collection in _collections(call)
        for name in collection.watchers
    )
    return Listing(rows, empty=f"{call.target} has no watcher: collection.create_watcher(…)")


def indexes(call: Call) -> Listing:
    """List the semantic indexes, and the state of those in memory."""
    loaded = {
        (entry.get("collection"), entry.get("id")): entry
        for entry in call.connection.client.services.indexes()
        if entry.get("database") == call.target.database
    }
    rows = (
        {
            "index": name,
            "collection": collection.name,
            **_joined(_chosen(collection.semantic_indexes.describe(name), _INDEX)),
            **_live(loaded.get((collection.name, name))),
        }
        for collection in _collections(call)
        for name in collection.semantic_indexes
    )
    return Listing(rows, empty=f"{call.target} has no semantic index: collection.create_semantic_index(…)")


_MODEL: Final = ("id", "version", "type", "device", "state", "memory", "inputs", "errors", "p50_ms", "p95_ms")
_WATCHER: Final = ("model", "key", "filter", "features", "version")
_INDEX: Final = ("models", "keys", "measure", "filter", "version")
_LIVE: Final = ("state", "size", "dimension", "kind", "skipped")


def _chosen(facts: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: facts[name] for name in names if facts.get(name) not in (None, {}, [], 0)}


def _joined(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write lists of names as one text: mostly there is one."""
    return {name: ", ".join(value) if isinstance(value, list) else value for name, value in facts.items()}


def _live(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"state": "not loaded"}
    return _chosen(entry, _LIVE) | _memory(entry, "bytes")


def _memory(row: Mapping[str, Any], name: str) -> dict[str, Bytes]:
    return {"memory": Bytes(row[name])} if row.get(name) else {}


def _times(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(row[name], 1) for name in ("p50_ms", "p95_ms") if row.get(name) is not None}


def _collections(call: Call) -> Iterator[Collection[dict[str, Any]]]:
    """Yield the collection in use, or all of the database where only that is."""
    database, target = call.database, call.target
    for name in [target.collection] if target.collection else collection_names(database):
        yield database[name]


def collection_names(database: Database[dict[str, Any]]) -> list[str]:
    """Return the collections of a database that are its users'."""
    return sorted(name for name in database.list_collection_names() if not name.startswith(("_sddb.", "system.")))


COMMANDS: Final = (
    Command(
        "databases",
        databases,
        "list the databases",
        twins=("client.list_database_names()",),
    ),
    Command(
        "collections",
        collections,
        "list the collections of the database in use",
        target=True,
        twins=("docs.database.list_collection_names()",),
    ),
    Command(
        "models",
        models,
        "list the models",
        target=True,
        twins=('client.services.models("shop")',),
    ),
    Command(
        "watchers",
        watchers,
        "list the watchers",
        target=True,
        twins=('docs.watchers.describe("minilm/text")',),
    ),
    Command(
        "indexes",
        indexes,
        "list the semantic indexes",
        target=True,
        twins=('docs.semantic_indexes.describe("meaning")', "client.services.indexes()"),
    ),
)
