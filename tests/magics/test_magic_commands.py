from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from superduper_nb.client import Client
from superduper_nb.cluster.mongod import connect_options
from superduper_nb.errors import InvalidInputError, JobFailedError, NotFoundError, TrustError
from superduper_nb.magics.table import run
from superduper_nb.widgets.status import Status


def test_use_binds_the_collection_and_says_how_much_is_there(docs: Any, connections: Any) -> None:
    outcome = run(f"use {docs.full_name} --as things", connections=connections)
    assert outcome.bindings == {"things": docs}
    assert repr(outcome.value) == f"things = {docs.full_name}: 6 documents"
    assert repr(run(f"use {docs.database.name}", connections=connections).value) == f"using {docs.database.name}"


def test_use_has_the_indexes_loaded_before_the_first_search_comes(docs: Any, mongo_uri: str, connections: Any) -> None:
    with Client[dict[str, Any]](mongo_uri, **connect_options()) as fresh:
        connections.open("fresh", {}, connect=lambda **_: fresh)
        assert fresh.services.indexes() == []
        run(f"use {docs.full_name} --on fresh", connections=connections)
        assert [index["id"] for index in fresh.services.indexes()] == ["meaning"]


def test_without_a_collection_in_use_the_error_says_how_to_choose_one(connections: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"%sddb use database\.collection"):
        run("find", connections=connections)


def test_in_names_another_collection(docs: Any, sddb: Any) -> None:
    docs.database["other"].insert_one({"_id": 7})
    result = sddb(f"find --in {docs.database.name}.other").value
    assert result.to_list()[0]["_id"] == 7
    *lines, query = result.query.splitlines()
    assert lines == ["import superduper_nb as sd", "client = sd.connect()"]
    assert query == f"client['{docs.database.name}']['other'].find({{}}, limit=20)"


def test_status_shows_each_component(docs: Any, sddb: Any) -> None:
    status = sddb("status").value
    assert isinstance(status, Status)
    assert status["components"]["mongodb"]["state"] == "running"
    text = repr(status)
    for word in ("default", "mongodb", "● running", "linear algebra", "model server", "jobs"):
        assert word in text
    assert "password" not in text.lower()


def test_what_there_is(docs: Any, sddb: Any) -> None:
    name = docs.database.name
    assert name in [row["database"] for row in sddb("databases").value]
    assert sddb("collections").value.to_pandas().to_dict("records") == [{"collection": "products", "documents": 6}]
    assert [(row["id"], row["state"]) for row in sddb("models").value] == [("words", "unloaded")]
    (watcher,) = sddb("watchers").value
    assert (watcher["watcher"], watcher["key"], watcher["collection"]) == ("words/text", "text", "products")
    (index,) = sddb("indexes").value
    assert (index["index"], index["measure"]) == ("meaning", "cosine")
    assert index["state"] in ("loading", "ready")
    sddb("find", '{"$like": {"text": "hat"}}')
    (index,) = sddb(f"indexes --in {name}").value
    assert (index["index"], index["state"], index["size"], index["dimension"]) == ("meaning", "ready", 6, 64)


def test_where_there_is_nothing_it_says_how_to_make_it(sddb: Any) -> None:
    for line, word in {
        "collections": "no collection yet",
        "models": "create_model",
        "watchers": "create_watcher",
        "indexes": "create_semantic_index",
        "jobs": "no job",
    }.items():
        assert word in repr(sddb(line).value)


def test_an_unknown_measure_is_told_with_those_there_are(docs: Any) -> None:
    with pytest.raises(NotFoundError, match=r"'manhattan'.*'cosine'.*'dot'.*'l2'"):
        docs.create_semantic_index("other", ["words"], ["text"], measure="manhattan")


def test_insert(docs: Any, sddb: Any) -> None:
    result = sddb("insert -o written", '[{"text": "a"}, {"text": "b", "tags": tags}]', tags=["x"])
    assert len(result.value.inserted_ids) == 2
    assert result.bindings == {"written": result.value}
    assert docs.find_one({"text": "b"})["tags"] == ["x"]
    assert list(result.value.jobs) == ["words/text"]
    sddb("insert", "{text: 'one'}")
    assert docs.count_documents({}) == 9


