from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from job_world import GOOD, Oracle, World
from pymongo import UpdateOne

from superduper_nb.jobs.outputs import Control
from superduper_nb.models.apply import Predictor


def double(x: Any) -> Any:
    return x * 2


class Counting:
    """A model that counts its inputs, and says no to some."""

    def __init__(self, refused: tuple[Any, ...] = ()) -> None:
        self.calls, self.refused = 0, refused

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        if x in self.refused:
            raise ValueError(f"I do not like {x}")
        return x * 2


@pytest.fixture
def counting(world: World, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Return the model of the watcher m/x, as it is loaded here."""
    world.model("m", double)
    model = Counting()
    monkeypatch.setattr(world.loader, "predictor", lambda *_: Predictor(model))
    return model


def test_outputs_equal_the_model_applied_here_for_every_document(world: World) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    world.model("m", double)
    watcher = world.watcher("m", "a.x")
    rows = [
        {"_id": i, "a": {"x": rng.choice([rng.random(), rng.randrange(99), "s" * rng.randrange(9)])}}
        for i in range(2500)
    ]
    world.docs.insert_many(rows)
    outcome = world.run(watcher)
    assert (outcome.done, outcome.failures) == (2500, ())
    assert Oracle(world, watcher, double).check(range(2500)) == GOOD


def test_the_oracle_sees_what_is_wrong(world: World) -> None:
    world.model("m", double)
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(1, 10)])
    world.run(watcher)
    oracle = Oracle(world, watcher, double)
    assert oracle.check(range(1, 10)) == GOOD
    world.docs.update_one({"_id": 1}, {"$set": {"_outputs.x.m": 3}})
    world.docs.update_one({"_id": 2}, {"$unset": {"_outputs": ""}})
    world.docs.update_one({"_id": 3}, {"$set": {"x": 7}})  # a stale output
    world.docs.delete_one({"_id": 4})
    world.docs.insert_one({"_id": 50, "x": 1, "_outputs": {"x": {"m": 2}}, "_sddb": {"outputs": {"m/x": {"v": 1}}}})
    world.backfill(watcher)
    assert oracle.check(range(1, 10)) == {"lost": 1, "phantom": 1, "wrong": 3, "unfinished": 1}


def test_running_again_computes_nothing(world: World, counting: Counting) -> None:
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(100)])
    world.run(watcher)
    world.run(watcher)
    assert counting.calls == 100


def test_one_bad_document_fails_alone_and_is_tried_again_on_demand(world: World, counting: Counting) -> None:
    counting.refused = (7,)
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(50)])
    outcome = world.run(watcher)
    assert outcome.failures == ({"_id": 7, "error": "ValueError: I do not like 7"},)
    assert Oracle(world, watcher, double).check(range(50), failed=[7]) == GOOD
    before = counting.calls
    assert world.run(watcher).failures == outcome.failures  # it is remembered, not tried
    assert counting.calls == before
    assert world.run(watcher, retry_failed=True).failures == outcome.failures
    assert counting.calls == before + 1
    counting.refused = ()
    assert world.run(watcher, retry_failed=True).failures == ()
    assert Oracle(world, watcher, double).check(range(50)) == GOOD


def test_an_update_is_computed_again_and_a_key_that_is_gone_takes_its_output_along(world: World) -> None:
    world.model("m", double)
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(4)])
    world.run(watcher)
    world.docs.update_one({"_id": 1}, {"$set": {"x": 10}})
    world.docs.update_one({"_id": 2}, {"$unset": {"x": ""}})
    world.docs.delete_one({"_id": 3})
    world.refresh(watcher).run(range(4))
    found = {d["_id"]: d.get("_outputs", {}).get("x", {}).get("m") for d in world.docs.find()}
    assert found == {0: 0, 1: 20, 2: None}
    assert "m/x" not in world.docs.find_one({"_id": 2})["_sddb"]["outputs"]  # type: ignore[index]


def test_documents_outside_the_filter_have_no_output_and_lose_it_when_they_leave(world: World) -> None:
    world.model("m", double)
    watcher = world.watcher("m", "x", filter={"on": True})
    world.docs.insert_many([{"_id": i, "x": i, "on": i % 2 == 0} for i in range(4)])
    world.run(watcher)
    world.docs.update_one({"_id": 0}, {"$set": {"on": False}})
    world.run(watcher)
    assert {d["_id"] for d in world.docs.find({"_outputs.x.m": {"$exists": True}})} == {2}


def test_a_new_version_computes_all_again(world: World) -> None:
    world.model("m", double)
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(10)])
    world.run(watcher)
    world.model("m", lambda x: x * 3)
    world.run(watcher)
    assert Oracle(world, watcher, lambda x: x * 3, version=2).check(range(10)) == GOOD


def test_a_chained_watcher_reads_only_outputs_of_the_present_version(world: World) -> None:
    world.model("m", double)
    world.model("n", double)
    first, second = world.watcher("m", "x"), world.watcher("n", "x", features={"x": "m"})
    world.docs.insert_many([{"_id": i, "x": i} for i in range(10)])
    world.run(second)
    assert world.docs.count_documents({"_outputs.x.n": {"$exists": True}}) == 0
    world.run(first)
    world.run(second)
    assert {d["_outputs"]["x"]["n"] for d in world.docs.find()} == {4 * i for i in range(10)}
    world.model("m", lambda x: x * 3)
    world.run(second)
    assert world.docs.count_documents({"_outputs.x.n": {"$exists": True}}) == 0


def test_vectors_are_stored_as_bytes(world: World) -> None:
    world.model("m", lambda x: np.full(8, x, np.float32), type="vector")
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": float(i)} for i in range(10)])
    world.run(watcher)
    stored = world.docs.find_one({"_id": 3})["_outputs"]["x"]["m"]  # type: ignore[index]
    assert stored.subtype == 9
    assert np.array_equal(np.frombuffer(stored[2:], np.float32), np.full(8, 3, np.float32))


def test_an_output_that_mongodb_refuses_fails_alone(world: World) -> None:
    world.model("m", lambda x: "x" * (17 * 2**20) if x == 1 else x)
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(3)])
    (failure,) = world.run(watcher).failures
    assert failure["_id"] == 1
    assert "16 MB" in failure["error"]
    assert world.docs.count_documents({"_outputs.x.m": {"$exists": True}}) == 2


@pytest.mark.parametrize("answer", [2**80, object(), {1: 2}])
def test_an_output_that_is_no_bson_fails_alone(world: World, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.model("m", double)
    monkeypatch.setattr(world.loader, "predictor", lambda *_: Predictor(lambda x: answer if x == 1 else x))
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(3)])
    assert [failure["_id"] for failure in world.run(watcher).failures] == [1]


def test_an_input_that_changes_and_changes_back_while_it_is_computed_leaves_no_stale_output(world: World) -> None:
    world.model("m", double)
    watcher = world.watcher("m", "x")
    world.docs.insert_one({"_id": 1, "x": 1})
    world.run(watcher)
    world.docs.update_one({"_id": 1}, {"$set": {"x": 2}})
    slow = world.refresh(watcher)
    whole = slow.compute

    def compute(tasks: Any, control: Control) -> Any:
        if [task.input for task in tasks] == [2]:  # now it changes back, and another worker finds nothing to do
            world.docs.update_one({"_id": 1}, {"$set": {"x": 1}})
            world.run(watcher)
        return whole(tasks, control)

    slow.compute = compute  # type: ignore[method-assign]
    slow.run([1])
    assert Oracle(world, watcher, double).check([1]) == GOOD


def test_a_key_that_goes_while_its_first_output_is_computed_gets_none(world: World) -> None:
    world.model("m", double)
    watcher = world.watcher("m", "x")
    world.docs.insert_one({"_id": 1, "x": 1})
    slow = world.refresh(watcher)
    whole = slow.compute

    def compute(tasks: Any, control: Control) -> Any:
        world.docs.update_one({"_id": 1}, {"$unset": {"x": ""}})
        return whole(tasks, control)

    slow.compute = compute  # type: ignore[method-assign]
    slow.run([1])
    assert world.docs.find_one({"_id": 1}) == {"_id": 1}


def test_a_thousand_racing_updates_end_with_outputs_that_match_inputs(world: World) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    world.model("m", double)
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(20)])

    def writer(rng: random.Random) -> None:
        for _ in range(100):  # five changes each, then the run that follows them, as a client's job would
            ids = [rng.randrange(20) for _ in range(5)]
            world.docs.bulk_write([UpdateOne({"_id": id}, {"$set": {"x": rng.randrange(3)}}) for id in ids])
            world.refresh(watcher).run(ids)

    threads = [threading.Thread(target=writer, args=(random.Random(seed + n),)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Oracle(world, watcher, double).check(range(20)) == GOOD


def test_what_is_stopped_keeps_what_it_computed(world: World, counting: Counting) -> None:
    class Stop(Control):
        told = 0

        def stopped(self) -> bool:
            return True

        def tell(self, done: int) -> None:
            self.told = done

    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(500)])
    control = Stop()
    world.refresh(watcher).run(range(500), control)
    written = world.docs.count_documents({"_outputs.x.m": {"$exists": True}})
    assert written == counting.calls == control.told
    assert 0 < written < 500


def test_a_keyboard_interrupt_is_the_models_failure_in_a_worker_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(x: Any) -> Any:
        if x == 3:
            raise KeyboardInterrupt
        return x

    world.model("m", double)
    monkeypatch.setattr(world.loader, "predictor", lambda *_: Predictor(press))
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(10)])
    with pytest.raises(KeyboardInterrupt):
        world.run(watcher)
    worker = Control()
    worker.guard = True
    outcome = world.refresh(watcher).run(range(10), worker)
    assert [failure["_id"] for failure in outcome.failures] == [3]


def test_a_condemned_document_is_not_tried_again_until_it_changes(world: World, counting: Counting) -> None:
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": i, "x": i} for i in range(3)])
    world.refresh(watcher).condemn(1, "it killed its worker 3 times")
    assert world.run(watcher).failures == ({"_id": 1, "error": "ModelError: it killed its worker 3 times"},)
    assert counting.calls == 2
    world.docs.update_one({"_id": 1}, {"$set": {"x": 9}})
    assert world.run(watcher).failures == ()


@pytest.mark.parametrize("ids", [["a", 1, 2.5, {"k": 1}, True, None, b"b"]])
def test_ids_of_any_type(world: World, ids: list[Any]) -> None:
    world.model("m", lambda x: 1 / x)
    watcher = world.watcher("m", "x")
    world.docs.insert_many([{"_id": id, "x": n} for n, id in enumerate(ids)])
    assert [failure["_id"] for failure in world.run(watcher).failures] == ["a"]
    assert world.docs.count_documents({"_outputs.x.m": {"$exists": True}}) == len(ids) - 1
