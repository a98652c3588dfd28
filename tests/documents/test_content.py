import dataclasses

import pytest

from superduper_nb.documents import Codec, Failed, Pending, builtin_types
from superduper_nb.documents.content import find_downloads, is_content, public_url
from superduper_nb.errors import InvalidInputError

SECRET = "https://user:pw@host.org:8080/a/b.png?X-Signature=abc#frag"


def url(where: str, **more: object) -> dict[str, object]:
    return {"_content": {"url": where, "type": "image", **more}}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (SECRET, "https://host.org:8080/a/b.png?…"),
        ("https://host.org/a", "https://host.org/a"),
        ("file:///etc/x", "file:///etc/x"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("not a url", "not a url"),
        ("http://[bad", "an unreadable URL"),
    ],
)
def test_urls_are_shown_without_secrets(given: str, shown: str) -> None:
    assert public_url(given) == shown


def test_s12_content_that_is_not_there_reads_as_a_placeholder() -> None:
    codec = Codec(builtin_types())
    document = {"a": [url("https://x.org/1")], "b": {"c": url("https://x.org/2", error="the server answered 404")}}
    read = codec.decode(document)
    assert read["a"] == [Pending("https://x.org/1")]
    assert read["b"]["c"] == Failed("https://x.org/2", "the server answered 404")
    assert not read["a"][0]
    assert not read["b"]["c"]
    assert codec.encode(read) == document, "writing back what was read changes nothing"


def test_placeholders_say_what_they_are_without_secrets() -> None:
    assert repr(Pending(SECRET)) == "<Pending https://host.org:8080/a/b.png?…>"
    assert repr(Failed(SECRET, "gone")) == "<Failed https://host.org:8080/a/b.png?…: gone>"
    assert repr(Failed(None, "damaged")) == "<Failed: damaged>"
    assert repr(Failed("https://x.org/a", "https://x.org/a: gone")) == "<Failed https://x.org/a: gone>"
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pending(SECRET).url = "other"  # type: ignore[misc]


def test_new_placeholders_can_be_written() -> None:
    codec = Codec(builtin_types())
    assert codec.encode({"x": Pending("https://x.org")}) == {"x": {"_content": {"url": "https://x.org"}}}


@pytest.mark.parametrize("content", [url("https://x.org/1"), url("https://x.org/1", error="gone")])
def test_strict_reading_raises_where_content_is_not_there(content: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=r"not there: <(Pending|Failed) https://x.org/1"):
        Codec(builtin_types()).decode([content], strict=True)


@pytest.mark.parametrize(
    "theirs",
    [
        {"_content": 5},
        {"_content": {}},
        {"_content": {"url": 5}},
        {"_content": {"bytes": "text"}},
        url("u") | {"more": 1},
    ],
    ids=str,
)
def test_a_field_of_that_name_that_is_not_ours_is_left_alone(theirs: dict[str, object]) -> None:
    codec = Codec(builtin_types())
    assert not is_content(theirs)
    assert codec.decode(theirs) is theirs
    assert codec.encode(theirs) is theirs


def test_what_is_to_be_fetched_is_found_in_lists_too() -> None:
    document = {
        "a": url("u1"),
        "b": [{"c": url("u2")}, [url("u3")]],
        "done": url("u4", bytes=b"x"),
        "failed": url("u5", error="gone"),
        "dotted.name": url("u6"),
        "$odd": {"x": url("u7")},
        "plain": {"url": "u8"},
    }
    assert {path: content["url"] for path, content in find_downloads(document)} == {
        "a": "u1",
        "b.0.c": "u2",
        "b.1.0": "u3",
    }
