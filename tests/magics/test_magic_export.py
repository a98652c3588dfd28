"""``%sddb export``: files that other programs read back as what they were."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from bson.json_util import loads

from superduper_nb.errors import InvalidInputError

Call = Callable[..., Any]


def test_a_collection_is_exported_as_it_is_and_comes_back(docs: Any, sddb: Call, client: Any, tmp_path: Path) -> None:
    path = tmp_path / "products.jsonl"
    told = sddb(f"export {path}").value
    assert told.text.startswith(f"6 documents written to {path} (")
    back = client[docs.database.name]["back"]
    back.insert_many([loads(line) for line in path.read_text("utf-8").splitlines()])
    wanted = {"_sddb": 0, "_fold": 0}
    assert list(back.find({}, wanted, raw=True)) == list(docs.find({}, wanted, raw=True))
    assert "_sddb" not in path.read_text("utf-8")
    sddb(f"export {tmp_path / 'cheap.json'} --sort -price --fields text,-_id", "{price: {$lt: 25}}")
    cheap = json.loads((tmp_path / "cheap.json").read_text("utf-8"))
    assert cheap == [{"text": text} for text in ("swimming trunks", "wool hat with ear flaps", "summer hat of straw")]
    sddb(f"export {tmp_path / 'none.json'}", "{price: 0}")
    assert json.loads((tmp_path / "none.json").read_text("utf-8")) == []


def test_a_result_is_exported_for_other_tools(docs: Any, sddb: Call, tmp_path: Path) -> None:
    hits = sddb("find -n 3", '{"$like": {"text": "wool scarf"}}').value
    for kind in ("csv", "parquet"):
        assert sddb(f"export {tmp_path}/hits.{kind} --from hits", hits=hits).value.text.startswith("3 documents")
    with (tmp_path / "hits.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [hit["text"] for hit in hits]
    table = pyarrow.parquet.read_table(tmp_path / "hits.parquet").to_pylist()
    assert [row["_score"] for row in table] == hits.scores
    np.testing.assert_array_equal(table[0]["_outputs"]["text"]["words"], hits[0]["_outputs"]["text"]["words"])


@pytest.mark.parametrize(
    ("line", "cell", "message"),
    [
        ("{}/hits.xls", None, r"\.csv, \.json, \.jsonl, \.parquet; given 'hits\.xls'"),
        ("{}/old.csv", None, r"old\.csv' exists: .* --overwrite"),
        ("{}/no/hits.csv", None, "there is no folder"),
        ("{}/x.csv --from nothing", None, "there is no variable 'nothing'"),
        ("{}/x.csv --from number", None, "it is of type int"),
        ("{}/x.csv --from rows -n 3", None, "writes what the variable holds"),
        ("{}/x.csv", "{$like: {text: 'warm'}}", "export takes no \\$like"),
        ("{}/x.parquet --from mixed", None, "the field 'a' does not fit into one column"),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(
    docs: Any, sddb: Call, tmp_path: Path, line: str, cell: str | None, message: str
) -> None:
    (tmp_path / "old.csv").write_text("kept")
    names = {"number": 7, "rows": [{"a": 1}], "mixed": [{"a": 1}, {"a": {"b": 2}}]}
    with pytest.raises(InvalidInputError, match=message):
        sddb("export " + line.format(tmp_path), cell, **names)
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "kept"
    sddb(f"export {tmp_path}/old.csv --from rows --overwrite", **names)
    assert (tmp_path / "old.csv").read_bytes() == b"a\r\n1\r\n"
