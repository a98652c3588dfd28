"""The disk of mongod is full for a while: a small file system of its own, which a file fills up."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.drill_oracle import CLEAN, Count, Writer, slow_embed
from tests.drills.drill_rig import Rig, eventually, rig_in

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

SIZE_MB = 700
DOCUMENTS = 8_000
SECONDS = 60.0


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
    with file.open("wb", buffering=0) as out:
        for size in (2**20, 2**12):
            try:
                while True:
                    out.write(bytes(size))
            except OSError:
                continue


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
    eventually(lambda: rig.mongod.status()["restarts"] > 1, "mongod has ended for want of room", 120)
    said = rig.mongod.status()["error"]
    (disk / "filler").unlink()
    eventually(lambda: rig.mongod.status()["state"] == "running", "mongod runs again", 120)
    for writer in writers:
        writer.join()
    server.ready()
    count.settle()
    found = count.wrong(writers) | {"searches": count.wrong_searches(docs)}
    acknowledged = sum(len(writer.acknowledged) for writer in writers)
    print(f"full disk: {acknowledged} of {DOCUMENTS} acknowledged, {found}; seed {seed}; mongod: {said}")
    assert found == {**CLEAN, "searches": 0}
