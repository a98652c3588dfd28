"""The disk of mongod is full for a while: a small file system of its own, which a file fills up."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.drills.drill_oracle import CLEAN, Count, Writer, slow_embed
from tests.drills.drill_rig import Rig, rig_in
from tests.waiting import until

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

SIZE_MB = 700
DOCUMENTS = 8_000
SECONDS = 90.0
OUTAGE_S = 45.0
"""Longer than leases (30 s), and than the half minute for which pymongo waits for a server."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a file system of some hundred megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own needs the rights of root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def rig(tmp_path: Path, disk: Path) -> Iterator[Rig]:
    with rig_in(tmp_path / "home", disk / "mongodb") as rig:
        yield rig


def fill(file: Path) -> None:
    with file.open("ab", buffering=0) as out:
        for size in (2**20, 2**12):
            try:
                while True:
                    out.write(bytes(size))
            except OSError:
                continue


def keep_full(file: Path, seconds: float, state: Callable[[], str]) -> float:
    """Take whatever room there is for so long; return for which share of it mongod did not serve."""
    until, seen = time.monotonic() + seconds, []
    while time.monotonic() < until:
        fill(file)
        seen.append(state())
        time.sleep(0.2)
    return sum(each != "running" for each in seen) / len(seen)


def test_a_full_disk_loses_nothing_and_all_goes_on_when_there_is_room(rig: Rig, disk: Path) -> None:
    seed = int(os.environ.get("DRILL_SEED", random.randrange(10**6)))
    server = rig.server()
    server.ready()
    docs = rig.docs(server)
    docs.create_model("m", slow_embed, type="vector")
    docs.create_semantic_index("near", models=["m"], keys=["x"])
    count = Count(rig)
    writers = [Writer(rig.docs(server), n * 10**6, DOCUMENTS // 2, SECONDS, random.Random(seed + n)) for n in range(2)]
    for writer in writers:
        writer.start()
    time.sleep(random.Random(seed).uniform(1, 10))
    fill(disk / "filler")
    until(lambda: rig.mongod.status()["restarts"], "mongod has ended for want of room", timeout=120)
    away = keep_full(disk / "filler", OUTAGE_S, lambda: str(rig.mongod.status()["state"]))
    restarts = rig.mongod.status()["restarts"]
    (disk / "filler").unlink()
    until(lambda: rig.mongod.status()["state"] == "running", "mongod runs again", timeout=120)
    for writer in writers:
        writer.join()
    server.ready()
    count.settle()
    found = count.wrong(writers) | {"searches": count.wrong_searches(docs)}
    acknowledged = sum(len(writer.acknowledged) for writer in writers)
    print(f"full disk: {acknowledged} of {DOCUMENTS} acknowledged, {found}; seed {seed}")
    print(f"mongod was away for {away:.0%} of {OUTAGE_S:.0f} s, {restarts} restarts")
    assert found == {**CLEAN, "searches": 0}
    assert away > 0.5
    assert acknowledged < DOCUMENTS
