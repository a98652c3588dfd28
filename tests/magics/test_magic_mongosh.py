from __future__ import annotations

from typing import Any

import pytest

from superduper_nb.errors import InvalidInputError


@pytest.mark.parametrize(
    "cell",
    [
        "db.products.find({price: {$lt: 50}}).sort({price: -1}).limit(2)",
        'db.products.find({"price": {"$lt": most}}).sort({"price": -1}).limit(2)',
        'db["products"].find({price: {$lt: most}}).limit(2).sort({price: -1}).toArray();',
        "db.getCollection('products').find({price: {$lt: 50}})\n  .sort({price: -1})\n  .limit(2) // dear ones",
    ],
)
def test_find_sort_limit(docs: Any, sddb: Any, cell: str) -> None:
    outcome = sddb("", cell, most=50)
    assert [document["price"] for document in outcome.value] == [35.0, 29.0]
    assert outcome.quiet == cell.endswith(";")


def test_the_python_of_a_result_reproduces_it(docs: Any, sddb: Any) -> None:
    result = sddb("-o hits", "db.products.find({price: {$lt: 50}}, {text: 1}).skip(1).limit(2).sort({price: 1})")
    assert result.bindings == {"hits": result.value}
    query = result.value.query.splitlines()[-1]
    assert list(eval(query, {"client": docs.database.client})) == list(result.value)
    assert len(sddb("hits <<", "db.products.find()").bindings["hits"]) == 6


def test_by_meaning(docs: Any, sddb: Any) -> None:
    result = sddb("", 'db.products.find({$like: {text: "wool hat"}, price: {$lt: 100}}).limit(3)').value
    assert result[0]["text"] == "wool hat with ear flaps"
    assert len(result) == 3
    assert result.facts.index == "meaning"


def test_the_other_methods(docs: Any, sddb: Any) -> None:
    assert sddb("", "db.products.countDocuments({price: {$lt: 20}})").value == 2
    assert sddb("", "db.products.find({price: {$lt: 20}}).count()").value == 2
    assert sddb("", "db.products.findOne({color: 'black'})").value["price"] == 35.0
    assert sddb("", "db.products.find_one({color: 'black'}, {price: 1, _id: 0})").value == {"price": 35.0}
    assert sorted(sddb("", "db.products.distinct('color', {price: {$gt: 20}})").value) == ["black", "blue", "red"]
    (row,) = sddb("", "db.products.aggregate([{$group: {_id: null, n: {$sum: 1}}}])").value
    assert row["n"] == 6
    assert "queryPlanner" in sddb("", "db.products.find({price: 15}).explain()").value
    assert [row["collection"] for row in sddb("", "db.getCollectionNames()").value] == ["products"]
    assert len(sddb("", "db.products.find().limit(0)").value) == 6
    assert type(sddb("--as pandas", "db.products.find()").value).__name__ == "DataFrame"


def test_a_collection_with_dots(docs: Any, sddb: Any) -> None:
    docs.database["a.b"].insert_one({"_id": 1})
    for cell in ("db.a.b.find()", "db['a.b'].find()", "db.getCollection('a.b').find()"):
        assert sddb("", cell).value.to_list() == docs.database["a.b"].find().to_list()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("db.products.fnd({})", "line 1, column 1.*Did you mean 'find'"),
        ("db.products.find({}).srt({a: 1})", "Did you mean 'sort'"),
        ("db.products.deleteMany({})", "%%sddb delete"),
        ("db.products.updateOne({}, {$set: {a: 1}})", "%%sddb update"),
        ("db.products.insertOne({a: 1})", "%%sddb insert"),
        ("db.products.drop()", "not among what runs here"),
        ("db.dropDatabase()", "not among what runs here"),
        ("db.runCommand({ping: 1})", "not among what runs here"),
        ("db.products.find({$where: '1'})", "refused"),
        ("db.products.aggregate([{$out: 'x'}])", "refused"),
        ("db.products", "ends too early"),
        ("db", "one expression that begins with db"),
        ("{price: 5}", "begins with db|expected"),
        ("find({})", "begins with db|expected"),
        ("docs.find({})", "begins with db"),
        ("db.products.find({}, limit=5)", "no keyword arguments"),
        ("db.products.find(*x)", "no keyword arguments"),
        ("db.products.find({}, {}, {})", "at most 2 arguments"),
        ("db.products.find().limit(-1)", "whole number"),
        ("db.products.find().limit('5')", "whole number"),
        ("db.products.find().sort('price')", "takes fields"),
        ("db.products.find().sort()", "needs a value"),
        ("db.products.findOne({}).sort({a: 1})", "follows find"),
        ("db.find({})", "db.collection.find"),
        ("db.getCollection(5).find()", "name of a collection"),
        ("db.getCollection().find()", "name of a collection"),
        ("db.products.find({price: 1)", "line 1, column 27"),
        ("__import__('os').system('true')", "begins with db"),
        ("db.products.find(nowhere)", "'nowhere' is not defined"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_changed(docs: Any, sddb: Any, cell: str, message: str) -> None:
    before = docs.find({}, {"_outputs": 0}).to_list()
    with pytest.raises(InvalidInputError, match=message) as caught:
        sddb("", cell)
    assert "\n" not in str(caught.value)
    assert docs.find({}, {"_outputs": 0}).to_list() == before


def test_without_a_body_a_bare_line_is_help(sddb: Any) -> None:
    assert "%sddb SUB-COMMAND" in repr(sddb("", "  \n").value)
