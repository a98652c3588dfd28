from __future__ import annotations

import csv
import io
import json
import math
import sys
import uuid
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import BinaryVectorDtype
from PIL import Image

from superduper_nb.errors import InvalidInputError
from superduper_nb.widgets.lazy import Decoded
from superduper_nb.widgets.results import MOST_ROWS, Document, Facts, Result
from tests.widgets.payloads import foreign_parts, shown_text

LARGEST = 1_000_000


def bundle(result: Any) -> dict[str, str]:
    return result._repr_mimebundle_()


def size(result: Any) -> int:
    return sum(len(part.encode()) for part in bundle(result).values())


def test_a_result_is_a_sequence_of_its_documents() -> None:
    documents = [{"_id": i, "_score": 1 - i / 10} for i in range(5)]
    result = Result(documents, facts=Facts(query="docs.find({})"))
    assert len(result) == 5
    assert result[0] is documents[0]
    assert result[-1]["_id"] == 4
    assert [d["_id"] for d in result[1:3]] == [1, 2]
    assert list(result) == result.to_list() == documents
    assert result.scores == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])
    assert result.query == "docs.find({})"
    assert documents[2] in result
    with pytest.raises(IndexError):
        result[5]


def test_documents_are_decoded_when_they_are_looked_at_and_once() -> None:
    looked: list[int] = []

    def decode(documents: list[Any]) -> list[Any]:
        looked.extend(document["_id"] for document in documents)
        return [{**document, "decoded": True} for document in documents]

    result = Result(Decoded([{"_id": i} for i in range(500)], decode), limit=3)
    assert len(result) == 500
    assert looked == []
    assert "3 shown of 500 documents" in repr(result)
    assert looked == [0, 1, 2]
    assert result[-1] == {"_id": 499, "decoded": True}
    assert result[-1] is result[499]
    assert [document["_id"] for document in result[1:4]] == [1, 2, 3]
    assert looked == [0, 1, 2, 499, 3]
    with pytest.raises(IndexError):
        result[500]
    assert len(result.to_pandas()) == 500
    assert sorted(looked) == list(range(500))


