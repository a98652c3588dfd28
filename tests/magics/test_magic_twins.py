"""Each sub-command has a twin in Python that gives the same: both are run, and what they give is compared."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import superduper_nb as sd
from scripts import twins_table
from superduper_nb.client import Client
from superduper_nb.cluster.mongod import connect_options
from superduper_nb.magics.looking import SERVERS_OWN
from superduper_nb.magics.session import CONNECTIONS
from superduper_nb.magics.table import COMMANDS, run

Ids = Callable[[Any], list[Any]]
CHEAP = '{"price": {"$lt": 50}}'
LIKE = '{"$like": {"text": "warm scarf"}}'
SCARF = '[{"text": "red scarf"}]'
LENGTH = "def length(text):\n    return [float(len(text))]"


def ids(found: Any) -> list[Any]:
    return [document["_id"] for document in found]


def scored(found: Any) -> list[Any]:
    return [(document["_id"], document["_score"]) for document in found]


def names(key: str) -> Callable[[Any], list[Any]]:
    return lambda rows: sorted(row[key] for row in rows)


def same(value: Any) -> Any:
    return value


def users(found: Any) -> list[str]:
    return sorted(name for name in found if not name.startswith("_sddb.") and name not in SERVERS_OWN)


def own(text: str) -> Callable[[Any], list[Any]]:
    """Return what lists the types of the database, or those built in."""
    return lambda rows: [row["type"] for row in rows if (row["from"] == "built in") == (text == "built in")]


# Sub-command -> for each of its twins: line, body, what to take of the magic's value, and what of the twin's.
CASES: dict[str, list[tuple[str, str | None, Any, Any]]] = {
    "connect": [("connect --name again", None, lambda _: CONNECTIONS.get("again").client.how, lambda c: c.how)],
    "connections": [("connections", None, names("name"), lambda found: sorted(each.name for each in found))],
    "use": [("use shop.products", None, lambda _: str(CONNECTIONS.get().target), lambda made: made.full_name)],
    "status": [("status", None, lambda s: sorted(s["components"]), lambda s: sorted(s["components"]))],
    "databases": [("databases", None, names("database"), users)],
    "collections": [("collections", None, names("collection"), users)],
    "models": [("models", None, list, list)],
    "watchers": [("watchers", None, lambda rows: rows[0]["key"], lambda facts: facts["key"])],
    "indexes": [
        ("indexes", None, lambda rows: rows[0]["measure"], lambda facts: facts["measure"]),
        ("indexes", None, lambda rows: rows[0].get("size"), lambda found: found[0]["size"]),
    ],
    "describe": [
        ("describe", None, names("field"), lambda found: sorted(field.name for field in found[0])),
        ("describe models/words", None, dict, dict),
    ],
    "stats": [
        ("stats", None, lambda s: s["documents"], lambda found: next(iter(found))["storageStats"]["count"]),
        ("stats --in shop", None, lambda s: s["documents"], lambda found: found["objects"]),
    ],
    "types": [("types", None, own("built in"), list), ("types", None, own("shop"), list)],
    "trust": [("trust models/words", None, lambda note: "version 1" in repr(note), lambda it: it["version"] == 1)],
    "config": [
        (
            "config",
            None,
            lambda rows: next(row["value"] for row in rows if row["setting"] == "valid_fraction"),
            lambda config: str(config.valid_fraction),
        )
    ],
    "find": [("find -n 5", CHEAP[:-1] + ", " + LIKE[1:], scored, scored)],
    "find_one": [("find_one", CHEAP, lambda d: (d["_id"], sorted(d)), lambda d: (d["_id"], sorted(d)))],
    "count": [("count", CHEAP, int, int)],
    "aggregate": [
        ("aggregate", '[{"$group": {"_id": "$color", "n": {"$sum": 1}}}, {"$sort": {"_id": 1}}]', list, list),
    ],
    "distinct": [("distinct color", CHEAP, list, list)],
    "mongosh": [("mongosh", "db.products.find({price: {$lt: 50}}).sort({price: -1}).limit(5)", ids, ids)],
    "explore": [("explore -n 5", LIKE, lambda e: ids(e.result), lambda e: ids(e.result))],
    "map": [
        ("map --color color", None, lambda m: m.xy.tolist(), lambda m: m.xy.tolist()),
        ("map", None, lambda m: len(m), lambda job: job.progress[1]),
    ],
    "insert": [
        ("insert", SCARF, lambda r: len(r.inserted_ids), lambda r: len(r.inserted_ids)),
        ("insert --from frame", None, lambda r: len(r.inserted_ids), lambda r: len(r.inserted_ids)),
    ],
    "update": [
        ("update", '{"color": "red"}, {"$set": {"price": 30}}', changed := lambda r: r.matched_count, changed),
    ],
    "delete": [("delete --yes", '{"price": {"$gt": 1000}}', gone := lambda r: r.deleted_count, gone)],
    "export": [
        ("export magic.csv", None, lambda _: Path("magic.csv").read_bytes(), lambda _: Path("docs.csv").read_bytes()),
    ],
    "model": [("model length --type vector", LENGTH, lambda _: "made", lambda jobs: "made" if not jobs else "twice")],
    "predict": [
        ("predict words", '"a red scarf"', list, list),
        ("predict words --many", '["a red scarf", "a hat"]', np.array, np.array),
    ],
    "jobs": [("jobs", None, lambda rows: [row["id"] for row in rows], lambda jobs: [job.id for job in jobs])],
    "wait": [("wait {id}", None, lambda _: "succeeded", lambda job: job.status)],
    "watch": [("watch {id}", None, same, same)],
    "cancel": [("cancel {id}", None, lambda _: "succeeded", lambda job: job.status)],
    "retry": [("retry {id}", None, lambda _: 2, lambda job: job.record["attempts"] - 1)],
    "logs": [("logs {id}", None, repr, lambda lines: "\n".join(line["text"] for line in lines))],
}


@pytest.fixture(scope="module")
def shop(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return what the twins name: a collection, in use on the default connection, and a job that printed and failed."""
    with pytest.MonkeyPatch.context() as patch, Client[Any](mongo_uri, **connect_options()) as client:
        patch.setenv("SUPERDUPER_MONGODB__URI", mongo_uri)
        patch.setenv("SUPERDUPER_REMOTE", "false")
        patch.chdir(tmp_path_factory.mktemp("twins"))
        for at in list(CONNECTIONS):
            CONNECTIONS.close(at.name)
        CONNECTIONS.open("default", {}, connect=lambda **_: client)
        yield SimpleNamespace(client=client, **filled(client))
        client.drop_database("shop")
        for at in list(CONNECTIONS):
            CONNECTIONS.close(at.name)


