"""Registering: fourteen mappings, versions, and what is refused."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from client_models import double, length, outputs, words
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import superduper_nb as sd
from superduper_nb.documents.arrays import Array
from superduper_nb.errors import ConflictError, InvalidInputError, NotFoundError

OF_DATABASE = ["models", "types", "measures", "losses", "metrics", "splitters", "functions", "trainers"]
OF_COLLECTION = ["watchers", "semantic_indexes", "imputations", "neighbourhoods", "validation_sets", "learning_tasks"]


def test_there_is_a_mapping_for_each_kind(docs: sd.Collection[Any]) -> None:
    from superduper_nb.components.store import KINDS

    kinds = [getattr(docs, name)._kind for name in OF_DATABASE + OF_COLLECTION]
    assert sorted(kinds) == sorted(KINDS)
    for name in OF_DATABASE:
        assert list(getattr(docs, name)) == list(getattr(docs.database, name))
        assert name in dir(docs)
        assert getattr(type(docs), name).__doc__
    assert list(docs.models) == ["length"]
    assert list(docs.watchers) == ["length/text"]
    assert len(docs.watchers) == 1
    assert docs.models["length"]("four") == 4
    assert docs.watchers["length/text"]["key"] == "text"
    assert repr(docs.losses) == "<losses: none>"
    assert repr(docs.semantic_indexes) == "<semantic indexes: none>"
    assert "length" in docs.models._repr_html_()
    assert docs.models._ipython_key_completions_() == ["length"]


@pytest.mark.parametrize("kind", ["measure", "loss", "metric", "splitter", "function", "trainer"])
def test_callables_of_every_kind_are_stored(docs: sd.Collection[Any], other_client: sd.Client[Any], kind: str) -> None:
    plural = {"loss": "losses"}.get(kind, f"{kind}s")
    assert not getattr(docs, f"create_{kind}")("mine", double)
    other = other_client[docs.database.name]
    assert getattr(other, plural)["mine"](4) == 8
    with pytest.raises(InvalidInputError, match="can't be called"):
        getattr(other, f"create_{kind}")("bad", 5)
    with pytest.raises(InvalidInputError, match="can't be named"):
        getattr(other, f"create_{kind}")("a.b", double)
    getattr(docs, plural).delete("mine")
    assert "mine" not in getattr(other, plural)


def test_registering_the_same_again_is_a_no_op(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_one({"_id": 1, "text": "abc"})
    records = stored.database["_sddb.components"].count_documents({})
    jobs = len(docs.jobs.list())
    assert not docs.create_model("length", length)
    assert not docs.create_watcher("length", "text")
    assert docs.models.versions("length") == [1]
    assert stored.database["_sddb.components"].count_documents({}) == records
    assert len(docs.jobs.list()) == jobs


def test_a_model_that_was_loaded_is_no_new_version_when_it_is_registered_again(docs: sd.Collection[Any]) -> None:
    given = {
        "net": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.LSTM(4, 2)),
        "forest": RandomForestClassifier(5, random_state=0).fit([[0.0], [1.0], [2.0]], ["a", "b", "c"]),
        "text": make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["a bb", "cc dd", "bb ee"], [0, 1, 0]),
        "partial": functools.partial(length, text="text"),
    }
    for name, model in given.items():
        docs.create_model(name, model)
        docs.create_model(name, docs.models[name])
        assert docs.models.versions(name) == [1], name


SCRIPT = """
import sys
import superduper_nb as sd
sys.path.insert(0, sys.argv[3])
import client_models
with sd.Client(sys.argv[1]) as client:
    docs = client[sys.argv[2]]["docs"]
    assert not docs.create_model("length", client_models.length)
    assert not docs.create_model("words", client_models.words, type="vector")
    assert not docs.create_watcher("length", "text")
    print(docs.models.versions("length"), docs.models.versions("words"))
    print(docs.insert_one({"text": "from elsewhere"}).jobs)
