"""An index starts again from its file, catches up, and believes no file that is not exactly its own."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import CodecOptions, Int64, ObjectId
from bson.binary import Binary

from superduper_nb.search import coding
from superduper_nb.search import keeper as keeper_module
from superduper_nb.search.index import VectorIndex
from superduper_nb.search.live import LiveIndex
from superduper_nb.search.measures import Measure
from superduper_nb.search.snapshots import BadSnapshotError, Snapshot, read_snapshot, write_snapshot
from tests.search.conftest import Corpus
from tests.waiting import until

OPTIONS: Any = CodecOptions()
IDENTITY = {"of": "this"}


def vectors(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.fixture
def made(corpus: Callable[..., Corpus], home: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Return a corpus of which a snapshot is worth it, with 300 documents."""
    monkeypatch.setattr(keeper_module, "_WORTH", 1)
    made = corpus(snapshots=home / "indexes")
    made.insert(vectors(300), ids=[*range(295), "a", 1.5, ObjectId(), b"x" * 12, Int64(2**40)])
    made.check(vectors(1, seed=1)[0])
    return made


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows whenever an index is loaded from MongoDB."""
    calls: list[str] = []
    load = LiveIndex._load
    monkeypatch.setattr(LiveIndex, "_load", lambda live: (calls.append("load"), load(live))[1])
    return calls


def file_of(made: Corpus) -> Path:
    (path,) = made.snapshots.glob("*")  # type: ignore[union-attr]
    return path


def check_everything(made: Corpus) -> None:
    made.check(vectors(1, seed=2)[0], 400)
    made.check(vectors(1, seed=3)[0], 7, {"x": 0})


def test_an_index_starts_again_from_its_snapshot_and_catches_up(made: Corpus, loads: list[str]) -> None:
    made.engine.close()
    assert stat.S_IMODE(file_of(made).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(made).stat().st_mode) == 0o600
    made.insert(vectors(50, seed=4), ids=range(1000, 1050))
    made.docs.delete_many({"_id": {"$lt": 40}})
    made.compute({id: vectors(1, seed=id)[0] for id in range(50, 60)})
    made.restart()
    check_everything(made)
    assert made.describe()["snapshot"] == "restored"
    made.insert(vectors(50, seed=5), ids=range(2000, 2050))  # into the room behind the mapped rows
    made.docs.delete_many({"_id": {"$in": ["a", 1.5, b"x" * 12]}})
    check_everything(made)
    assert not loads


def test_a_search_never_sees_the_time_of_the_snapshot(made: Corpus) -> None:
    made.engine.close()
    made.docs.delete_many({"_id": {"$ne": 7}})
    made.restart()
    assert made.ask(vectors(1)[0], n=50, after=None).ids == [7]


def test_what_is_restored_is_kept_again(made: Corpus, loads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_CHANGED_AT_CLOSE", 1)
    for round in range(3):
        made.restart()
        check_everything(made)
        made.docs.delete_many({"_id": {"$in": list(range(20 * round, 20 * round + 10))}})
        made.insert(vectors(10, seed=round), ids=range(5000 + 10 * round, 5010 + 10 * round))
        check_everything(made)
    assert not loads
    assert made.database["_sddb.snapshots"].count_documents({}) == 1


def _spoil(made: Corpus) -> None:
    data = bytearray(file_of(made).read_bytes())
    data[100] ^= 1
    file_of(made).write_bytes(data)


def _replace_by_a_link(made: Corpus) -> None:
    path = file_of(made)
    path.unlink()
    path.symlink_to("/etc/passwd")


VOID: dict[str, Callable[[Corpus], Any]] = {
    "damaged": _spoil,
    "empty": lambda made: file_of(made).write_bytes(b""),
    "a link": _replace_by_a_link,
    "not known to MongoDB": lambda made: made.database["_sddb.snapshots"].delete_many({}),
    "of an older version": lambda made: made.retrain() and made.compute({i: vectors(1, seed=i)[0] for i in range(9)}),
}


@pytest.mark.parametrize("harm", VOID.values(), ids=VOID)
def test_a_snapshot_that_is_void_is_discarded_with_one_line(
    made: Corpus, loads: list[str], harm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made.engine.close()
    harm(made)
    made.restart()
    check_everything(made)
    assert loads == ["load"]
    assert len([record for record in caplog.records if "is discarded" in record.message]) == 1


def test_a_collection_of_the_same_name_is_another(made: Corpus, loads: list[str]) -> None:
    made.engine.close()
    made.docs.drop()
    made.insert(vectors(5, seed=9))
    made.restart()
    check_everything(made)
    assert loads == ["load"]


def test_a_place_in_the_stream_that_is_forgotten(
    made: Corpus, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.engine.close()
    restore = keeper_module.Keeper.restore

    def long_ago(keeper: Any) -> Snapshot | None:
        found = restore(keeper)
        if found is not None:
            data = found.token["_data"]
            object.__setattr__(found, "token", {"_data": f"{data[:2]}{1:08x}{1:08x}{data[18:]}"})
        return found

    monkeypatch.setattr(keeper_module.Keeper, "restore", long_ago)
    made.restart()
    check_everything(made)
    assert loads == ["load"]


def test_it_is_written_in_the_background_once_loaded(made: Corpus) -> None:
    until(lambda: made.describe()["snapshot"] == "written")
    assert file_of(made).stat().st_size > 0


def test_a_disk_that_is_full_leaves_the_one_before(made: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    made.restart()
    before = file_of(made).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    check_everything(made)
    monkeypatch.setattr(keeper_module, "_CHANGED_AT_CLOSE", 1)
    monkeypatch.setattr("os.fsync", full)
    made.docs.delete_many({"_id": {"$lt": 10}})
    made.restart()
    check_everything(made)
    assert file_of(made).read_bytes() == before
    assert list(made.snapshots.iterdir()) == [file_of(made)]  # type: ignore[union-attr]


def test_refresh_does_not_believe_the_snapshot(made: Corpus, loads: list[str]) -> None:
    made.restart()
    check_everything(made)
    made.engine.refresh(made.database.name, "docs", "near")
    check_everything(made)
    assert loads == ["load"]


# --- the file alone ------------------------------------------------------------------------------------------------


def filled(monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> VectorIndex:
    monkeypatch.setattr(coding, "_SCAN_FROM", 1)
    monkeypatch.setattr(coding, "_TAIL", 500)
    index = VectorIndex(Measure("cosine"))
    index.put(list(range(1200)), vectors(1200, seed=seed))
    index.settle()
    index.put(["x", ObjectId(), Binary(b"1", 5), None], vectors(4, seed=seed + 1))
    index.remove([3, 4])
    return index


def write(path: Path, index: VectorIndex, stamp: str = "s") -> None:
    view = index.view()
    assert view is not None
    write_snapshot(path, Snapshot(IDENTITY, stamp, {"_data": "82"}, [1, "b"], view.rows), view, OPTIONS)


def answers(index: VectorIndex) -> list[Any]:
    return [(hits.ids, hits.scores.tolist()) for q in vectors(5, seed=8) for hits in [index.search(q, 20)]]


def test_a_file_gives_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(monkeypatch)
    write(tmp_path / "a", index)
    found = read_snapshot(tmp_path / "a", IDENTITY, OPTIONS)
    again = VectorIndex(Measure("cosine"), rows=found.rows)
    assert (found.skipped, found.token, found.stamp) == ([1, "b"], {"_data": "82"}, "s")
    assert answers(again) == answers(index)
    assert again.kind == index.kind
    for each in (index, again):
        each.put(list(range(5000, 6000)), vectors(1000, seed=6))
        each.remove(list(range(100)))
    assert answers(again) == answers(index)
    assert answers(VectorIndex(Measure("cosine"), rows=read_snapshot(tmp_path / "a", IDENTITY, OPTIONS).rows))


def test_damage_anywhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(monkeypatch)
    path = tmp_path / "a"
    write(path, index)
    whole, right, chance = path.read_bytes(), answers(index), random.Random(0)
    positions = [*range(0, len(whole), 509), *range(len(whole) - 700, len(whole), 7)]
    damages = [
        *(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :] for at in positions),
        *(whole[:at] for at in range(0, len(whole), 4001)),
        *(whole[:at] + bytes(4096) + whole[at + 4096 :] for at in range(0, len(whole), 4096)),
        whole + b"\0",
        whole[4096:],
        whole * 2,
    ]
    refused = 0
    for damaged in damages:
        path.write_bytes(damaged)
        try:
            found = read_snapshot(path, IDENTITY, OPTIONS)
        except BadSnapshotError:
            refused += 1
        else:  # what was hit is padding, or room for rows to come
            assert answers(VectorIndex(Measure("cosine"), rows=found.rows)) == right
    assert refused > 0.6 * len(damages)


def test_another_identity_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", filled(monkeypatch))
    with pytest.raises(BadSnapshotError):
        read_snapshot(tmp_path / "a", {"of": "that"}, OPTIONS)


WRITER = """
import sys
from pathlib import Path
import pytest
from tests.search.test_search_snapshots import filled, write
indexes = [filled(pytest.MonkeyPatch(), seed) for seed in (0, 50)]
print("ready", flush=True)
for i in range(10**9):
    write(Path(sys.argv[1]), indexes[i % 2], "sa"[i % 2])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_kill_while_it_is_written_leaves_a_whole_one_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"s": answers(filled(monkeypatch, 0)), "a": answers(filled(monkeypatch, 50))}
    path, chance = tmp_path / "a", random.Random(1)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3 * chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if path.exists():
            found = read_snapshot(path, IDENTITY, OPTIONS)
            assert answers(VectorIndex(Measure("cosine"), rows=found.rows)) == expected[found.stamp]
