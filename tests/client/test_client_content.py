"""Content by URL: each write fetches what it brings, before the watchers that read it."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client_models import outputs
from content_site import Site
from PIL import Image
from pymongo import InsertOne, ReplaceOne, UpdateOne

import superduper_nb as sd
from superduper_nb.documents import Failed, Pending
from superduper_nb.errors import InvalidInputError

Docs = sd.Collection[Any]


def size(data: bytes) -> int:
    return len(data)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.pages = {f"/{n}": b"x" * n for n in range(1, 60)}
    yield made
    made.close()


@pytest.fixture
def connected(mongo_uri: str, site: Site, tmp_path: Path) -> Iterator[sd.Client[Any]]:
    downloads = {"trusted_hosts": [site.host], "roots": [str(tmp_path)], "read_timeout": 5}
    with sd.connect(remote=False, mongodb={"uri": mongo_uri}, downloads=downloads) as client:
        yield client


@pytest.fixture
def docs(connected: sd.Client[Any], database: Any) -> Docs:
    """Return a collection with a watcher of sizes on ``img``."""
    collection = connected[database.name]["docs"]
    collection.create_model("size", size)
    collection.create_watcher("size", "img")
    return collection


def stored_bytes(stored: Any, id: Any, path: str = "img") -> Any:
    document = stored.find_one(id)
    for part in path.split("."):
        document = document[int(part)] if part.isdecimal() else document[part]
    return document["_content"]


def test_an_insert_fetches_before_it_computes_and_one_bad_url_fails_alone(docs: Docs, stored: Any, site: Site) -> None:
    rows = [{"_id": n, "img": site.content(f"/{n}"), "more": [{"deep": site.content("/3")}]} for n in range(1, 21)]
    rows[4]["img"] = site.content("/nowhere?signature=secret")
    result = docs.insert_many([*rows, {"_id": 0, "img": b"plain"}])
    assert list(result.jobs) == ["download", "size/img"]
    download, watcher = result.jobs.values()
    assert watcher.record["parents"] == [download.id]
    assert download.progress == (20, 20, 1)
    (failure,) = download.failures["first"]
    assert failure["_id"] == 5
    assert "404" in failure["error"]
    assert "secret" not in failure["error"]
    assert [each["_id"] for each in watcher.failures["first"]] == [5]
    assert outputs(stored, "img.size") == {n: n for n in range(1, 21) if n != 5} | {0: 5}
    assert stored_bytes(stored, 7, "more.0.deep")["bytes"] == b"xxx"
    assert site.asked["/3"] == 1, "one URL of a part is asked for once"
    found = docs.find_one(5)
    assert found is not None
    assert isinstance(found["img"], Failed)
    assert "404" in found["img"].reason
    assert docs.find_one(6)["img"] == b"x" * 6  # type: ignore[index]
    raw = docs.find_one(6, raw=True)
    assert raw is not None
    assert raw["img"]["_content"] == {**site.content("/6")["_content"], "bytes": b"x" * 6, "source": site.url("/6")}


def _pipeline(site: Site) -> list[dict[str, Any]]:
    return [{"$set": {"img": {"_content": {"url": {"$literal": site.url("/9")}, "type": "bytes"}}}}]


WRITES: dict[str, Callable[[Docs, Site], Any]] = {
    "update_one": lambda docs, site: docs.update_one({"_id": 1}, {"$set": {"img": site.content("/9")}}),
    "update_many": lambda docs, site: docs.update_many({}, {"$set": {"img": site.content("/9")}}),
    "nested": lambda docs, site: docs.update_one({"_id": 1}, {"$set": {"img._content.url": site.url("/9")}}),
    "pipeline": lambda docs, site: docs.update_one({"_id": 1}, _pipeline(site)),
    "replace_one": lambda docs, site: docs.replace_one({"_id": 1}, {"img": site.content("/9")}),
    "find_one_and_update": lambda docs, site: docs.find_one_and_update(
        {"_id": 1}, {"$set": {"img": site.content("/9")}}
    ),
    "find_one_and_replace": lambda docs, site: docs.find_one_and_replace({"_id": 1}, {"img": site.content("/9")}),
    "bulk_update": lambda docs, site: docs.bulk_write([UpdateOne({"_id": 1}, {"$set": {"img": site.content("/9")}})]),
    "bulk_replace": lambda docs, site: docs.bulk_write([ReplaceOne({"_id": 1}, {"img": site.content("/9")})]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_new_url_by_any_write_is_fetched(docs: Docs, stored: Any, site: Site, write: Any) -> None:
    docs.insert_one({"_id": 1, "img": site.content("/4")})
    assert outputs(stored, "img.size") == {1: 4}
    write(docs, site)
    assert stored_bytes(stored, 1)["bytes"] == b"x" * 9
    assert outputs(stored, "img.size") == {1: 9}


def test_what_upserts_and_bulk_inserts_bring_is_fetched(docs: Docs, stored: Any, site: Site) -> None:
    docs.update_one({"_id": 1}, {"$setOnInsert": {"img": site.content("/1")}}, upsert=True)
    docs.replace_one({"_id": 2}, {"img": site.content("/2")}, upsert=True)
    docs.find_one_and_update({"_id": 3}, {"$set": {"img": site.content("/3")}}, upsert=True)
    result = docs.bulk_write(
        [
            InsertOne({"_id": 4, "img": site.content("/4")}),
            UpdateOne({"_id": 5}, {"$set": {"img": site.content("/5")}}, upsert=True),
            UpdateOne({"_id": 1}, {"$push": {"list": {"$each": [site.content("/8")]}}}),
            InsertOne({"_id": 6, "img": b"123456"}),
        ]
    )
    assert list(result.jobs) == ["download", "size/img", "download (inserted)", "size/img (inserted)"]
    assert outputs(stored, "img.size") == {n: n for n in range(1, 7)}
    assert stored_bytes(stored, 1, "list.0")["bytes"] == b"x" * 8


def test_a_url_that_changes_while_it_is_fetched_never_gets_the_bytes_of_the_old(
    docs: Docs, stored: Any, site: Site
) -> None:
    def page() -> bytes:
        stored.update_one({"_id": 1}, {"$set": {"img._content.url": site.url("/9")}})
        return b"old"

    site.pages["/changes"] = page
    docs.insert_one({"_id": 1, "img": site.content("/changes")}).jobs.wait()
    assert stored_bytes(stored, 1)["bytes"] == b"x" * 9
    assert outputs(stored, "img.size") == {1: 9}
    stored.update_one({"_id": 1}, {"$set": {"img._content.url": site.url("/4")}})
    found = docs.find_one(1)
    assert found is not None
    assert found["img"] == Pending(site.url("/4")), "bytes of another URL are not shown"


def test_what_may_pass_is_tried_again_and_a_host_is_not_pressed(docs: Docs, stored: Any, site: Site) -> None:
    together, seen = threading.Barrier(4), threading.Lock()

    def slow() -> bytes:
        together.wait(20)  # four at a time, or none: fewer would never come through
        with seen:
            return b"12"

    site.pages |= {f"/slow{n}": slow for n in range(8)}
    site.pages["/busy"] = [(503, {"Retry-After": "0"}), (429, {"Retry-After": "0"}), b"123"]
    docs.insert_many([{"_id": n, "img": site.content(f"/slow{n}")} for n in range(8)])
    assert site.most_at_once == 4
    docs.insert_one({"_id": 8, "img": site.content("/busy")})
    assert site.asked["/busy"] == 3
    site.pages["/later"] = (503, {"Retry-After": "500"})
    job = docs.insert_one({"_id": 9, "img": site.content("/later")}).jobs["download"]
    assert site.asked["/later"] == 1, "nobody waits for minutes"
    assert outputs(stored, "img.size") == dict.fromkeys(range(8), 2) | {8: 3}
    site.pages["/later"] = b"1234"
    job.retry().wait()
    assert outputs(stored, "img.size")[9] == 4
    assert "error" not in stored_bytes(stored, 9)


def test_what_does_not_fit_into_a_document_is_said(docs: Docs, stored: Any, site: Site) -> None:
    site.pages |= {"/huge": bytes(17_000_000), "/large": bytes(9_000_000)}
    jobs = docs.insert_many(
        [
            {"_id": 1, "img": site.content("/huge")},
            {"_id": 2, "img": site.content("/large"), "b": site.content("/large")},
        ]
    ).jobs
    reasons = {each["_id"]: each["error"] for each in jobs["download"].failures["first"]}
    assert "A document holds at most 16 MB" in reasons[1]
    assert "larger than the 16 MB that MongoDB allows" in reasons[2]
    kept = stored.find_one(2)
    assert sorted("error" in kept[name]["_content"] for name in ("img", "b")) == [False, True]


def test_content_that_was_there_before_is_fetched_when_it_is_watched_or_asked_for(
    connected: sd.Client[Any], database: Any, stored: Any, site: Site
) -> None:
    docs = connected[database.name]["docs"]
    stored.insert_many([{"_id": n, "img": site.content(f"/{n}"), "list": [site.content("/7")]} for n in range(1, 4)])
    docs.create_model("size", size)
    jobs = docs.create_watcher("size", "img")
    assert list(jobs) == ["download", "size/img"]
    assert outputs(stored, "img.size") == {1: 1, 2: 2, 3: 3}
    stored.update_one({"_id": 1}, {"$set": {"img": site.content("/8")}})
    assert list(docs.download({"_id": 1})) == ["download", "size/img"]
    assert outputs(stored, "img.size")[1] == 8
    assert not docs.download({"_id": "nobody"})
    assert not docs.create_watcher("size", "nothing").keys() - {"size/nothing"}


def test_a_download_comes_before_all_that_reads_it_and_each_job_is_there_once(
    docs: Docs, stored: Any, site: Site
) -> None:
    docs.create_model("double", lambda x: 2 * x)
    docs.create_model("sum", lambda d: d["img"] + d["text"])
    docs.create_watcher("double", "img", features={"img": "size"})
    docs.create_watcher("double", "text")
    docs.create_watcher("sum", "_base", features={"img": "double", "text": "double"})
    result = docs.insert_one({"_id": 1, "img": site.content("/5"), "text": 3})
    order = list(result.jobs)
    assert order[0] == "download"
    assert order[-1] == "sum/_base"
    assert sorted(order) == ["double/img", "double/text", "download", "size/img", "sum/_base"]
    assert result.jobs["double/text"].record["parents"] == []
    assert outputs(stored, "_base.sum") == {1: 16}
    assert "download" in docs.update_one({"_id": 1}, {"$set": {"img": site.content("/6")}}).jobs
    assert outputs(stored, "_base.sum") == {1: 18}


def test_without_content_nothing_is_planned_for_it(docs: Docs) -> None:
    assert list(docs.insert_many([{"img": b"1"}, {"img": {"a": [1, {"b": 2}]}}]).jobs) == ["size/img"]
    assert list(docs.update_many({}, {"$set": {"img": b"12"}, "$inc": {"n": 1}}).jobs) == ["size/img"]
    assert list(docs.update_many({}, [{"$set": {"n": 1}}]).jobs) == ["size/img"]


@pytest.mark.parametrize("url", ["ftp://example.org/a", "javascript:alert(1)", "no-scheme/a", "http://a b"])
def test_a_url_that_is_never_fetched_is_refused_and_nothing_is_written(docs: Docs, stored: Any, url: str) -> None:
    content = {"_content": {"url": url, "type": "bytes"}}
    for write in (
        lambda: docs.insert_many([{"img": b"fine"}, {"img": content}]),
        lambda: docs.update_one({}, {"$set": {"img": content}}, upsert=True),
        lambda: docs.replace_one({}, {"img": [content]}, upsert=True),
    ):
        with pytest.raises(InvalidInputError, match=r"^Value at '[^\n]*$"):
            write()
    assert stored.count_documents({}) == 0
    assert {job.status for job in docs.jobs} <= {"succeeded"}


def test_bad_content_is_one_line_in_the_document_that_holds_it(
    docs: Docs, stored: Any, site: Site, tmp_path: Path
) -> None:
    picture, bomb = io.BytesIO(), io.BytesIO()
    Image.effect_noise((64, 64), 90).save(picture, "PNG")
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    site.pages |= {
        "/good.png": picture.getvalue(),
        "/cut.png": picture.getvalue()[:-500],
        "/bomb.png": bomb.getvalue(),
        "/inside": (302, {"Location": "http://10.0.0.1/secret"}),
    }
    (tmp_path / "file.bin").write_bytes(b"from a file")
    docs.create_model("width", lambda image: image.width)
    docs.create_watcher("width", "pic")
    rows = {
        **{name: {"pic": site.content(f"/{name}.png", "image")} for name in ("good", "cut", "bomb")},
        **{"inside": {"img": site.content("/inside")}, "passwd": {"img": {"_content": {"url": "file:///etc/passwd"}}}},
        "file": {"img": {"_content": {"url": (tmp_path / "file.bin").as_uri()}}},
    }
    jobs = docs.insert_many([{"_id": id, **row} for id, row in rows.items()]).jobs
    said = {each["_id"]: each["error"] for job in jobs.values() for each in job.failures["first"]}
    assert said.keys() == {"cut", "bomb", "inside", "passwd"}
    assert all("\n" not in text for text in said.values())
    assert "address is not public" in said["inside"]
    assert "downloads.roots" in said["passwd"]
    assert outputs(stored, "pic.width") == {"good": 64}
    found = {document["_id"]: document for document in docs.find()}
    assert all(isinstance(found[id]["pic"], Failed) for id in ("cut", "bomb"))
    assert found["file"]["img"] == b"from a file"
