from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from superduper_nb.errors import InvalidInputError, JobFailedError, NotFoundError
from superduper_nb.magics.table import run
from superduper_nb.widgets.status import Status


def test_use_binds_the_collection_and_says_how_much_is_there(docs: Any, connections: Any) -> None:
    outcome = run(f"use {docs.full_name} --as things", connections=connections)
    assert outcome.bindings == {"things": docs}
    assert repr(outcome.value) == f"things = {docs.full_name}: 6 documents"
    assert repr(run(f"use {docs.database.name}", connections=connections).value) == f"using {docs.database.name}"


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
    assert [row["id"] for row in sddb("models").value] == ["words"]
    (watcher,) = sddb("watchers").value
    assert (watcher["watcher"], watcher["key"], watcher["collection"]) == ("words/text", "text", "products")
    (index,) = sddb("indexes").value
    assert (index["index"], index["measure"], index["state"]) == ("meaning", "cosine", "not loaded")
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


def test_insert(docs: Any, sddb: Any) -> None:
    result = sddb("insert -o written", '[{"text": "a"}, {"text": "b", "tags": tags}]', tags=["x"])
    assert len(result.value.inserted_ids) == 2
    assert result.bindings == {"written": result.value}
    assert docs.find_one({"text": "b"})["tags"] == ["x"]
    assert list(result.value.jobs) == ["words/text"]
    sddb("insert", "{text: 'one'}")
    assert docs.count_documents({}) == 9


@pytest.mark.parametrize("body", ["[]", "5", '["a"]', "[{}, 5]"])
def test_insert_refuses_what_is_no_document(docs: Any, sddb: Any, body: str) -> None:
    with pytest.raises(InvalidInputError):
        sddb("insert", body)
    assert docs.count_documents({}) == 6


def test_predict(docs: Any, sddb: Any) -> None:
    output = sddb("predict words", '"red scarf"').value
    np.testing.assert_array_equal(output, docs.predict("words", "red scarf"))
    many = sddb("predict words --many", '["a", query]', query="b").value
    assert len(many) == 2
    with pytest.raises(InvalidInputError, match="a list of inputs"):
        sddb("predict words --many", "5")
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