"""


def test_also_from_another_process(docs: sd.Collection[Any], mongo_uri: str, stored: Any) -> None:
    from pathlib import Path

    docs.create_model("words", words, type="vector")
    command = [sys.executable, "-c", SCRIPT, mongo_uri, docs.database.name, str(Path(__file__).parent)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert printed.startswith("[1] [1]\n")
    assert list(outputs(stored).values()) == [14]


def test_a_new_version_recomputes_what_depends_on_it(docs: sd.Collection[Any], stored: Any) -> None:
    docs.create_model("double", double)
    docs.create_watcher("double", "text", features={"text": "length"})
    docs.insert_many([{"_id": i, "text": "x" * i} for i in range(3)])
    elsewhere = docs.database["elsewhere"]
    elsewhere.insert_one({"_id": 1, "text": "xx"})
    elsewhere.create_watcher("length", "text")
    jobs = docs.create_model("length", lambda text: len(text) + 100)
    assert len(jobs) == 3
    assert {job.status for job in jobs.values()} == {"succeeded"}
    assert outputs(stored) == {0: 100, 1: 101, 2: 102}
    assert outputs(stored, "text.double") == {0: 200, 1: 202, 2: 204}
    assert outputs(elsewhere) == {1: 102}
    assert docs.models.versions("length") == [1, 2]
    docs.models.rollback("length", 1)
    assert docs.models.versions("length") == [1, 2, 3]
    assert docs.models["length"]("abc") == 3
    assert outputs(stored, "text.double") == {0: 0, 1: 2, 2: 4}
    assert not docs.models.rollback("length", 3)
    with pytest.raises(NotFoundError, match=r"version 9 in .*\. Its versions: 1, 2, 3\.$"):
        docs.models.rollback("length", 9)


def test_how_an_index_is_kept(findable: sd.Collection[Any]) -> None:
    docs = findable
    docs.create_semantic_index("scanned", ["words"], ["text"], index=sd.IndexOptions(kind="scan", compact=True))
    assert docs.semantic_indexes["scanned"]["index"] == {"kind": "scan", "compact": True}
    assert not docs.create_semantic_index("meaning", ["words"], ["text"], index=sd.IndexOptions())  # the default
    assert docs.semantic_indexes.versions("meaning") == [1]
    docs.create_measure("mine", double)
    for index in (sd.IndexOptions(kind="scan"), sd.IndexOptions(compact=True), sd.IndexOptions(depth=50)):
        with pytest.raises(InvalidInputError, match="'mine' is your own"):
            docs.create_semantic_index("own", ["words"], ["text"], "mine", index=index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tree"}, "kind='tree'.*auto, exact, scan, graph"),
        ({"depth": 1}, "depth=1.*from 10 to 10000"),
        ({"depth": True}, "depth=True"),
        ({"compact": 1}, "compact=1"),
        ({"shards": 0}, "shards=0.*from 1 to 256"),
        ({"replicas": 2.0}, "replicas=2.0"),
        ({"lost": "never"}, "lost='never'.*'wait' or 'partial'"),
        ({"kind": "exact", "compact": True}, "don't combine"),
    ],
)
def test_options_of_an_index_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        sd.IndexOptions(**options)


def test_what_is_used_is_not_deleted(findable: sd.Collection[Any]) -> None:
    docs = findable
    docs.create_measure("mine", lambda queries, vectors: queries @ vectors.T)
    docs.create_semantic_index("other", ["words"], ["text"], "mine")
    docs.create_watcher("words", "title")
    docs.create_semantic_index("both", ["words", "words"], ["text", "title"])
    docs.create_model("double", double)
    docs.create_watcher("double", "text", features={"text": "length"})
    docs.create_type("own", Array())
    docs.create_model("typed", double, type="own")
    for registry, id, user in [
        (docs.models, "length", "watcher length/text of docs"),
        (docs.models, "words", "semantic_index meaning of docs"),
        (docs.watchers, "words/text", "semantic_index meaning"),
        (docs.watchers, "words/title", "semantic_index both"),
        (docs.watchers, "length/text", "watcher double/text"),
        (docs.measures, "mine", "semantic_index other"),
        (docs.types, "own", "model typed"),
    ]:
        with pytest.raises(ConflictError, match=user):
            registry.delete(id)
        assert id in registry
        assert any(user in name for name in registry.describe(id)["used_by"])
    docs.semantic_indexes.delete("other")
    docs.measures.delete("mine")
    docs.models.delete("length", force=True)
    assert "length" not in docs.models
    with pytest.raises(NotFoundError, match="lenght"):
        docs.models.delete("lenght")


def test_a_deleted_watcher_takes_its_outputs_along(docs: sd.Collection[Any], stored: Any) -> None:
    docs.insert_one({"_id": 1, "text": "abc"})
    docs.watchers.delete("length/text")
    assert outputs(stored) == {}
    assert stored.find_one(1)["_sddb"] == {"outputs": {}}
    assert not docs.insert_one({"text": "abc"}).jobs


def test_describe_loads_nothing(docs: sd.Collection[Any]) -> None:
    description = docs.models.describe("length")
    assert description["version"] == 1
    assert description["batch_size"] is None
    assert description["used_by"] == ["watcher length/text of docs"]
    assert description["bytes"] > 0


@pytest.mark.parametrize("id", ["a.b", "", "1st", "a b", "$a", "a" * 65, None, 5])
def test_bad_names_are_refused_and_nothing_is_written(client: sd.Client[Any], database: Any, id: Any) -> None:
    docs = client[database.name]["docs"]
    with pytest.raises(InvalidInputError, match="can't be named"):
        docs.create_model(id, length)
    docs.create_model("length", length)
    with pytest.raises(InvalidInputError, match="can't be named"):
        docs.create_semantic_index(id, ["length"], ["text"])
    assert list(docs.models) == ["length"]
    assert list(docs.watchers) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda docs: docs.create_model("m", 5), "is no model"),
        (lambda docs: docs.create_model("m", length, type="vectr"), "Did you mean 'vector'"),
        (lambda docs: docs.create_model("m", length, batch_size=0), "at least 1"),
        (lambda docs: docs.create_model("m", length, preprocess=threading.Lock().acquire), "preprocess of dict"),
        (lambda docs: docs.create_model("m", torch.nn.Linear(1, 1), device="gpu"), "is no torch device"),
        (lambda docs: docs.create_model("m", length, device=None), "is no torch device"),
        (lambda docs: docs.create_type("t", object()), "encode"),
        (lambda docs: docs.create_type("vector", Array()), "built in"),
        (lambda docs: docs.create_measure("cosine", length), "built in"),
        (lambda docs: docs.create_watcher("length", "$text"), "not a key"),
        (lambda docs: docs.create_watcher("length", ""), "not a key"),
        (lambda docs: docs.create_watcher("length", "_outputs.text.length"), "features="),
        (lambda docs: docs.create_watcher("length", "text", filter={"a": {"$foo": 1}}), "refuses filter"),
        (lambda docs: docs.create_watcher("length", "text", filter={"a": object()}), "filter"),
        (lambda docs: docs.create_watcher("length", "text", batch_size=0), "at least 1"),
        (lambda docs: docs.create_semantic_index("i", [], []), "one length"),
        (lambda docs: docs.create_semantic_index("i", "m", "k"), "one length"),
        (lambda docs: docs.create_semantic_index("i", ["length"], ["a", "b"]), "one length"),
        (lambda docs: docs.create_semantic_index("i", ["length"], ["a"], index={"kind": "scan"}), "sd.IndexOptions"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    docs: sd.Collection[Any], stored: Any, make: Any, message: str
) -> None:
    records = stored.database["_sddb.components"]
    before = list(records.find())
    with pytest.raises(InvalidInputError, match=message) as raised:
        make(docs)
    assert "\n" not in str(raised.value)
    assert list(records.find()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_here_is_refused_where_models_run_here(docs: sd.Collection[Any]) -> None:
    layer = torch.nn.Linear(1, 1)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(InvalidInputError, match=r"^device='cuda[^\n]*no such device here[^\n]*$"):
            docs.create_model("m", layer, device=device)
    assert "m" not in docs.models
    docs.create_model("m", layer, device="cuda", resources={"GPU": 1})  # some worker may have one
    assert docs.models.describe("m")["device"] == "cuda"


@pytest.mark.parametrize(
    "make",
    [
        lambda docs: docs.create_watcher("nothing", "text"),
        lambda docs: docs.create_watcher("length", "title", features={"text": "nothing"}),
        lambda docs: docs.create_semantic_index("i", ["nothing"], ["text"]),
        lambda docs: docs.create_semantic_index("i", ["length"], ["text"], "nothing"),
        lambda docs: docs.models["nothing"],
        lambda docs: docs.models.versions("nothing"),
        lambda docs: docs.jobs["nothing"],
    ],
)
def test_what_is_not_there_is_said(docs: sd.Collection[Any], make: Any) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        make(docs)


def test_watchers_that_read_in_a_circle_are_refused(docs: sd.Collection[Any]) -> None:
    docs.create_model("double", double)
    docs.create_watcher("double", "text", features={"text": "length"})
    with pytest.raises(InvalidInputError, match="circle"):
        docs.create_watcher("length", "text", features={"text": "double"})
    assert docs.watchers.versions("length/text") == [1]


def test_outputs_inside_outputs_are_refused(docs: sd.Collection[Any]) -> None:
    docs.create_model("title", length)
    docs.create_watcher("title", "meta")
    with pytest.raises(InvalidInputError, match="inside each other"):
        docs.create_watcher("length", "meta.title")
    assert "length/meta.title" not in docs.watchers


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


class CelsiusType:
    types = (Celsius,)

    def encode(self, x: Celsius) -> bytes:
        return str(x.degrees).encode()

    def decode(self, data: bytes) -> Celsius:
        return Celsius(float(data))


def test_w10_a_type_made_after_the_first_use_is_known(docs: sd.Collection[Any], other_client: sd.Client[Any]) -> None:
    with pytest.raises(InvalidInputError, match="create_type"):
        docs.insert_one({"t": Celsius(20)})
    docs.create_type("celsius", CelsiusType())
    docs.insert_one({"_id": 1, "t": Celsius(20), "list": [Celsius(30)]})
    for client in (docs.database.client, other_client):
        found = client[docs.database.name]["docs"].find_one(1)
        assert found is not None
        assert (found["t"].degrees, found["list"][0].degrees) == (20, 30)


def test_w12_two_that_register_at_once_agree(mongo_uri: str, docs: sd.Collection[Any]) -> None:
    def register(n: int) -> None:
        with sd.Client(mongo_uri) as client:
            client[docs.database.name].create_function("f", lambda: n)

    threads = [threading.Thread(target=register, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert docs.functions.versions("f") == [1, 2, 3, 4]


def test_models_of_several_kinds(docs: sd.Collection[Any], stored: Any) -> None:
    import torch
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.arange(6, dtype=np.float64).reshape(3, 2))
    docs.create_model("torch", torch.nn.Linear(2, 3), preprocess=torch.tensor, type="vector")
    docs.create_model("sklearn", scaler)
    docs.create_model("no_parameters", torch.nn.Identity(), preprocess=torch.tensor)
    for model in ("torch", "sklearn", "no_parameters"):
        docs.create_watcher(model, "x")
    docs.insert_many([{"_id": i, "x": [float(i), 1.0]} for i in range(5)]).jobs.wait()
    for document in docs.find():
        made = document["_outputs"]["x"]
        x = torch.tensor(document["x"])
        with torch.inference_mode():
            np.testing.assert_allclose(made["torch"], docs.models["torch"](x), atol=1e-6)
        np.testing.assert_allclose(made["sklearn"], scaler.transform([document["x"]])[0])
        assert torch.equal(torch.as_tensor(made["no_parameters"]), x)


def test_a_key_that_no_document_has_is_told(docs: sd.Collection[Any], caplog: pytest.LogCaptureFixture) -> None:
    docs.create_watcher("length", "txet")  # nothing is there yet
    docs.insert_many([{"text": "a"}, {"text": "b", "more": "c"}])
    docs.create_watcher("length", "more")
    docs.create_watcher("length", "_base")
    assert caplog.messages == []
    docs.create_watcher("length", "txet")
    assert caplog.messages == ["length/txet: 2 documents were looked at, and none has the key. Did you mean 'text'?"]


def test_a_version_that_was_trained_does_not_go_unnoticed(
    docs: sd.Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = docs._workspace.store
    first = store.get("model", "length")
    origin = {"base": first.hash, "by": "imputation x of docs", "run": "r"}
    store.put("model", "length", first.definition, obj={"object": len}, origin=origin)
    docs.create_model("length", length)
    assert caplog.messages == []
    docs.create_model("length", words)
    assert "version 3 takes the place of version 2, which imputation x of docs had trained" in caplog.text
    assert "docs.models.rollback('length', 2)" in caplog.text


def test_a_method_whose_name_is_mistyped_is_named(docs: sd.Collection[Any]) -> None:
    with pytest.raises(TypeError, match=r"no method 'creat_model'\. Did you mean 'create_model'\?"):
        docs.creat_model("m", len)
    with pytest.raises(TypeError, match="'Collection' object is not callable"):
        docs.zzz()
