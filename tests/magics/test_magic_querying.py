from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pymongo.errors
import pytest

from superduper_nb.errors import DeadlineError, InvalidInputError, MongoUnavailableError
from superduper_nb.magics.problems import one_line
from superduper_nb.magics.reading import fields_argument, sort_argument
from superduper_nb.widgets.results import Document, Result
from tests.widgets.payloads import foreign_parts


def test_find_by_meaning_gives_the_documents_that_the_python_call_gives(docs: Any, sddb: Any) -> None:
    result = sddb(
        "find -n 3", '{"price": {"$lt": limit}, "$like": {"text": wanted}}', limit=100, wanted="wool hat"
    ).value
    twin = list(docs.find({"price": {"$lt": 100}}, like={"text": "wool hat"}, n=3))
    assert [(d["_id"], d["_score"]) for d in result] == [(d["_id"], d["_score"]) for d in twin]
    assert result[0]["text"] == "wool hat with ear flaps"
    assert result.facts.index == "meaning"
    assert "3 documents · index meaning (" in repr(result)


def test_a_find_that_overtakes_the_job_of_an_insert_waits_for_what_matches(docs: Any, sddb: Any, tmp_path: Any) -> None:
    searched = tmp_path / "searched"

    def late(text: str, searched: Any = searched) -> list[float]:
        if text == "asked":
            searched.touch()
        while not searched.exists():
            time.sleep(0.01)
        return [float(len(text)), 1.0]

    docs.create_model("late", late, type="vector")
    docs.create_watcher("late", "note")
    docs.create_semantic_index("notes", ["late"], ["note"])
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(docs.insert_one, {"note": "written"})
        while not docs.count_documents({"note": "written"}):
            time.sleep(0.01)
        result = sddb("find --index notes", '{"note": "written", "$like": {"note": "asked"}}').value
        assert [document["note"] for document in result] == ["written"]
        writing.result(30)
    assert len(sddb("find --index notes", '{"note": "else", "$like": {"note": "asked"}}').value) == 0


def test_like_on_the_line_is_like_in_the_body(docs: Any, sddb: Any) -> None:
    def ranked(found: Any) -> list[Any]:
        return [(document["_id"], document["_score"]) for document in found]

    twin = docs.find({}, like={"text": "wool hat"}, n=3).to_list()
    result = sddb("""find -n 3 --like '{text: "wool hat"}'""").value
    assert ranked(result) == ranked(twin) == ranked(eval(result.query, {"docs": docs}))
    cheap, first, second = {"price": {"$lt": 100}}, twin[0], twin[1]
    both = sddb("find -n 2 --like first --like second", "cheap", first=first, second=second, cheap=cheap).value
    assert ranked(both) == ranked(docs.find(cheap, like=[first, second], n=2))
    assert sddb("""find_one --like '{text: "straw"}'""").value["color"] == "yellow"
    with pytest.raises(InvalidInputError, match="give one of them"):
        sddb("find --like first", '{"$like": {"text": "hat"}}', first=first)


def test_the_query_of_a_result_reproduces_it(docs: Any, sddb: Any) -> None:
    cell = '{price: {$lt: 100}, "$like": {"text": "wool hat"}};'
    result = sddb("find -n 2 --skip 1 --fields text", cell).value
    assert result.query == (
        "docs.find({'price': {'$lt': 100}, '$like': {'text': 'wool hat'}}, n=2, skip=1, projection={'text': 1})"
    )
    assert list(eval(result.query, {"docs": docs})) == list(result)


def test_the_query_imports_the_constructors_it_uses(docs: Any, sddb: Any) -> None:
    id = docs.find_one({"color": "black"})["_id"]
    result = sddb("find", f'{{"_id": {{"$oid": "{id}"}}}}').value
    scope: dict[str, Any] = {"docs": docs}
    *imports, query = result.query.splitlines()
    exec("\n".join(imports), scope)
    assert [document["_id"] for document in eval(query, scope)] == [id] == [document["_id"] for document in result]


