import pytest

from superduper_nb.documents.paths import BASE, check_path, get_path, join_path, output_path, set_path
from superduper_nb.errors import InvalidInputError


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", 1),
        ("b.c", {"d": 2}),
        ("b.c.d", 2),
        ("list.1.x", 3),
        ("list.9", "none"),
        ("list.-1", "none"),
        ("b.missing.d", "none"),
        ("a.b", "none"),
        ("null.x", "none"),
        ("null", None),
        ("", "empty name"),
        ("dotted.name", "none"),
    ],
)
def test_s10_a_dotted_path_is_read_with_a_default(path: str, expected: object) -> None:
    document = {
        "a": 1,
        "b": {"c": {"d": 2}},
        "list": [0, {"x": 3}],
        "null": None,
        "": "empty name",
        "dotted.name": "no path names me",
    }
    assert get_path(document, path, "none") == expected


def test_the_base_key_is_the_whole_document() -> None:
    document = {"a": 1}
    assert get_path(document, BASE) is document
    assert output_path(BASE, "m") == "_outputs._base.m"
    assert output_path("a.b", "m") == "_outputs.a.b.m"


def test_set_path_makes_what_is_missing_and_reads_back() -> None:
    document: dict[str, object] = {"list": [{"x": 1}, 2], "a": {"kept": True}}
    for path in ("new.deep.er", "list.0.x", "list.1", "a.b"):
        set_path(document, path, path)
        assert get_path(document, path) == path
    assert document["a"] == {"kept": True, "b": "a.b"}


@pytest.mark.parametrize("path", ["a.b", "list.2", "list.x", "list.0.y"])
def test_set_path_replaces_nothing_that_stands_in_the_way(path: str) -> None:
    document = {"a": 5, "list": [1, 2]}
    with pytest.raises(InvalidInputError, match="would be a field of"):
        set_path(document, path, 0)
    assert document == {"a": 5, "list": [1, 2]}


@pytest.mark.parametrize("path", ["", "a..b", ".a", "a.", "$where", "a.$b", "a\0b", None, 5])
def test_what_is_no_key_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError, match=r"key"):
        check_path(path)


def test_only_addressable_places_have_a_joined_path() -> None:
    assert join_path(("a", 0, "b")) == "a.0.b"
    assert [join_path((odd,)) for odd in ("a.b", "", "$x", "a\0")] == [None] * 4
