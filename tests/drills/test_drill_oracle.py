"""The oracle that counts after a drill is tried itself: each planted defect has to be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pymongo.database import Database

from tests.jobs.job_world import Effects, World


def double(x: int) -> int:
    return x * 2


@pytest.fixture
def computed(database: Database[dict[str, Any]]) -> tuple[World, Effects]:
    """Return documents whose outputs were written one after the other, in one update of the input each."""
    world = World(database)
    world.model("m", double)
    watcher = world.watcher("m", "x")
    effects = Effects(database, watcher)
    world.docs.insert_many([{"_id": n, "x": n, "_sddb": {}} for n in range(5)])
    world.docs.insert_many([{"_id": n, "x": n} for n in range(5, 10)])
    for _ in range(2):
        world.run(watcher)
        world.docs.update_one({"_id": 3}, {"$inc": {"x": 1}})
    return world, effects


def write_again(docs: Any) -> None:
    """Take an output away and write it once more, with the token that it had."""
    found = docs.find_one({"_id": 1})
    docs.update_one({"_id": 1}, {"$unset": {"_sddb.outputs": ""}})
    docs.update_one({"_id": 1}, {"$set": {"_sddb.outputs": found["_sddb"]["outputs"]}})


def write_unseen(docs: Any) -> None:
    """Put an output there that no update wrote."""
    found = docs.find_one({"_id": 1})
    docs.replace_one({"_id": 1}, {**found, "_sddb": {"outputs": {"m/x": {"v": 1, "h": b"other"}}}})


@pytest.mark.parametrize(
    ("plant", "unseen", "doubled"), [(lambda docs: None, 0, 0), (write_again, 0, 1), (write_unseen, 1, 0)]
)
def test_effects_are_counted(
    computed: tuple[World, Effects], plant: Callable[[Any], None], unseen: int, doubled: int
) -> None:
    world, effects = computed
    plant(world.docs)
    assert effects.count() == {"unseen": unseen, "doubled": doubled}