def test_find_without_a_body_shows_the_first_documents_and_says_how_many_there_are(docs: Any, sddb: Any) -> None:
    result = sddb("find -n 4").value
    assert len(result) == 4
    assert "4 of 6 documents" in repr(result)
    assert len(sddb("find -n 0").value) == 6
    everything = sddb("find").value
    assert "6 documents" in repr(everything)
    assert " of " not in repr(everything).splitlines()[-1]


def test_the_body_may_stand_in_a_file(docs: Any, sddb: Any, tmp_path: Path) -> None:
    file = tmp_path / "cheap.js"
    file.write_text("{price: {$lt: limit}}  // as it is typed into mongosh\n")
    found = sddb(f"find -n 0 --file {file}", limit=20)
    assert [document["price"] for document in found.value] == [19.5, 15.0]
    assert found.value.query == "docs.find({'price': {'$lt': limit}})"
    with pytest.raises(InvalidInputError, match="takes one body"):
        sddb(f"find --file {file}", "{}")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="UTF-8"):
        sddb(f"find --file {file}")


def test_sort_skip_and_fields(docs: Any, sddb: Any) -> None:
    result = sddb("find -n 2 --skip 1 --sort -price --fields price,-_id", "{}").value
    assert result.to_list() == [{"price": 35.0}, {"price": 29.0}]


def test_min_score_and_exact(docs: Any, sddb: Any) -> None:
    result = sddb("find --min-score 0.9 --exact --index meaning", '{"$like": {"text": "thick winter coat"}}').value
    assert [document["text"] for document in result] == ["thick winter coat"]


def test_a_min_score_of_zero_is_one(docs: Any, sddb: Any) -> None:
    result = sddb("find --min-score 0", '{"$like": {"text": "hat"}}').value
    assert "min_score=0.0" in result.query


def test_a_vector_or_document_of_the_user_is_simply_named(docs: Any, sddb: Any) -> None:
    wanted = docs.find_one({"color": "yellow"})
    result = sddb("find -n 1", '{"$like": {"_id": wanted["_id"]}}', wanted=wanted).value
    assert result[0]["_id"] == wanted["_id"]


def test_explain_shows_the_time_of_each_stage(docs: Any, sddb: Any) -> None:
    explained = sddb("find --explain", '{"price": {"$lt": 100}, "$like": {"text": "hat"}}').value
    assert explained["search"]["index"] == "meaning"
    heading, _, *stages = repr(explained).splitlines()
    assert heading.startswith(
        "index meaning by cosine · filter, then exact · 5 candidates · 5 of them match · 5 found in "
    )
    times = {name: float(ms) for name, _, ms in (line.rpartition(" ") for line in stages)}
    assert {name.strip() for name in times} == {*explained["search"]["stages_ms"], "on the way"}
    html = explained._repr_mimebundle_()["text/html"]
    assert html.count("<meter ") == len(times)
    assert foreign_parts(html) == []


def test_explain_shows_the_plan_of_mongodb(docs: Any, sddb: Any) -> None:
    docs.create_index("price")
    explained = sddb("find --explain", '{"price": 15}').value
    assert "queryPlanner" in explained
    assert repr(explained).startswith("LIMIT ← FETCH ← IXSCAN price_1 · 1 keys and 1 documents looked at · 1 found in ")
    assert foreign_parts(explained._repr_mimebundle_()["text/html"]) == []


