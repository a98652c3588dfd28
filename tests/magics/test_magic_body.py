from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64, MaxKey, ObjectId, Regex, Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from superduper_nb.errors import InvalidInputError
from superduper_nb.magics.body import parse
from superduper_nb.magics.shell import parse_shell

ID = "66f0a1b2c3d4e5f6a7b8c9d0"


def value(text: str, **names: Any) -> Any:
    return parse(text, names).evaluate(names)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text().filter(lambda k: k[:1] != "$"), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(documents)
@settings(deadline=None)
def test_every_json_document_is_read(document: Any) -> None:
    assert value(json.dumps(document)) == document


@given(documents)
@settings(deadline=None)
def test_every_python_literal_is_read(document: Any) -> None:
    assert value(repr(document)) == document


@given(documents, st.sampled_from(["", " // end", "\n/* end */\n", " # end", ";", " ; // end"]))
@settings(deadline=None)
def test_the_shell_reader_agrees_with_json(document: Any, ending: str) -> None:
    from ast import Expression, fix_missing_locations

    tree, quiet = parse_shell(json.dumps(document) + ending)
    code = compile(fix_missing_locations(Expression(tree)), "", "eval")
    assert eval(code) == document
    assert quiet == (";" in ending)


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    assert "\n" not in refusal(text)


def refusal(text: str) -> str:
    """Return the error of a body; empty where it is read."""
    try:
        assert parse(text).python
    except InvalidInputError as error:
        return str(error)
    return ""


@given(st.text(alphabet="{}[]()$:,;'\"\\/ab1.-+ \n#*", max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_punctuation_is_read_or_refused(text: str) -> None:
    assert len(refusal(text)) < 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{price: {$lt: 50}}", {"price": {"$lt": 50}}),
        ("{price: 50}", {"price": 50}),
        ("{'a.b': 1, $or: [{c: true}, {d: null},]}", {"a.b": 1, "$or": [{"c": True}, {"d": None}]}),
        ("{größe: 1, $_x: 2}", {"größe": 1, "$_x": 2}),
        (
            "{a: undefined, b: -Infinity, $c: 0x1F, d: .5, e: 1e3, f: +2}",
            {"a": None, "b": -math.inf, "$c": 31, "d": 0.5, "e": 1e3, "f": 2},
        ),
        ("{1: 'one', $a: 1}", {"1": "one", "$a": 1}),
        (f'{{_id: ObjectId("{ID}"), $a: new ObjectId("{ID}")}}', {"_id": ObjectId(ID), "$a": ObjectId(ID)}),
        ('{$a: ISODate("2024-05-06T07:08:09Z")}', {"$a": datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)}),
        ('{a: NumberLong("5"), b: NumberDecimal("1.5")}', {"a": Int64(5), "b": Decimal128("1.5")}),
        ("{name: /^wo+l\\/x[/]/i}", {"name": Regex("^wo+l/x[/]", "i")}),
        ("{$a: /(?<n>never compiled)/}", {"$a": Regex("(?<n>never compiled)")}),
        ("{$a: Timestamp(1, 2), b: MaxKey()}", {"$a": Timestamp(1, 2), "b": MaxKey()}),
        ("{$a: 'it\\'s \\u0041\\x42\\n\\u{1F600}\\ud83d\\ude00'}", {"$a": "it's AB\n😀😀"}),
        ("\n\n    {a: 1}\n", {"a": 1}),
        ("# a comment\n{a: 1}", {"a": 1}),
        ("// a comment\n{a: /* here */ 1} // end", {"a": 1}),
        ("[{a: 1}, {b: 2}]", [{"a": 1}, {"b": 2}]),
        ('"just text"', "just text"),
    ],
)
def test_shell_syntax(text: str, expected: Any) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'{{"_id": {{"$oid": "{ID}"}}}}', {"_id": ObjectId(ID)}),
        ('{"t": {"$gt": {"$date": "2024-01-01T00:00:00Z"}}}', {"t": {"$gt": datetime(2024, 1, 1, tzinfo=UTC)}}),
        ('{"t": {"$date": {"$numberLong": "0"}}}', {"t": datetime(1970, 1, 1, tzinfo=UTC)}),
        ('{"n": {"$numberLong": "7"}, "m": {"$numberInt": "8"}}', {"n": 7, "m": 8}),
        ('{"b": {"$binary": {"base64": "AAE=", "subType": "80"}}}', {"b": Binary(b"\x00\x01", 128)}),
        ('{"r": {"$regularExpression": {"pattern": "^a", "options": "i"}}}', {"r": Regex("^a", "i")}),
        ('{"r": {"$regex": "^a", "$options": "i"}}', {"r": {"$regex": "^a", "$options": "i"}}),
        ('{"a": {"$type": "string"}}', {"a": {"$type": "string"}}),
    ],
)
def test_extended_json(text: str, expected: Any) -> None:
    assert value(text) == expected