def filled(client: Client[Any]) -> dict[str, Any]:
    from pandas import DataFrame

    from tests.magics.conftest import ROWS, encode

    def words(text: Any) -> Any:
        print("encodes", text)
        return encode(text)

    client.drop_database("shop")
    docs = client["shop"]["products"]
    docs.create_model("words", words, type="vector")
    docs.create_watcher("words", "text")
    docs.create_semantic_index("meaning", ["words"], ["text"])
    docs.create_type("mine", Mine())
    result = docs.insert_many([*map(dict, ROWS), {"text": 5}, {"text": "dear hat", "price": 2000}])
    run("use shop.products")
    return {"docs": docs, "id": result.jobs["words/text"].id, "frame": DataFrame([{"text": "frame scarf"}])}


class Mine:
    """A type of the user's own."""

    def encode(self, value: Any) -> bytes:
        return bytes(value)

    def decode(self, data: bytes) -> Any:
        return data


def test_every_sub_command_is_compared() -> None:
    assert {name: len(command.twins) for name, command in COMMANDS.items()} == {n: len(c) for n, c in CASES.items()}


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, cases in CASES.items() for n in range(len(cases))])
def test_magic_and_twin_give_the_same(name: str, number: int, shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "map":
        pytest.importorskip("jscatter")
    line, body, of_magic, of_twin = CASES[name][number]
    scope = {"docs": shop.docs, "client": shop.client, "sd": sd, "id": shop.id, "frame": shop.frame}
    scope |= {"superduper_nb": sd, "length": lambda text: [float(len(text))]}
    twin = COMMANDS[name].twins[number].replace("minilm", "words")
    imported(twin)
    capsys.readouterr()
    outcome = run(line.format(id=shop.id) if "{id}" in line else line, body, names=scope, scope=dict(scope))
    magic, printed = of_magic(outcome.value), capsys.readouterr().out
    other = eval(twin, scope)
    assert np.array_equal(magic, of_twin(other)) if name == "predict" else magic == of_twin(other)
    if name == "watch":
        assert printed == capsys.readouterr().out != ""
    if name == "connect":
        other.close()
        CONNECTIONS.close("again")


def imported(twin: str) -> None:
    """Import the module of the package that a twin names in full."""
    parts = twin.partition("(")[0].split(".")
    if parts[0] == "superduper_nb":
        importlib.import_module(".".join(parts[:-1]))


def test_the_table_of_twins_is_current() -> None:
    text = twins_table.PAGE.read_text()
    assert twins_table.page(text) == text, "run python scripts/twins_table.py"
    assert '| `count` | `docs.count_documents({"price": {"$lt": 50}})` |' in text