def test_every_sub_command_takes_a_time_limit(docs: Any, sddb: Any) -> None:
    assert len(sddb("find --timeout 30").value) == 6
    for line in ("find --timeout 0.00001", "count --timeout 0.00001", "describe --timeout 0.00001"):
        with pytest.raises(DeadlineError, match="longer than allowed"):
            sddb(line)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (pymongo.errors.ServerSelectionTimeoutError("no server"), MongoUnavailableError),
        (pymongo.errors.AutoReconnect("closed"), MongoUnavailableError),
        (pymongo.errors.NetworkTimeout("timed out"), DeadlineError),
        (pymongo.errors.ExecutionTimeout("operation exceeded time limit", 50), DeadlineError),
        (pymongo.errors.OperationFailure("unknown operator: $lk"), InvalidInputError),
    ],
)
def test_a_server_that_is_gone_is_no_slow_one(raised: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as told, one_line("find"):
        raise raised
    assert told.value.__cause__ is raised
    assert "\n" not in str(told.value)


def test_find_one(docs: Any, sddb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    document = sddb("find_one --sort price", "{}").value
    assert isinstance(document, Document)
    assert document["price"] == 15.0
    assert sddb("find_one", '{"$like": {"text": "swimming trunks"}}').value["color"] == "blue"
    assert sddb("find_one", '{"price": -1}').value is None
    assert capsys.readouterr().out == "no document matches\n"


def test_count_and_distinct(docs: Any, sddb: Any) -> None:
    assert sddb("count").value == 6
    assert sddb("count", "{price: {$lt: 20}}").value == 2
    assert sorted(sddb("distinct color").value) == ["black", "blue", "red", "yellow"]
    assert sddb("distinct color -n 1", '{"$like": {"text": "straw hat"}}').value == ["yellow"]


def test_aggregate(docs: Any, sddb: Any) -> None:
    result = sddb("aggregate", '[{"$group": {"_id": "$color", "n": {"$sum": 1}}}, {"$sort": {"_id": 1}}]').value
    assert {row["_id"]: row["n"] for row in result} == {"black": 1, "blue": 2, "red": 2, "yellow": 1}
    assert "2 documents, more match" in repr(sddb("aggregate -n 2", '[{"$match": {}}]').value)
    nearest = sddb("aggregate -n 1", '[{"$like": {"text": "insulated gloves"}}, {"$project": {"color": 1}}]').value
    assert [row["color"] for row in nearest] == ["black"]


@pytest.mark.parametrize(
    ("form", "kind"), [("table", "Result"), ("gallery", "Result"), ("json", "Note"), ("pandas", "DataFrame")]
)
def test_forms(docs: Any, sddb: Any, form: str, kind: str) -> None:
    assert type(sddb(f"find -n 2 --as {form}").value).__name__ == kind


@pytest.mark.parametrize("option", ["--index meaning", "--exact", "--min-score 0.5"])
def test_options_of_a_search_need_like(docs: Any, sddb: Any, option: str) -> None:
    with pytest.raises(InvalidInputError, match=r"--[a-z-]+ needs a \$like"):
        sddb(f"find {option}", '{"price": 15}')


@pytest.mark.parametrize(
    ("line", "cell", "message"),
    [
        ("find", "[1, 2]", "a filter, such as"),
        ("find -n 0", '{"$like": {"text": "x"}}', "-n 0"),
        ("find", '{"price": {"$ltt": 5}}', r"\$ltt.*Did you mean '\$lt'"),
        ("aggregate", '[{"$mach": {}}]', r"Did you mean '\$match'"),
        ("aggregate", "{}", "a list of stages"),
        ("count", '{"$like": {"text": "x"}}', r"count takes no \$like"),
        ("find", '{"x": np.zeros(3) @ np.zeros(4)}', "in the body, line 1, column 7: ValueError"),
        ("find", '{"a": 2**70}', "8-byte ints"),
        ("find", '{"a": object()}', "(?i)object"),
        ("find --in nowhere", "{}", "only the database nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(docs: Any, sddb: Any, line: str, cell: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        sddb(line, cell, np=np)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cell",
    [
        '{"$where": "sleep(1000)"}',
        '{"$or": [{"a": 1}, {"$where": "1"}]}',
        '{"$expr": {"$function": {"body": "", "args": [], "lang": "js"}}}',
        '{"a": code}',
        '{"\\u0024where": "1"}',
    ],
)
def test_javascript_is_refused_at_any_depth(docs: Any, sddb: Any, cell: str) -> None:
    from bson import Code

    with pytest.raises(InvalidInputError, match="refused"):
        sddb("find", cell, code=Code("1"))


@pytest.mark.parametrize(
    "cell",
    [
        '[{"$out": "elsewhere"}]',
        '[{"$merge": {"into": "elsewhere"}}]',
        '[{"$facet": {"a": [{"$lookup": {"from": "x", "pipeline": [{"$out": "y"}]}}]}}]',
        '[{"$currentOp": {}}]',
    ],
)
def test_a_pipeline_that_writes_or_looks_into_the_server_is_refused(docs: Any, sddb: Any, cell: str) -> None:
    before = docs.database.list_collection_names()
    with pytest.raises(InvalidInputError, match="refused"):
        sddb("aggregate", cell)
    assert sorted(docs.database.list_collection_names()) == sorted(before)


def test_a_value_that_contains_itself_is_refused(docs: Any, sddb: Any) -> None:
    loop: dict[str, Any] = {}
    loop["a"] = loop
    with pytest.raises(InvalidInputError, match="contains itself"):
        sddb("find", '{"x": loop}', loop=loop)


def test_sort_and_fields_are_read() -> None:
    assert sort_argument("price,-rating,a.b:desc,c:1") == [("price", 1), ("rating", -1), ("a.b", -1), ("c", 1)]
    assert fields_argument("text, price,-_id") == {"text": 1, "price": 1, "_id": 0}
    assert fields_argument("-vector") == {"vector": 0}


@pytest.mark.parametrize("text", ["a,-b", "$secret", "", ","])
def test_wrong_fields(text: str) -> None:
    import argparse

    with pytest.raises(argparse.ArgumentTypeError):
        fields_argument(text)


def test_results_are_results(docs: Any, sddb: Any) -> None:
    result = sddb("find").value
    assert isinstance(result, Result)
    assert isinstance(result[:2], Result)
    assert list(result.to_pandas()["price"]) == [row["price"] for row in result]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("--unlike bad --min-score 0.1", {"unlike": {"text": "wool hat"}, "min_score": 0.1}),
        ("--unlike '{text: \"wool\"}' --unlike bad", {"unlike": [{"text": "wool"}, {"text": "wool hat"}]}),
        ("--max-score 0.5 --exact", {"max_score": 0.5, "exact": True}),
        ("--diversity 0.7", {"diversity": 0.7}),
        ("--group-by color", {"group_by": "color"}),
        ("--features text=words", {"features": {"text": "words"}}),
    ],
)
def test_options_of_a_search_are_those_of_the_client(docs: Any, sddb: Any, line: str, options: dict[str, Any]) -> None:
    hits = sddb(f"find -n 4 {line}", '{"$like": {"text": "wool scarf"}}', bad={"text": "wool hat"}).value
    wanted = list(docs.find(like={"text": "wool scarf"}, n=4, **options))
    assert [hit["_id"] for hit in hits] == [hit["_id"] for hit in wanted]
    assert hits.scores == [hit["_score"] for hit in wanted]
    again = list(eval(hits.query, {"docs": docs}))
    assert [hit["_id"] for hit in again] == [hit["_id"] for hit in wanted]


def test_words_of_the_search_are_marked_in_what_it_found(docs: Any, sddb: Any) -> None:
    docs.insert_one({"text": "<b>Wool</b> & woolly <script>"})
    hits = sddb("find -n 7", '{"$like": {"text": "some wool, with a <b>"}}').value
    shown = hits._repr_mimebundle_()["text/html"]
    assert "warm red <mark>wool</mark> scarf" in shown
    assert "&lt;b&gt;<mark>Wool</mark>&lt;/b&gt; &amp; woolly &lt;script&gt;" in shown
    assert "<mark>with</mark>" not in shown
    assert "<mark>" not in sddb("find", "{}").value._repr_mimebundle_()["text/html"]