def test_a_body_is_python_in_the_namespace_of_its_user() -> None:
    names = {"limit": 50, "row": {"text": "warm"}, "prices": [1, 2, 3]}
    assert value('{"price": {"$lt": limit * 2}, "$like": {"text": row["text"]}}', **names) == {
        "price": {"$lt": 100},
        "$like": {"text": "warm"},
    }
    assert value('{"$or": [{"price": p} for p in prices if p < limit]}', **names)["$or"] == [
        {"price": p} for p in [1, 2, 3]
    ]
    assert value("{price: {$in: prices}}", **names) == {"price": {"$in": [1, 2, 3]}}
    assert "price" not in names


def test_a_variable_is_data_and_stays_as_it_is() -> None:
    given = {"$oid": ID}
    assert value('{"a": given}', given=given)["a"] is given


def test_a_key_is_a_field_and_a_bracketed_key_a_variable() -> None:
    assert value("{[name]: 1}", name="price") == {"price": 1}
    assert value("{[name]: {$lt: 1}}", name="price") == {"price": {"$lt": 1}}
    assert value("{price: 1}", price=3) == {"price": 1}
    assert value("dict({key: 1})", key="inside a call Python's rules hold") == {"inside a call Python's rules hold": 1}


def test_an_ambiguous_key_is_refused() -> None:
    with pytest.raises(
        InvalidInputError, match=r'line 2, column 2.*write "price" for the field, \[price\] for the variable'
    ):
        parse("\n{price: 1}", {"price": "cost"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b" 2}', r"line 2, column 6: unexpected '2', expected ':'"),
        ("{price: {$lt 50}}", "line 1, column 14: unexpected '50', expected ':'"),
        ("{$set: {a.b: 1}}", r'line 1, column 10.*"a\.b"'),
        ("{a.b: 1}", r'line 1, column 2.*"a\.b"'),
        ("{price: {$lt: 50}", "line 1, column 18.*not closed"),
        ('{"a": "open}', "line 1, column 7.*unterminated string"),
        ("{$a: 1 + 2}", r"line 1, column 8: unexpected '\+'.*quotes to compute in Python"),
        ("{$a: row.text}", r"unexpected '\.'.*quotes to compute in Python"),
        ("a = 3", "one expression, not statements"),
        ("import os\nos", "one expression, not statements"),
        ('{"ü": "ß", "a": lmit}', r"line 1, column 17: 'lmit' is not defined. Did you mean 'limit'\?"),
        ('{"a": tru}', "Did you mean 'true'"),
        ('{$a: ObjectID("x")}', "line 1, column 6.*Did you mean 'ObjectId'"),
        ('{"a": ObjectId("x")}', "line 1, column 7: InvalidId"),
        ('{"a": [1, 2][7]}', "line 1, column 7: IndexError"),
        ("{\n  'a': limit.nope}", "line 2, column 8: AttributeError"),
        ("\x00", "null bytes"),
        ("", "empty"),
        (" \n ", "empty"),
        ("[" * 10_000, "not closed"),
        ("[" * 10_000 + "]" * 10_000, "100 levels"),
        ("{a:" * 5_000 + "1" + "}" * 5_000, "100 levels"),
        ("9" * 2_000_000, "2,000,000 characters"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        value(text, limit=3)
    assert len(str(caught.value)) < 400


def test_what_the_body_raises_stays_attached() -> None:
    with pytest.raises(InvalidInputError) as caught:
        value("1 / 0")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("text", ['{"a": 1};', '{"a": 1} ; # why', "{$a: 1};", "{$a: 1} ; // why\n", "(1,\n2);\n\n"])
def test_a_closing_semicolon_hides(text: str) -> None:
    assert parse(text).quiet


@pytest.mark.parametrize("text", ['{"a": ";"}', '{"a": 1}  # ;', "{$a: ';'} // ;", "'''\n;'''"])
def test_a_semicolon_elsewhere_does_not(text: str) -> None:
    assert not parse(text).quiet
