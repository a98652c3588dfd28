"""What went wrong in the original, one test each (those on writes and on finding are in the files of these names)."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bson import decode, encode
from bson.codec_options import CodecOptions, TypeRegistry
from bson.raw_bson import RawBSONDocument
from bson.son import SON
from client_models import length, outputs, words
from pymongo import DeleteOne, ReplaceOne, UpdateOne, monitoring
from pymongo.errors import DocumentTooLarge
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

import superduper_nb as sd
from superduper_nb.documents import Pending
from superduper_nb.errors import InvalidInputError, ModelError, NotFoundError


def ids(found: Any) -> list[Any]:
    return [document["_id"] for document in found]


def test_s2_like_and_filter_go_together_in_every_way(findable: sd.Collection[Any]) -> None:
    findable.insert_many([{"_id": i, "text": text, "n": i} for i, text in enumerate(["a b", "a", "b", "c"])])
    by_argument = ids(findable.find({"n": {"$gt": 0}}, like={"text": "a"}, n=2))
    assert by_argument[0] == 1
    assert ids(findable.find({"n": {"$gt": 0}, "$like": {"text": "a"}}, n=2)) == by_argument
    assert ids(findable.find(filter={"n": {"$gt": 0}}, like={"text": "a"}, n=2)) == by_argument
    assert ids(findable.find({"n": {"$gt": 0}}, like={"text": "a"}, n=2, exact=True)) == by_argument


@pytest.mark.parametrize("measure", ["cosine", "dot", "l2"])
def test_s7_higher_is_better_in_every_measure_and_none_is_repeated(docs: sd.Collection[Any], measure: str) -> None:
    docs.create_model("words", words, type="vector")
    docs.create_semantic_index("i", ["words"], ["text"], measure)
    docs.insert_many([{"_id": i, "text": text} for i, text in enumerate(["x", "a b c", "a b", "a"])])
    found = list(docs.find({"_id": {"$lt": 9}}, like={"text": "a b c"}, n=100))
    scores = [document["_score"] for document in found]
    assert len(found) == 4
    assert found[0]["_id"] == 1
    assert scores == sorted(scores, reverse=True)
    assert all(("_distance" in document) == (measure == "l2") for document in found)


def test_s11_an_index_reads_vectors_and_prints_nothing(
    findable: sd.Collection[Any], mongo_uri: str, database: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    findable.insert_many([{"_id": i, "text": f"a b{i}", "large": "x" * 200_000} for i in range(20)])
    findable.insert_many([{"_id": i, "large": "x" * 200_000} for i in range(20, 25)])  # without outputs
    database.command("profile", 2)
    with sd.Client[Any](mongo_uri) as client:
        found = list(client[database.name]["docs"].find({}, {"_id": 1}, like={"text": "a b7"}, n=100))
    database.command("profile", 0)
    assert found[0]["_id"] == 7
    assert len(found) == 20
    read = list(database["system.profile"].find({"ns": findable.full_name, "responseLength": {"$exists": True}}))
    assert sum(entry.get("nreturned", 0) for entry in read) >= 40, "the index was loaded, and the result read"
    assert sum(entry["responseLength"] for entry in read) < 100_000
    assert capsys.readouterr() == ("", "")


def test_s12_content_that_is_not_there_yet_reads_as_pending(docs: sd.Collection[Any], stored: Any) -> None:
    stored.insert_one({"_id": 1, "img": {"_content": {"url": "https://example.org/a.png", "type": "image"}}})
    found = docs.find_one(1)
    assert found is not None
    assert isinstance(found["img"], Pending)


def test_w3_an_update_that_meets_nothing_is_no_error(docs: sd.Collection[Any]) -> None:
    assert docs.update_one({"_id": 1}, {"$set": {"text": "a"}}).matched_count == 0
    assert docs.update_many({"_id": 1}, {"$set": {"text": "a"}}).matched_count == 0
    assert docs.replace_one({"_id": 1}, {"text": "a"}).matched_count == 0
    assert docs.find_one_and_update({"_id": 1}, {"$set": {"text": "a"}}) is None
    assert docs.find_one_and_replace({"_id": 1}, {"text": "a"}) is None


def test_w11_tensors_keep_shape_and_class_and_are_writable(docs: sd.Collection[Any]) -> None:
    import torch

    tensor = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    docs.insert_one({"_id": 1, "t": tensor, "parameter": torch.nn.Parameter(tensor)})
    found = docs.find_one(1)
    assert found is not None
    assert torch.equal(found["t"], tensor)
    found["t"][0, 0] = 5
    assert found["parameter"].shape == (3, 4)


def test_w13_a_model_is_readable_while_it_is_replaced(docs: sd.Collection[Any], other_client: sd.Client[Any]) -> None:
    models, stop, seen = other_client[docs.database.name].models, threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(models["length"]("abc") - 3)

    reader = threading.Thread(target=read)
    reader.start()
    for more in range(1, 6):
        docs.create_model("length", lambda text, more=more: len(text) + more)
    stop.set()
    reader.join()
    assert seen
    assert models["length"]("abc") == 8


def test_w14_writes_of_the_user_do_not_pass_for_outputs(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_one({"_id": 1, "text": "abc"})
    docs.replace_one({"_id": 1}, {"text": "abcd", "_outputs": {"text": {"length": "forged"}}})
    assert outputs(stored) == {1: 4}


def test_w15_index_and_neighbours_follow_every_way_to_delete(findable: sd.Collection[Any], stored: Any) -> None:
    findable.insert_many([{"_id": i, "text": f"a b{i}"} for i in range(8)])
    findable.create_neighbourhood("near", "meaning", n=10)
    ways: list[Any] = [
        lambda: findable.delete_one({"_id": 0}),
        lambda: findable.delete_many({"_id": {"$in": [1, 2]}}),
        lambda: findable.find_one_and_delete({"_id": 3}),
        lambda: findable.bulk_write([DeleteOne({"_id": 4})]),
    ]
    for delete in ways:
        delete()
        left = {document["_id"] for document in stored.find()}
        assert set(ids(findable.find(like={"text": "a"}, n=100))) == left
        assert all({d["_id"], *d["_like"]["near"]} == left for d in stored.find())
    assert left == {5, 6, 7}


# --- section 2.3: objects, models, neighbourhoods ---------------------------------------------------------------------


class ByName:
    """Without parameters, without ``state_dict``, defined where no worker could import it from."""

    def __call__(self, x: Any) -> dict[str, Any]:
        return {"name": x["name"], "tags": [x["n"], "text", None]}


def test_section_2_3_models_of_any_form_are_registered_loaded_and_applied(
    docs: sd.Collection[Any], other_client: sd.Client[Any]
) -> None:
    import torch

    docs.create_model("by_name", ByName())
    docs.create_model("no_parameters", torch.nn.ReLU(), preprocess=lambda x: torch.tensor([float(x["n"])]))
    docs.create_model("steps", lambda x: x + 1, preprocess=lambda x: x["n"], postprocess=lambda y: -y)
    x = {"name": "a", "n": 3}
    other = other_client[docs.database.name]["docs"]
    assert other.predict("by_name", x) == {"name": "a", "tags": [3, "text", None]}
    assert float(other.predict("no_parameters", x)[0]) == 3
    assert other.predict("steps", x) == -4
    assert type(other.models["by_name"]).__name__ == "ByName"


def test_section_2_3_each_kind_is_listed_described_and_deleted(findable: sd.Collection[Any], stored: Any) -> None:
    findable.insert_many([{"_id": i, "text": "a b", "_fold": "valid"} for i in range(4)])
    findable.create_splitter("halves", lambda d: (d, d))
    findable.create_neighbourhood("near", "meaning", n=2)
    findable.create_validation_set("held", splitter="halves")
    registries = ("validation_sets", "neighbourhoods", "semantic_indexes", "splitters")
    for name, id in zip(registries, ("held", "near", "meaning", "halves"), strict=True):
        registry = getattr(findable, name)
        assert list(registry) == [id]
        assert registry.describe(id)["id"] == id
        assert id in repr(registry)
        registry.delete(id)
        assert id not in registry
        with pytest.raises(NotFoundError, match=id):
            registry.delete(id)
    assert "words/text" in findable.watchers
    findable.watchers.delete("words/text")
    assert outputs(stored, "text.words") == {}
    assert stored.database["_sddb.validation"].count_documents({}) == 0
    assert stored.count_documents({"_like.near": {"$exists": True}}) == 0
    with pytest.raises(NotFoundError, match="meaning"):
        findable.find(like={"text": "a"}, semantic_index="meaning").next()


def test_section_2_3_what_a_user_does_wrong_is_never_an_assertion(docs: sd.Collection[Any]) -> None:
    wrong: list[Any] = [
        lambda: docs.create_model("a.b", length),
        lambda: docs.create_model("x", 5),
        lambda: docs.create_watcher("nobody", "text"),
        lambda: docs.create_watcher("length", ""),
        lambda: docs.create_semantic_index("i", ["length"], []),
        lambda: docs.create_neighbourhood("n", "nothing"),
        lambda: docs.create_validation_set("v", {"text": "nowhere"}),
        lambda: docs.find(similar_join="nothing"),
        lambda: docs.find(features={"nothing": "length"}),
    ]
    for call in wrong:
        with pytest.raises(sd.SuperduperError, match=r"^[^\n]+$"):
            call()


def test_a_document_that_is_too_large_is_pymongos_error_and_nothing_is_written(
    docs: sd.Collection[Any], stored: Any
) -> None:
    with pytest.raises(DocumentTooLarge):
        docs.insert_one({"text": "x" * 17_000_000})
    assert stored.count_documents({}) == 0
    assert {job.status for job in docs.jobs} == {"succeeded"}


def test_an_output_of_another_shape_is_an_error_and_is_not_written(
    docs: sd.Collection[Any], stored: Any, other_client: sd.Client[Any]
) -> None:
    docs.create_model("growing", lambda text: np.ones(len(text), dtype=np.float32), type="vector")
    docs.create_watcher("growing", "text")
    jobs = docs.insert_many([{"_id": 1, "text": "abc"}, {"_id": 2, "text": "xyz"}]).jobs
    assert not any(job.failures["count"] for job in jobs.values())
    (job,) = (job for name, job in docs.insert_one({"_id": 3, "text": "abcd"}).jobs.items() if "growing" in name)
    assert "growing answered shape (4,)" in job.failures["first"][0]["error"]
    assert stored.count_documents({"_outputs.text.growing": {"$exists": True}}) == 2
    elsewhere = other_client[docs.database.name]["docs"]
    for asked in (docs, elsewhere):
        assert len(asked.predict("growing", "xyz")) == 3
        with pytest.raises(ModelError, match=r"growing answered shape \(4,\), and its first output had \(3,\)"):
            asked.predict("growing", "abcd")


def test_a_vector_that_is_no_number_is_an_error_not_written_and_never_found(
    findable: sd.Collection[Any], stored: Any
) -> None:
    findable.create_model("words", lambda text: words(text) * (np.nan if text == "bad" else 1), type="vector")
    jobs = findable.insert_many([{"_id": 1, "text": "bad"}, {"_id": 2, "text": "good"}]).jobs
    (job,) = (job for name, job in jobs.items() if "words" in name)
    assert job.failures["count"] == 1
    assert re.fullmatch(r"[^\n]*finite[^\n]*", job.failures["first"][0]["error"])
    assert [document["_id"] for document in stored.find({"_outputs.text.words": {"$exists": True}})] == [2]
    assert ids(findable.find(like={"text": "good"})) == [2]


def test_an_unknown_class_is_refused_where_it_is_and_nothing_is_written(docs: sd.Collection[Any], stored: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"'a\.0\.b'.*object"):
        docs.insert_many([{"text": "fine"}, {"a": [{"b": object()}]}])
    with pytest.raises(InvalidInputError, match="object"):
        docs.update_many({}, {"$set": {"a": object()}})
    assert stored.count_documents({}) == 0


# --- pymongo's own ways, where something is registered ---------------------------------------------------------------


def test_everything_stays_of_our_classes(docs: sd.Collection[Any], client: sd.Client[Any]) -> None:
    name = docs.database.name
    for database in (client[name], client.get_database(name), client[name].with_options(write_concern=WriteConcern(1))):
        assert type(database) is sd.Database
        assert type(database["docs"]) is sd.Collection
    for collection in (
        docs.with_options(read_concern=ReadConcern("majority")),
        docs["sub"],
        docs.sub.deeper,
        client[name].create_collection("made"),
        client[name].get_collection("made"),
    ):
        assert type(collection) is sd.Collection
        assert type(collection.find()) is sd.Cursor
        assert type(collection.find().clone()) is sd.Cursor
        assert type(collection.database) is sd.Database
        assert type(collection.database.client) is sd.Client
    assert docs.with_options(read_concern=ReadConcern("majority")).read_concern.level == "majority"


@pytest.mark.parametrize("cls", [SON, RawBSONDocument])
def test_other_document_classes(docs: sd.Collection[Any], stored: Any, cls: Any) -> None:
    docs.insert_one({"_id": 1, "text": "abc", "v": np.zeros(2, np.float32)})
    other = docs.with_options(codec_options=CodecOptions(document_class=cls))
    other.insert_one({"_id": 2, "text": "abcd"})
    other.update_one({"_id": 2}, {"$set": {"text": "abcde"}})
    other.replace_one({"_id": 1}, {"text": "ab"})
    assert outputs(stored) == {1: 2, 2: 5}
    found = other.find_one({"_id": 2})
    assert type(found) is cls
    if cls is RawBSONDocument:
        with pytest.raises(InvalidInputError, match="document_class"):
            other.find(like={"text": "abc"})


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


def test_a_type_registry_of_the_user_keeps_its_classes(docs: sd.Collection[Any], stored: Any) -> None:
    registry = TypeRegistry(fallback_encoder=lambda value: value.cents if isinstance(value, Money) else value)
    other = docs.with_options(codec_options=CodecOptions(type_registry=registry))
    other.insert_one({"_id": 1, "text": "abc", "price": Money(100), "v": np.zeros(2, np.float32)})
    assert stored.find_one(1)["price"] == 100
    assert outputs(stored) == {1: 3}


def test_raw_batches_and_gridfs(docs: sd.Collection[Any], client: sd.Client[Any]) -> None:
    import gridfs

    docs.insert_many([{"_id": i, "text": "abc"} for i in range(3)])
    (batch,) = docs.find_raw_batches({"_id": 1})
    assert decode(batch)["text"] == "abc"
    assert list(docs.aggregate_raw_batches([{"$match": {"_id": 1}}, {"$project": {"text": 1}}])) == [
        encode({"_id": 1, "text": "abc"})
    ]
    files = gridfs.GridFSBucket(client[docs.database.name])
    with files.open_download_stream(files.upload_from_stream("name", b"content")) as stream:
        assert stream.read() == b"content"


@pytest.fixture
def commands() -> list[str]:
    return []


@pytest.fixture
def listened(mongo_uri: str, commands: list[str]) -> Iterator[sd.Client[Any]]:
    class Listener(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            commands.append(event.command_name)

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
            pass

        def failed(self, event: monitoring.CommandFailedEvent) -> None:
            pass

    with sd.Client[Any](mongo_uri, event_listeners=[Listener()]) as client:
        yield client


def test_nothing_registered_means_nothing_but_pymongos_commands(
    listened: sd.Client[Any], commands: list[str], database: Any
) -> None:
    documents = listened[database.name]["plain"]
    documents.insert_many([{"_id": 1}, {"_id": 2}])
    documents.update_one({"_id": 1}, {"$set": {"x": 1}})
    assert documents.find_one(1) == {"_id": 1, "x": 1}
    assert list(documents.find({"_id": 2})) == [{"_id": 2}]
    documents.delete_many({})
    assert [name for name in commands if "sasl" not in name] == ["insert", "update", "find", "find", "delete"]
    assert database.list_collection_names() == ["plain"]


def test_a_write_right_after_another_clients_first_watcher_brings_its_job(
    docs: sd.Collection[Any], other_client: sd.Client[Any], stored: Any
) -> None:
    name = stored.database.name
    plain = docs.database["plain"]
    plain.insert_one({"_id": 0, "text": "abc"})  # nothing was registered on it just now
    other_client[name]["plain"].create_watcher("length", "text")
    assert plain.insert_one({"_id": 1, "text": "abcde"}).jobs
    assert outputs(stored.database["plain"]) == {0: 3, 1: 5}


def test_a_bulk_write_by_id_looks_once_for_all(
    docs: sd.Collection[Any], listened: sd.Client[Any], commands: list[str], stored: Any
) -> None:
    docs.insert_many([{"_id": i, "text": "abc"} for i in range(50)])
    same = listened[docs.database.name]["docs"]
    half: list[Any] = [UpdateOne({"_id": i}, {"$set": {"text": "x" * i}}) for i in range(25)]
    rest: list[Any] = [ReplaceOne({"_id": i}, {"text": "x" * i}) for i in range(25, 50)]
    same.bulk_write(half + rest).jobs.wait()
    assert commands.count("find") == 1
    assert outputs(stored) == {i: i for i in range(50)}


def test_a_dropped_database_is_plain_again(docs: sd.Collection[Any], client: sd.Client[Any], database: Any) -> None:
    client.drop_database(database.name)
    assert not docs.insert_one({"_id": 1, "text": "abc"}).jobs
    assert database["docs"].find_one() == {"_id": 1, "text": "abc"}
    docs.create_model("length", length)
    docs.create_watcher("length", "text")
    assert outputs(database["docs"]) == {1: 3}


def test_a_closed_client_says_so_as_pymongo_does(mongo_uri: str, database: Any) -> None:
    from pymongo.errors import InvalidOperation

    client = sd.Client[Any](mongo_uri)
    client.close()
    client.close()
    with pytest.raises(InvalidOperation, match="after close"):
        client[database.name]["docs"].insert_one({})
