"""``kill -9`` of each part at random moments, while two clients and a foreign program write; then the oracle counts."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.drills.drill_oracle import CLEAN, Count, Writer, slow_embed, strike
from tests.drills.drill_rig import DATABASE, Rig, rig_in

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]

KILLS: Final = int(os.environ.get("DRILL_KILLS", "4"))
DOCUMENTS: Final = 1000 * KILLS


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path / "home") as rig:
        yield rig


def kill_worker(rig: Rig, rng: random.Random) -> None:
    if pids := rig.servers[0].workers():
        os.kill(rng.choice(pids), signal.SIGKILL)


def kill_scheduler(rig: Rig, rng: random.Random) -> None:
    if pid := rig.servers[0].dask_host():
        os.kill(pid, signal.SIGKILL)


def kill_server(rig: Rig, rng: random.Random) -> None:
    rig.servers[0].restart()


def kill_mongod(rig: Rig, rng: random.Random) -> None:
    rig.kill_mongod()


@pytest.mark.parametrize(
    ("kill", "apart"), [(kill_worker, 3.0), (kill_scheduler, 5.0), (kill_server, 9.0), (kill_mongod, 4.0)]
)
def test_kill_nine_loses_nothing_and_doubles_nothing(
    rig: Rig, kill: Callable[[Rig, random.Random], None], apart: float
) -> None:
    """`apart` is the mean time in seconds between two kills: about as long as the part takes to come back."""
    seed = int(os.environ.get("DRILL_SEED", random.randrange(10**6)))
    rng, seconds = random.Random(seed), KILLS * apart
    server = rig.server()
    server.ready()
    docs = rig.docs(server)
    docs.create_model("m", slow_embed, type="vector")
    docs.create_semantic_index("near", models=["m"], keys=["x"])
    count = Count(rig)
    places = [rig.docs(server), rig.docs(server), rig.mongo[DATABASE]["docs"]]
    amounts = [DOCUMENTS // 2, DOCUMENTS // 2, DOCUMENTS // 10]
    writers = [
        Writer(place, n * 10**6, amount, seconds, random.Random(seed + n))
        for n, (place, amount) in enumerate(zip(places, amounts, strict=True))
    ]
    for writer in writers:
        writer.start()
    strike(sorted(rng.uniform(0, seconds) for _ in range(KILLS)), lambda: kill(rig, rng))
    for writer in writers:
        writer.join()
    server.ready()
    took = count.settle()
    found = count.wrong(writers) | {"searches": count.wrong_searches(docs)}
    acknowledged = sum(len(writer.acknowledged) for writer in writers)
    print(f"{kill.__name__}: {KILLS} kills, {acknowledged} acknowledged, {found}; seed {seed}, settled in {took:.0f} s")
    print("the writers saw", [dict(writer.errors) for writer in writers], "and jobs failed because", count.reasons())
    assert found == {**CLEAN, "searches": 0}