def test_a_write_that_waits_ends_when_its_jobs_have(docs: Any, sddb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = sddb("insert --wait -o made", '{"text": "blue socks"}')
    assert outcome.quiet
    assert [job.status for job in outcome.bindings["made"].jobs.values()] == ["succeeded"]
    assert "1 document inserted" in capsys.readouterr().out
    changed = sddb("update --wait", '{"text": "blue socks"}, {"$set": {"text": "green socks"}}')
    assert changed.value.modified_count == 1
    assert changed.quiet


@pytest.mark.parametrize("body", ["[]", "5", '["a"]', "[{}, 5]"])
def test_insert_refuses_what_is_no_document(docs: Any, sddb: Any, body: str) -> None:
    with pytest.raises(InvalidInputError):
        sddb("insert", body)
    assert docs.count_documents({}) == 6


def test_predict(docs: Any, sddb: Any) -> None:
    for line, body in {"predict words": '"red scarf"', "predict words 'red scarf'": None}.items():
        np.testing.assert_array_equal(sddb(line, body).value, docs.predict("words", "red scarf"))
    many = sddb("predict words --many", '["a", query]', query="b").value
    assert len(many) == 2
    with pytest.raises(InvalidInputError, match="a list of inputs"):
        sddb("predict words --many", "5")
    with pytest.raises(InvalidInputError, match="one input"):
        sddb("predict words scarf", '"hat"')
    with pytest.raises(NotFoundError, match=r"'wrds'.*'words'"):
        sddb("predict wrds", '"x"')


def test_jobs_and_logs(docs: Any, sddb: Any) -> None:
    (job,) = sddb("jobs").value
    assert (job["job"], job["state"], job["done"], job["of"]) == ("words/text", "succeeded", 6, 6)
    assert len(sddb("jobs failed").value) == 0
    assert "printed nothing" in repr(sddb(f"logs {job['id']}").value)
    with pytest.raises(NotFoundError):
        sddb("logs 66f0a1b2c3d4e5f6a7b8c9d0")


def test_wait_shows_how_it_ended(docs: Any, sddb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sddb("wait")
    assert capsys.readouterr().out == "no job is pending or running\n"
    (job,) = sddb("jobs").value
    sddb(f"wait {job['id']} --timeout 10")
    assert "✓ succeeded  words/text  6/6" in capsys.readouterr().out


def test_a_failed_job_can_be_seen_waited_for_retried_and_cancelled(docs: Any, sddb: Any) -> None:
    docs.create_model("broken", lambda x: 1 / 0)
    docs.create_watcher("broken", "price")
    rows = sddb("jobs").value
    broken = next(row for row in rows if row["job"] == "broken/price")
    line = f"retry {broken['id']}"
    assert "queued again" in repr(sddb(line).value)
    if docs.jobs[broken["id"]].status == "failed":
        with pytest.raises(JobFailedError, match="broken/price"):
            sddb(f"wait {broken['id']}")
    else:  # single documents failed: told, and no failure of the job
        assert docs.jobs[broken["id"]].failures["count"] == 6


def test_bindings_and_what_is_shown(docs: Any, sddb: Any) -> None:
    shown = sddb("count -o n", "{}")
    assert (shown.bindings, shown.quiet) == ({"n": 6}, False)
    bound = sddb("n << count", "{}")
    assert (bound.bindings, bound.quiet) == ({"n": 6}, True)
    assert sddb("count -o n", "{};").quiet
    assert sddb("count;").quiet
    assert not sddb("count", '{"text": ";"}').quiet


def test_describe_tells_fields_types_and_how_many_have_them(docs: Any, sddb: Any) -> None:
    docs.insert_many([{"text": None, "size": {"width": 1.5}}, {"price": "much"}])
    rows = {row["field"]: row for row in sddb("describe").value}
    assert rows["text"]["in"] == "88%"
    assert rows["text"]["type"] == "text | null"
    assert rows["price"]["type"] == "float | text"
    assert rows["size.width"]["example"] == 1.5
    assert "_outputs.text.words" in rows
    assert not {"_sddb", "_fold"} & {name.partition(".")[0] for name in rows}
    assert "8 documents, judged by 8" in repr(sddb("describe").value)
    assert "has no document" in repr(sddb(f"describe --in {docs.database.name}.nothing").value)


def test_describe_a_component(docs: Any, sddb: Any) -> None:
    model = sddb("describe models/words").value
    assert (model["version"], model["used_by"][0]) == (1, "watcher words/text of products")
    assert sddb("describe watchers/words/text").value["key"] == "text"
    assert sddb("describe indexes/meaning").value["measure"] == "cosine"
    with pytest.raises(InvalidInputError, match="Did you mean 'models'"):
        sddb("describe model/words")
    with pytest.raises(InvalidInputError, match="kind/name"):
        sddb("describe words")
    with pytest.raises(NotFoundError):
        sddb("describe models/wrds")


def test_trust(docs: Any, sddb: Any, connections: Any, mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERDUPER_TRUST_KEY", "ab" * 32)  # as on another machine
    with Client[dict[str, Any]](mongo_uri, **connect_options()) as elsewhere:
        there = elsewhere[docs.database.name]["products"]
        with pytest.raises(TrustError, match="%sddb trust models/words"):
            there.models["words"]
        told = repr(sddb("trust models/words").value)
        assert told.startswith("models/words, version 1, is trusted here: ")
        assert callable(there.models["words"])
    with pytest.raises(NotFoundError):
        sddb("trust models/wrds")
    with pytest.raises(InvalidInputError, match="holds no object"):
        sddb("trust watchers/words/text")


def test_stats(docs: Any, sddb: Any) -> None:
    told = sddb("stats").value
    assert told["documents"] == 6
    assert told["size"] > 0
    assert "_id_" in told["size of each index"]
    assert sddb(f"stats --in {docs.database.name}").value["database"] == docs.database.name


class Reversed:
    """A type of the tests."""

    def encode(self, x: str) -> bytes:
        return x[::-1].encode()

    def decode(self, data: bytes) -> str:
        return data.decode()[::-1]


def test_types(docs: Any, sddb: Any) -> None:
    docs.create_type("reversed", Reversed())
    rows = {row["type"]: row for row in sddb("types").value}
    assert rows["vector"]["from"] == "built in"
    assert rows["reversed"]["from"] == docs.database.name
    assert "PIL" in rows["image"]["for"]
    assert rows["pickle"]["for"] == "only where it is named"


def test_config_tells_no_secret(docs: Any, sddb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERDUPER_TOKEN", "hunter2")
    monkeypatch.setenv("SUPERDUPER_MONGODB__URI", "mongodb://u:hunter2@host/")
    listed = sddb("config").value
    rows = {row["setting"]: row["value"] for row in listed}
    assert rows["token"] == rows["mongodb.uri"] == "(set, not shown)"
    assert rows["valid_fraction"] == "0.05"
    assert "hunter2" not in repr(listed) + listed._repr_mimebundle_()["text/html"]


def test_insert_from_a_variable(docs: Any, sddb: Any) -> None:
    import pandas

    frame = pandas.DataFrame({"text": ["x", "y"], "price": [1.0, 2.0]})
    assert len(sddb("insert --from frame", frame=frame).value.inserted_ids) == 2
    assert docs.find_one({"text": "y"})["price"] == 2.0
    sddb("insert", "frame", frame=frame)
    assert docs.count_documents({}) == 10
    with pytest.raises(InvalidInputError, match="no such variable"):
        sddb("insert --from nothing")
    with pytest.raises(InvalidInputError, match="not both"):
        sddb("insert --from frame", "{}", frame=frame)
    with pytest.raises(InvalidInputError, match="empty"):
        sddb("insert")


def test_update(docs: Any, sddb: Any) -> None:
    result = sddb("update", "{color: 'red'}, {$set: {text: 'crimson', price: 1}};")
    assert (result.value.modified_count, result.quiet) == (2, True)
    assert list(result.value.jobs) == ["words/text"]
    assert docs.count_documents({"text": "crimson"}) == 2
    assert sddb("update --one", '{}, {"$set": {"seen": True}}').value.modified_count == 1
    with pytest.raises(InvalidInputError, match=r"all 6 documents.*--yes"):
        sddb("update", '{}, {"$set": {"seen": True}}')
    assert sddb("update --yes", '{}, {"$set": {"seen": True}}').value.matched_count == 6
    assert sddb("update --upsert", '{"color": "pink"}, {"$set": {"seen": True}}').value.upserted_id is not None


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("{}", "filter, change"),
        ("{a: 1}, {b: 2}", "made of operators"),
        ("{a: 1}, {$set: {b: 2}}, {}", "filter, change"),
        ('{"$like": {"text": "x"}}, {"$set": {"b": 2}}', r"no \$like"),
        ('{"$where": "1"}, {"$set": {"b": 2}}', "refused"),
    ],
)
def test_update_refuses(docs: Any, sddb: Any, cell: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        sddb("update", cell)
    assert docs.count_documents({"b": {"$exists": True}}) == 0


def test_delete_says_how_many_and_needs_yes(docs: Any, sddb: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"deletes 2 documents of .*products: say --yes"):
        sddb("delete", "{color: 'red'}")
    with pytest.raises(InvalidInputError, match=r"6 documents of .*, which is all of them"):
        sddb("delete", "{}")
    with pytest.raises(InvalidInputError, match="needs a body"):
        sddb("delete --yes")
    with pytest.raises(InvalidInputError, match="refused"):
        sddb("delete --yes", '{"$where": "1"}')
    with pytest.raises(InvalidInputError, match=r"no \$like"):
        sddb("delete --yes", '{"$like": {"text": "x"}}')
    assert docs.count_documents({}) == 6
    assert sddb("delete --yes", "{color: 'red'}").value.deleted_count == 2
    assert docs.count_documents({}) == 4


def test_watch_prints_how_it_goes(docs: Any, sddb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sddb("watch")
    assert "words/text succeeded 6/6" in capsys.readouterr().out
    (job,) = sddb("jobs").value
    sddb(f"watch {job['id']}")
    assert "succeeded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "cell",
    [
        "def length(text):\n    return [float(len(text)), factor]",
        "base = 1\nlambda text: [float(len(text)), factor]",
        "length = lambda text: [float(len(text)), factor]",
        "class Length:\n    def __call__(self, text):\n        return [float(len(text)), factor]",
    ],
)
def test_a_cell_defines_and_registers_a_model(docs: Any, connections: Any, cell: str) -> None:
    scope: dict[str, Any] = {"__name__": "__main__", "factor": 2.0}
    line = f"model length --type vector --in {docs.full_name}"
    made = run(line, cell, names=scope, scope=scope, connections=connections)
    assert "length, version 1" in repr(made.value)
    assert list(docs.predict("length", "four")) == [4.0, 2.0]
    docs.create_watcher("length", "text")
    other = cell.replace("float(len(text))", "0.0")
    jobs = run(line, other, names=scope, scope=scope, connections=connections).value
    assert list(jobs) == ["length/text"]
    assert list(docs.predict("length", "four")) == [0.0, 2.0]


@pytest.mark.parametrize(
    ("cell", "message"), [("import os", "ends in no model"), ("def f(:", "line 1, column 7"), ("5", "model|call")]
)
def test_a_cell_that_defines_no_model(docs: Any, sddb: Any, cell: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        sddb("model m", cell)
    assert "m" not in docs.models


def test_what_a_model_cell_raises_is_the_users_own(docs: Any, sddb: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        sddb("model m", "1 / 0")