def test_conversions(tmp_path: Any) -> None:
    id = ObjectId()
    result = Result([{"_id": id, "a": 1, "b": {"c": [1, 2]}}, {"_id": 2, "v": np.arange(3.0), "odd": object}])
    frame = result.to_pandas()
    assert list(frame.columns) == ["_id", "a", "b", "v", "odd"]
    assert frame["a"][0] == 1
    rows = list(csv.DictReader(io.StringIO(result.to_csv() or "")))
    assert rows[0]["_id"] == str(id)
    assert json.loads(rows[0]["b"]) == {"c": [1, 2]}
    assert json.loads(rows[1]["v"]) == [0.0, 1.0, 2.0]
    loaded = json.loads(result.to_json() or "")
    assert loaded[0]["_id"] == {"$oid": str(id)}
    assert loaded[1]["v"] == [0.0, 1.0, 2.0]
    assert result.to_csv(tmp_path / "a.csv") is None
    assert (tmp_path / "a.csv").read_bytes().decode() == result.to_csv()
    result.to_json(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == loaded


def test_plain_text_informs_by_itself() -> None:
    documents = [
        {"_id": i, "text": f"text {i}", "price": i * 1.5, "_score": 0.9 - i / 10, "_fold": "train"} for i in range(3)
    ]
    facts = Facts(
        source="default: shop.products", index="meaning", strategy="exact", candidates=1995, took_ms=4.2, pending=12
    )
    assert repr(Result(documents, facts=facts)) == (
        "#  score  text    price  _id\n"
        "1  0.900  text 0      0    0\n"
        "2  0.800  text 1    1.5    1\n"
        "3  0.700  text 2      3    2\n"
        "3 documents · index meaning (exact; 1,995 candidates) · 12 still wait for their output (%sddb wait) · 4 ms"
        " · default: shop.products"
    )


def test_vectors_of_models_are_not_shown_and_other_outputs_are() -> None:
    vector = np.ones(8, dtype="float32")
    documents = [{"_id": 1, "_outputs": {"text": {"words": vector, "price": 3.5}, "img": {"clip": [0.5] * 9}}}]
    result = Result(documents)
    assert "_outputs" in repr(result)
    assert "{text: {price: 3.5}}" in repr(result)
    assert "words" not in repr(result)
    assert result[0]["_outputs"]["text"]["words"] is vector
    only = Result([{"_id": 1, "_outputs": {"text": {"words": vector}}}])
    assert "_outputs" not in bundle(only)["text/html"] + bundle(only)["text/plain"]


def test_wide_and_double_width_text_is_aligned() -> None:
    lines = repr(Result([{"a": "日本語テキスト" * 20, "b": 1}, {"a": "x", "b": 22}])).splitlines()
    assert lines[1].rstrip().endswith("… 1".replace(" ", "   ")) or "…" in lines[1]
    from wcwidth import wcswidth

    assert max(wcswidth(line) for line in lines) <= 110
    assert wcswidth(lines[1]) == wcswidth(lines[2])


def test_the_footer_says_what_is_not_shown() -> None:
    assert "50 shown of 60 documents" in repr(Result([{"a": i} for i in range(60)]))
    assert "3 shown of 60" in repr(Result([{"a": i} for i in range(60)], limit=3))
    assert "2 documents, more match" in repr(Result([{"a": 1}, {"a": 2}], facts=Facts(more=True)))
    assert "2 of 9 documents" in repr(Result([{"a": 1}, {"a": 2}], facts=Facts(more=True, total=9)))
    assert repr(Result([{"a": 1}])).endswith("1 document")
    assert repr(Result([])) == "no document matches"
    assert "no document matches" in bundle(Result([]))["text/html"]


def test_bookkeeping_is_not_shown_and_scores_are_bars() -> None:
    html = bundle(Result([{"_id": 1, "_fold": "train", "_sddb": {"x": 1}, "_score": 0.25}]))["text/html"]
    assert "_fold" not in html
    assert "_sddb" not in html
    assert 'value="0.25" title="score 0.250"' in html
    dot_product = bundle(Result([{"_score": 8.0}, {"_score": 2.0}, {"_score": -1.0}, {"_score": math.nan}]))[
        "text/html"
    ]
    assert [f'value="{share}"' in dot_product for share in (1.0, 0.25, 0.0)] == [True] * 3


def test_nested_values_are_folded_and_vectors_abbreviated() -> None:
    documents = [
        {"brand": {"name": "N", "sizes": ["S", "M"]}, "v": np.linspace(0, 1, 384, dtype="float32"), "l": [0.5] * 20}
    ]
    html = bundle(Result(documents))["text/html"]
    assert '<details class="sddb-fold"><summary>{name: N, sizes: [S, M]}</summary>' in html
    assert "<dt>sizes</dt>" in html
    assert "[0, 0.00261, 0.00522, …, 1] 384 float32" in html
    assert "[0.5, 0.5, 0.5, …, 0.5] 20 numbers" in html


def test_a_document_has_its_fields_as_headings_of_their_rows() -> None:
    html = bundle(Document({"name": "a scarf", "size": {"width": 3}}))["text/html"]
    assert '<tr><th scope="row" class="sddb-text sddb-short">name</th><td ' in html
    assert html.count('scope="row"') == 2
    assert bundle(Result([{"name": "a scarf"}]))["text/html"].count('scope="row"') == 1  # its rank


def test_pictures_become_thumbnails_with_a_text_for_those_who_do_not_see_them() -> None:
    red = Image.new("RGB", (1200, 800), "red")
    red.info["comment"] = b"secret"
    html = bundle(Result([{"img": red, "clear": Image.new("RGBA", (10, 10), (0, 0, 0, 0))}]))["text/html"]
    assert 'alt="img of row 1: image, 1200 × 800 pixels"' in html
    assert "data:image/jpeg;base64," in html
    assert "data:image/png;base64," in html
    assert red.info == {"comment": b"secret"}
    assert red.size == (1200, 800)
    assert foreign_parts(html) == []


def test_a_gallery_has_a_card_for_each_document() -> None:
    documents = [{"_id": i, "img": Image.new("L", (40, 30)), "name": f"n{i}", "_score": 0.5} for i in range(4)]
    html = bundle(Result(documents, layout="gallery"))["text/html"]
    assert html.count("<figure>") == html.count("<img ") == 4
    assert "n3" in shown_text(html)


def test_a_damaged_picture_is_told() -> None:
    class Broken(Image.Image):
        def convert(self, *args: Any, **kwargs: Any) -> Image.Image:
            raise OSError("truncated")

    broken = Broken()
    broken._size = (5, 5)
    assert "can&#39;t be drawn (OSError)" in bundle(Result([{"img": broken}]))["text/html"]


noise = np.random.default_rng(0)
HUGE: dict[str, Any] = {
    "a long text": [{"a": "x" * 10_000_000}],
    "text that grows when escaped": [{f"k{j}": "<" * 1000 for j in range(30)} for _ in range(60)],
    "many keys": [{f"key {i}": i for i in range(1000)}],
    "many rows of many nested values": [
        {f"k{j}": {f"i{k}": ["<&" * 300] * 50 for k in range(20)} for j in range(30)} for _ in range(60)
    ],
    "depth": [{"a": __import__("functools").reduce(lambda inner, _: {"b": inner}, range(100), {})}],
    "many pictures": [
        {"img": Image.fromarray(noise.integers(0, 255, (200, 200, 3), dtype="uint8")), "i": i} for i in range(300)
    ],
    "a long list": [{"a": list(range(1_000_000)), "b": ["x"] * 100_000}],
    "long keys": [{"k" * 100_000: 1, "n": {"m" * 100_000: 2}}],
    "a huge number": [{"n": 10**5000, "m": -(10**300)}],
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("layout", ["table", "gallery"])
def test_no_output_is_larger_than_a_megabyte(name: str, layout: Any) -> None:
    result = Result(HUGE[name], layout=layout)
    assert size(result) < LARGEST
    assert foreign_parts(bundle(result)["text/html"]) == []
    assert size(Document(HUGE[name][0])) < LARGEST


def test_what_is_cut_is_told() -> None:
    assert "… (10,000,000 characters)" in bundle(Result(HUGE["a long text"]))["text/html"]
    assert "976 more fields" in shown_text(bundle(Result(HUGE["many keys"]))["text/html"])
    html = bundle(Result(HUGE["text that grows when escaped"]))["text/html"]
    assert f"{html.count('<tr>') - 1} shown of 60 documents" in html


def test_at_most_fifty_rows() -> None:
    html = bundle(Result([{"a": i} for i in range(500)], limit=10_000))["text/html"]
    assert html.count("<tr>") == MOST_ROWS + 1


def test_the_same_result_gives_the_same_html() -> None:
    documents = [{"a": 1, "img": Image.new("RGB", (9, 9))}]
    assert bundle(Result(documents)) == bundle(Result(documents))


def test_a_small_result_is_small() -> None:
    assert size(Result([{"a": 1, "b": "text"}] * 5)) < 10_000


def test_every_bson_type_is_shown() -> None:
    vector = Binary.from_vector([1.0, 2.0], BinaryVectorDtype.FLOAT32)
    document = {
        "id": ObjectId(),
        "decimal": Decimal128("1.5"),
        "nan": Decimal128("NaN"),
        "long": Int64(5),
        "float": math.inf,
        "none": None,
        "bool": True,
        "time": datetime(2024, 1, 2, 3, 4, 5),
        "regex": Regex("(?<n>a)", "i"),
        "code": Code("f()", {"x": 1}),
        "ref": DBRef("a", 1),
        "min": MinKey(),
        "max": MaxKey(),
        "stamp": Timestamp(1, 2),
        "uuid": uuid.UUID(int=5),
        "bytes": b"\x00" * 2048,
        "binary": Binary(b"abc", 5),
        "vector": vector,
        "": "an empty key",
        "a.b": "a dotted key",
        "$where": "a dollar key",
    }
    text = shown_text(bundle(Document(document))["text/html"])
    for word in (
        "1.5",
        "inf",
        "null",
        "true",
        "2024-01-02 03:04:05",
        "(?<n>a)",
        "2,048 bytes",
        "binary vector",
        "$where",
    ):
        assert word in text


def test_objects_that_lie_or_raise_are_named_by_their_type() -> None:
    class Liar:
        @property
        def __class__(self) -> Any:  # type: ignore[override]
            return int

        def __repr__(self) -> str:
            raise RuntimeError("no")

    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    loop: dict[str, Any] = {}
    loop["self"] = loop
    text = shown_text(bundle(Result([{"a": Liar(), "b": Silent(), "c": loop, "d": np.float32(0.5)}]))["text/html"])
    assert "<Liar>" in text
    assert "<Silent>" in text
    assert "0.5" in text


def test_numbers_read_well() -> None:
    text = repr(Document({"a": 0.1 + 0.2, "b": 1234567.891, "c": 1e-9, "d": 1e20, "e": 3, "f": 2.0}))
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["0.3", "1234567.891", "1e-09", "1e+20", "3", "2"]


def test_a_field_as_an_array() -> None:
    result = Result([{"a": {"v": np.arange(3.0)}, "_score": 0.5}, {"a": {"v": np.ones(3)}, "_score": 0.25}])
    np.testing.assert_array_equal(result.to_numpy("a.v"), [[0, 1, 2], [1, 1, 1]])
    np.testing.assert_array_equal(result.to_numpy("_score"), [0.5, 0.25])
    with pytest.raises(InvalidInputError, match="2 of 2 documents have no 'nope'"):
        result.to_numpy("nope")
    with pytest.raises(InvalidInputError, match="do not go into one array"):
        Result([{"v": [1, 2]}, {"v": [1]}]).to_numpy("v")


def test_torch_tensors_are_vectors() -> None:
    torch = pytest.importorskip("torch")
    text = repr(Document({"v": torch.arange(10.0, requires_grad=True), "m": torch.zeros(3, 4), "s": torch.tensor(1.5)}))
    assert "[0, 1, 2, …, 9] 10 float32" in text
    assert "3 × 4 float32" in text
    assert "1.5" in text


def test_a_result_without_pandas_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from superduper_nb.errors import InvalidInputError

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInputError, match="pip install pandas"):
        Result([{"a": 1}]).to_pandas()


MIXED = [
    {"_id": ObjectId(), "text": "a", "price": 1, "tags": ["x"], "v": np.arange(3.0), "in": {"d": Decimal128("1.5")}},
    {
        "_id": ObjectId(),
        "text": None,
        "price": Int64(2),
        "tags": [],
        "in": {},
        "raw": Binary(b"ab"),
        "when": datetime(2026, 1, 2),
    },
]


def test_arrow_and_parquet(tmp_path: Any) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = Result(MIXED).to_arrow()
    assert table.column("price").to_pylist() == [1, 2]
    assert table.column("_id").to_pylist() == [str(document["_id"]) for document in MIXED]
    assert table.column("v").to_pylist() == [[0.0, 1.0, 2.0], None]
    assert table.column("in").to_pylist() == [{"d": "1.5"}, None]
    assert table.column("raw").to_pylist() == [None, b"ab"]
    Result(MIXED).to_parquet(tmp_path / "mixed.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "mixed.parquet").equals(table)
    with pytest.raises(InvalidInputError, match=r"'a' does not fit .*int, str.*--fields -a"):
        Result([{"a": 1}, {"a": "x"}]).to_arrow()


def test_polars() -> None:
    pytest.importorskip("polars")
    frame = Result(MIXED).to_polars()
    assert frame["price"].to_list() == [1, 2]
    assert frame["v"].to_list() == [[0.0, 1.0, 2.0], None]
    assert frame["raw"].to_list() == [None, b"ab"]
    assert frame["when"].to_list() == [None, datetime(2026, 1, 2)]
    with pytest.raises(InvalidInputError, match="'a' does not fit"):
        Result([{"a": 1}, {"a": "x"}]).to_polars()


@pytest.mark.parametrize(("method", "package"), [("to_polars", "polars"), ("to_arrow", "pyarrow")])
def test_what_is_not_installed_is_named(method: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidInputError, match=f"pip install {package}"):
        getattr(Result(MIXED), method)()


HITS = [{"_score": score, "name": f"hit {score}"} for score in (0.9, 0.85, 0.4, 0.38)]


def test_a_plot_of_scores_shows_where_they_fall() -> None:
    plot = Result(HITS).plot()
    assert plot.gap == 2
    assert [bar.label for bar in plot.bars] == ["hit 0.9", "hit 0.85", "hit 0.4", "hit 0.38"]
    first, second, rule, third, *_ = repr(plot).splitlines()
    assert first.count("█") > third.count("█")
    assert "0.850  hit 0.85" in second
    assert set(rule) == {"─"}
    html = bundle(plot)["text/html"]
    assert foreign_parts(html) == []
    assert html.count("<meter") == 4
    assert html.count('class="sddb-gap"') == 1
    assert "the widest gap comes after number 2" in html


def test_plots_at_the_edges() -> None:
    assert "no gap" in repr(Result([{"_score": 0.5, "_id": 1}]).plot())
    assert "no gap" in repr(Result([{"_score": 0.5}, {"_score": 0.5}]).plot())
    odd = [{"_score": score} for score in (math.inf, 3e300, 5.0, math.nan, -1.0, -math.inf)]
    assert len(Result(odd).plot().bars) == 6
    assert "100 shown of 5,000 hits" in repr(
        Result([{"_score": 1 / n, "t": "x" * 1000} for n in range(1, 5001)]).plot()
    )
    assert size(Result([{"_score": 0.1, "t": "<b>" * 9000}] * 5000).plot()) < LARGEST
    with pytest.raises(InvalidInputError, match="only a search by meaning"):
        Result([{"a": 1}]).plot()
    with pytest.raises(InvalidInputError, match="the field 'nme'"):
        Result(HITS).plot("nme")


def test_long_times_are_told_in_seconds() -> None:
    assert "12.3 s" in repr(Result(HITS, facts=Facts(took_ms=12_345.0)))
    assert "3.26 s" in repr(Result(HITS, facts=Facts(took_ms=3_258.0)))
    assert "999 ms" in repr(Result(HITS, facts=Facts(took_ms=999.0)))


def test_a_place_beyond_the_result_says_what_it_holds() -> None:
    with pytest.raises(IndexError, match="no document 3: 3 documents"):
        Result(HITS[:3])[3]
    waiting = Facts(index="meaning", strategy="exact", pending=2)
    with pytest.raises(IndexError, match=r"no document matches .* 2 still wait for their output"):
        Result([], facts=waiting)[0]
