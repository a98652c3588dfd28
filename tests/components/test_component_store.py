"""Registering: versions, the same content again, races, deletion, artifacts that were tampered with."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from bson import ObjectId
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

import superduper_nb as sd
from superduper_nb.cluster.mongod import connect_options
from superduper_nb.components import ComponentStore, artifacts
from superduper_nb.components.cache import CachedStore
from superduper_nb.components.store import check_identifier
from superduper_nb.components.trust import trust_key
from superduper_nb.errors import InvalidInputError, ModelError, NotFoundError, TrustError

Mongo = Database[dict[str, Any]]


@pytest.fixture
def store(database: Mongo, home: Path) -> ComponentStore:
    return ComponentStore(database)


def double(x: float) -> float:
    return 2 * x


class Canary:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# --- versions ------------------------------------------------------------------------------------------------------


def test_the_same_content_is_no_new_version(store: ComponentStore) -> None:
    first, new = store.put("model", "m", {"a": 1}, obj=double)
    again, new_again = store.put("model", "m", {"a": 1}, obj=double)
    assert (new, new_again) == (True, False)
    assert (again.hash, again.version, again.artifact) == (first.hash, first.version, first.artifact)
    assert store.versions("model", "m") == [1]


def test_other_content_is_a_new_version_and_the_old_one_stays(store: ComponentStore) -> None:
    store.put("model", "m", {"a": 1}, obj=double)
    store.put("model", "m", {"a": 2}, obj=double)
    store.put("model", "m", {"a": 2}, obj=lambda x: 3 * x)
    assert store.versions("model", "m") == [1, 2, 3]
    assert store.get("model", "m").version == 3
    assert store.load(store.get("model", "m", version=2))(2) == 4
    assert store.load(store.get("model", "m"))(2) == 6


def test_names_are_per_kind_and_collection(store: ComponentStore) -> None:
    store.put("watcher", "a", {"n": 1}, collection="one")
    store.put("watcher", "a", {"n": 2}, collection="two")
    assert store.get("watcher", "a", collection="one").definition == {"n": 1}
    assert store.get("watcher", "a", collection="two").version == 1
    assert store.ids("model") == []
    assert {c.collection for c in store.current("watcher")} == {"one", "two"}


def test_definitions_with_operators_and_dots_come_back_as_they_were(store: ComponentStore) -> None:
    definition = {"filter": {"a.b": {"$gt": 1.5}, "$or": [{"_id": ObjectId(b"abcdefghijkl")}]}}
    store.put("watcher", "w", definition, collection="docs")
    assert store.get("watcher", "w", collection="docs").definition == definition


def test_not_found_names_what_is_near(store: ComponentStore) -> None:
    store.put("model", "encoder", {})
    with pytest.raises(NotFoundError, match="encoder"):
        store.get("model", "encodr")
    with pytest.raises(NotFoundError, match="version 7"):
        store.get("model", "encoder", version=7)


@pytest.mark.parametrize("name", ["", "1a", "a.b", "a b", "a/b", "../x", "$a", "ä", "a" * 65, "a\n", None, 3, b"a"])
def test_names_that_are_refused(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="named"):
        check_identifier("A model", name)


@pytest.mark.parametrize("name", ["a", "_a", "a-b", "A_9", "a" * 64])
def test_names_that_are_allowed(name: str) -> None:
    assert check_identifier("A model", name) == name


# --- races ---------------------------------------------------------------------------------------------------------


def at_once(steps: list[Callable[[], Any]]) -> list[Any]:
    gate = threading.Barrier(len(steps))

    def run(step: Callable[[], Any]) -> Any:
        gate.wait()
        return step()

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(run, steps))


def test_twenty_registrations_of_one_name_are_twenty_versions(store: ComponentStore, database: Mongo) -> None:
    done = at_once([lambda i=i: ComponentStore(database).put("model", "m", {"n": i}, obj=double) for i in range(20)])
    assert sorted(component.version for component, _ in done) == list(range(1, 21))
    assert store.versions("model", "m") == list(range(1, 21))
    assert sorted(store.get("model", "m", version=v).definition["n"] for v in range(1, 21)) == list(range(20))
    for version in range(1, 21):
        assert store.load(store.get("model", "m", version=version))(2) == 4


def test_twenty_registrations_of_the_same_are_one_version(store: ComponentStore, database: Mongo) -> None:
    done = at_once([lambda: ComponentStore(database).put("model", "m", {}, obj=double)] * 20)
    assert store.versions("model", "m") == [1]
    assert sum(new for _, new in done) == 1


def test_deleting_beside_registering_never_leaves_a_record_without_its_bytes(
    store: ComponentStore, database: Mongo
) -> None:
    for _ in range(10):
        store.put("model", "a", {}, obj=double)
        at_once(
            [lambda: store.delete("model", "a"), lambda: ComponentStore(database).put("model", "b", {}, obj=double)]
        )
        assert store.load(store.get("model", "b"))(2) == 4
        store.delete("model", "b")


class HeldAfterLooking(CommandListener):
    """Holds a client that has found no record for some bytes, until it may go on."""

    def __init__(self) -> None:
        self.found_none, self.go_on = threading.Event(), threading.Event()

    def started(self, event: CommandStartedEvent) -> None:
        """Do nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Do nothing."""

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Hold it at its first question for a record's artifact."""
        looked_in = event.reply.get("cursor", {}).get("ns", "").partition(".")[2]
        if event.command_name == "find" and looked_in == "_sddb.runs" and not self.found_none.is_set():
            self.found_none.set()
            assert self.go_on.wait(30)


def test_bytes_that_are_about_to_be_deleted_are_there_for_whoever_registers_them_meanwhile(
    store: ComponentStore, database: Mongo, mongo_uri: str
) -> None:
    store.put("model", "a", {}, obj=double)
    held = HeldAfterLooking()
    options: dict[str, Any] = {**connect_options(), "event_listeners": [held]}
    with MongoClient[dict[str, Any]](mongo_uri, **options) as client, ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(ComponentStore(client[database.name]).delete, "model", "a")
        assert held.found_none.wait(30)
        store.put("model", "b", {}, obj=double)
        held.go_on.set()
        deleted.result()
    assert store.load(store.get("model", "b"))(2) == 4
    assert stored(database) == 1


# --- deletion ------------------------------------------------------------------------------------------------------


def stored(database: Mongo) -> int:
    return database["_sddb.fs.files"].count_documents({})


def test_deletion_takes_only_bytes_that_nothing_else_uses(store: ComponentStore, database: Mongo) -> None:
    store.put("model", "a", {}, obj=double)
    store.put("model", "b", {}, obj=double)
    assert stored(database) == 1
    store.delete("model", "a")
    assert store.load(store.get("model", "b"))(1) == 2
    store.delete("model", "b")
    assert stored(database) == database["_sddb.fs.chunks"].count_documents({}) == 0


def test_a_version_number_never_comes_back_with_other_content(store: ComponentStore) -> None:
    store.put("model", "m", {"n": 1})
    store.put("model", "m", {"n": 2})
    store.put("measure", "m", {"n": 2})
    store.delete("model", "m")
    store.delete("measure", "m")
    assert store.versions("model", "m") == []
    assert store.put("model", "m", {"n": 3})[0].version == 3
    assert store.put("measure", "m", {"n": 3})[0].version == 2
    store.delete("model", "m")
    assert store.put("model", "m", {"n": 3})[0].version == 4


def test_pieces_of_uploads_that_never_ended_are_collected_after_a_day(store: ComponentStore, database: Mongo) -> None:
    chunks = database["_sddb.fs.chunks"]
    old, young = (ObjectId.from_datetime(datetime.now(UTC) - timedelta(hours=h)) for h in (30, 1))
    chunks.insert_many([{"_id": id, "files_id": ObjectId(), "n": 0, "data": b"x"} for id in (old, young)])
    store.put("model", "a", {}, obj=double)
    store.put("model", "b", {"n": 2}, obj=lambda x: x)
    store.delete("model", "b")
    assert {chunk["_id"] for chunk in chunks.find({}, {"_id": 1})} >= {young}
    assert chunks.find_one({"_id": old}) is None
    assert store.load(store.get("model", "a"))(1) == 2


# --- trust ---------------------------------------------------------------------------------------------------------


def test_a_record_with_a_pickle_of_somebody_else_is_not_loaded(
    store: ComponentStore, database: Mongo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    evil = cloudpickle.dumps(Canary(canary))
    store.put("model", "mine", {}, obj=double)
    header = artifacts.save(database, artifacts.Packed(evil))
    identity = {"kind": "model", "collection": "", "id": "mine", "version": 1}
    mine = store.get("model", "mine").artifact
    assert mine is not None
    with monkeypatch.context() as patch:
        patch.setenv("SUPERDUPER_TRUST_KEY", "00" * 32)
        foreign = artifacts.seal(identity, header)
    forged: list[Any] = [
        header,
        {**header, "signature": None},
        {**header, "signature": 7},
        {**header, "signature": "é"},
        {**header, "signature": mine["signature"]},  # of other bytes
        foreign,  # of another key
        artifacts.seal({**identity, "id": "another"}, header),  # of another model
        artifacts.seal({**identity, "version": 2}, header),  # of another version
        {**artifacts.seal(identity, header), "format": "pickle"},
        {**artifacts.seal(identity, header), "size": 3},
        {**artifacts.seal(identity, header), "more": b"bytes"},
        artifacts.seal(identity, {**header, "format": "joblib"}),  # signed, but of no format that is known
        {},
    ]
    for artifact in forged:
        database["_sddb.components"].update_one({"id": "mine"}, {"$set": {"artifact": artifact}})
        with pytest.raises(TrustError, match="%sddb trust models/mine"):
            store.load(store.get("model", "mine"))
    assert not canary.exists()


def test_bytes_changed_after_they_were_signed_are_not_loaded(
    store: ComponentStore, database: Mongo, tmp_path: Path
) -> None:
    store.put("model", "m", {}, obj=double)
    chunks, canary = database["_sddb.fs.chunks"], tmp_path / "canary"
    chunk = chunks.find_one({})
    assert chunk is not None
    data = bytearray(chunk["data"])
    data[len(data) // 2] ^= 1
    changes: list[Any] = [
        {"data": bytes(data)},
        {"data": bytes(data[:-5])},
        {"data": b""},
        {"data": cloudpickle.dumps(Canary(canary)).ljust(len(data), b".")},
        {"n": 7},
    ]
    for change in changes:
        chunks.update_one({"_id": chunk["_id"]}, {"$set": {**chunk, **change}})
        with pytest.raises(TrustError, match="not those that were signed"):
            store.load(store.get("model", "m"))
        with pytest.raises(TrustError):
            store.trust(store.get("model", "m"))
    chunks.delete_many({})
    with pytest.raises(TrustError):
        store.load(store.get("model", "m"))
    database["_sddb.fs.files"].delete_many({})
    with pytest.raises(TrustError, match="gone"):
        store.load(store.get("model", "m"))
    assert not canary.exists()
    store.put("model", "m", {"n": 2}, obj=double)
    assert store.load(store.get("model", "m"))(2) == 4


def test_trust_signs_what_another_installation_made(store: ComponentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("SUPERDUPER_TRUST_KEY", "ab" * 32)
        theirs, _ = store.put("model", "theirs", {}, obj=double)
    with pytest.raises(TrustError):
        store.load(theirs)
    assert store.load(store.trust(theirs))(4) == 8
    assert store.load(store.get("model", "theirs"))(4) == 8
    for key in ("ab" * 32, "cd" * 32):
        with monkeypatch.context() as patch:
            patch.setenv("SUPERDUPER_TRUST_KEY", key)
            if key.startswith("cd"):
                with pytest.raises(TrustError):  # who has not vouched for it is not among them
                    store.load(store.get("model", "theirs"))
            else:
                assert store.load(store.get("model", "theirs"))(4) == 8  # who made it goes on as before


def made_elsewhere(database: Mongo, id: str, **versions: str) -> None:
    """Sign the artifact as one that was made with other versions."""
    identity = {"kind": "model", "collection": "", "id": id, "version": 1}
    record = database["_sddb.components"].find_one(identity)
    assert record is not None
    header = {name: value for name, value in record["artifact"].items() if name != "signature"} | versions
    artifact = artifacts.seal(identity, header)
    database["_sddb.components"].update_one(identity, {"$set": {"artifact": artifact}})


def test_other_versions_are_said_where_they_matter(store: ComponentStore, database: Mongo) -> None:
    plain, _ = store.put("model", "plain", {}, obj={"lengths": [1, 2]})
    assert plain.artifact is not None
    assert plain.artifact["superduper_nb"] == sd.__version__
    assert "torch" not in plain.artifact
    made_elsewhere(database, "plain", python="3.10.2", superduper_nb="0.0.1")
    with pytest.warns(UserWarning, match=r"models/plain was made by Python 3\.10\.2, this is"):
        assert store.load(store.get("model", "plain")) == {"lengths": [1, 2]}
    store.put("model", "code", {}, obj=lambda x: x)
    made_elsewhere(database, "code", python="3.10.2")
    with pytest.raises(ModelError, match=r"models/code holds functions that Python 3\.10\.2 compiled.*Register"):
        store.load(store.get("model", "code"))
    layer, _ = store.put("model", "layer", {}, obj=torch.nn.Linear(1, 1))
    assert layer.artifact is not None
    assert layer.artifact["torch"] == torch.__version__
    made_elsewhere(database, "layer", torch="1.2.3")
    with pytest.warns(UserWarning, match=r"made by torch 1\.2\.3, this is"):
        store.load(store.get("model", "layer"))
    patch = ".".join(platform.python_version().split(".")[:2])
    made_elsewhere(database, "layer", torch=torch.__version__, python=f"{patch}.99")
    store.load(store.trust(store.get("model", "layer")))  # of the same release: nothing to say


def test_an_artifact_of_an_earlier_version_of_the_package_loads(store: ComponentStore, database: Mongo) -> None:
    component, _ = store.put("model", "old", {}, obj=double)
    assert component.artifact is not None
    header = {name: component.artifact[name] for name in ("sha256", "size", "format", "python")}
    artifact = artifacts.seal(component.identity, header)
    database["_sddb.components"].update_one(component.identity, {"$set": {"artifact": artifact}})
    assert store.load(store.get("model", "old"))(2) == 4
    assert store.load(store.trust(store.get("model", "old")))(2) == 4


def test_there_is_nothing_to_trust_in_a_watcher(store: ComponentStore) -> None:
    watcher, _ = store.put("watcher", "w", {}, collection="docs")
    with pytest.raises(InvalidInputError, match="nothing to trust"):
        store.trust(watcher)
    with pytest.raises(InvalidInputError, match="no object"):
        store.load(watcher)


def test_the_key_is_made_once_and_is_nobody_elses(home: Path) -> None:
    keys = at_once([trust_key] * 8)
    assert len(set(keys)) == 1
    path = home / "data" / "superduper_nb" / "trust.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(keys[0]) == 32
    assert [entry.name for entry in path.parent.iterdir()] == ["trust.key"]
    path.chmod(0o644)
    with pytest.raises(TrustError, match="chmod 600"):
        trust_key()


# --- what is remembered --------------------------------------------------------------------------------------------


def test_a_cached_store_notices_what_others_register_and_delete(store: ComponentStore, database: Mongo) -> None:
    cached = CachedStore(database)
    store.put("model", "m", {"n": 1})
    cached.refresh()
    assert cached.get("model", "m").version == 1
    assert [c.id for c in cached.current("model")] == ["m"]
    store.put("model", "m", {"n": 2})
    cached.refresh()
    assert cached.get("model", "m").version == 2
    store.delete("model", "m")
    cached.refresh()
    assert cached.find("model", "m") is None
    assert cached.current("model") == []


def test_the_stamp_is_no_component(store: ComponentStore) -> None:
    assert not store.exists()
    store.put("model", "m", {})
    assert store.exists()
    store.delete("model", "m")
    assert not store.exists()
