"""What is answered: the same as the model applied locally, or an error that names the reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from superduper_nb.errors import InvalidInputError, ModelError, NotFoundError, TrustError
from superduper_nb.serving import InProcessModels, ModelServer
from superduper_nb.serving.forms import write_outputs
from superduper_nb.serving.newest import Newest
from tests.serving import fakes
from tests.waiting import until

Models = ModelServer | InProcessModels
MakeServer = Callable[..., ModelServer]


def test_the_answer_is_that_of_the_model_applied_locally(shared_models: Models) -> None:
    inputs = ["1", 2, 3.5]
    answer = shared_models.predict("shop", "real", inputs)
    assert answer.outputs == fakes.MODELS["real"]().predict_many(inputs) == ["2.0", "3.0", "4.5"]
    assert answer.version == 1
    assert answer.took_ms > 0


def test_a_torch_module_answers_as_locally(shared_models: Models) -> None:
    inputs = [[1, 2, 3], [4, 5, 6.5]]
    outputs = shared_models.predict("shop", "linear", inputs).outputs
    local = fakes.linear().predict_many(inputs)
    assert [row.tolist() for row in outputs] == [row.tolist() for row in local]


def test_arrays_stand_in_the_place_of_tensors_where_that_is_asked_for(server: ModelServer) -> None:
    inputs = [[1, 2, 3], [4, 5, 6.5]]
    outputs = server.submit("shop", "linear", inputs, form="arrays").result().outputs
    assert [type(row) for row in outputs] == [np.ndarray, np.ndarray]
    assert [row.tolist() for row in outputs] == [row.tolist() for row in fakes.linear().predict_many(inputs)]
    narrow, count, text = write_outputs("arrays", [torch.ones(2).bfloat16(), torch.tensor(3), "x"], str)
    assert (narrow.dtype, narrow.tolist(), count.dtype, count.tolist(), text) == ("float32", [1, 1], "int64", 3, "x")


def test_submit_gives_the_same_as_predict(shared_models: Models) -> None:
    assert shared_models.submit("shop", "double", [1, "a"]).result().outputs == [2, "aa"]
    with pytest.raises(NotFoundError, match="no model 'nope'"):
        shared_models.submit("shop", "nope", [1]).result()


def test_no_inputs_no_outputs(shared_models: Models) -> None:
    assert shared_models.predict("shop", "double", []).outputs == []


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        ("nope", [1], NotFoundError, "no model 'nope'"),
        ("untrusted", [1], TrustError, "not signed"),
        ("broken", [1], ModelError, "can't be loaded: ValueError: weights missing"),
        ("inverse", [0], ModelError, "on this input: ZeroDivisionError"),
        ("inverse", [1, 0, 2, 0], ModelError, "on 2 of 4 inputs, first on inputs\\[1\\]: ZeroDivisionError"),
        ("raises", ["bad"], ModelError, "SystemExit: bad"),
        ("raises", ["short", "short"], ModelError, "1 outputs to 2 inputs"),
    ],
)
def test_errors_say_why(
    shared_models: Models, model: str, inputs: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        shared_models.predict("shop", model, inputs)
    assert shared_models.predict("shop", "double", [1]).outputs == [2]


def test_inputs_and_outputs_that_can_not_travel_fail_alone(server: ModelServer) -> None:
    with pytest.raises(InvalidInputError, match="can't be sent"):
        server.submit("shop", "double", [lambda: 1])
    with pytest.raises(InvalidInputError, match="can't be read in the model's process"):
        server.predict("shop", "double", [fakes.OnlyHere()])
    with pytest.raises(ModelError, match="output can't be sent"):
        server.predict("shop", "odd", [1])
    assert server.predict("shop", "double", [1]).outputs == [2]


def test_load_and_current_must_be_known_by_name() -> None:
    with pytest.raises(InvalidInputError, match=r"functools\.partial"):
        ModelServer(lambda database, model, version: fakes.load(database, model, version), fakes.current)


def test_a_model_computes_in_one_thread_and_may_read_and_print(make_server: MakeServer) -> None:
    server = make_server(preload=("torch", "no_such_module"))
    (seen,) = server.predict("shop", "environment", [1]).outputs
    assert seen == {"pid": server.status()["pid"], "threads": 1, "stdin": ""}


def publish(folder: Path, model: str, version: int) -> None:
    (folder / "next").write_text(str(version))
    (folder / "next").replace(folder / model)


either = pytest.mark.parametrize("model", ["quick", "slow"])
"""A slow model runs while its newest version is asked for."""


@either
def test_a_new_version_is_served_from_the_next_batch_on(models: Models, tmp_path: Path, model: str) -> None:
    publish(tmp_path, model, 1)
    for _ in range(2):  # the second time it is known how long it takes
        assert models.predict(str(tmp_path), model, ["x"]).outputs == [(1, "x")]
    publish(tmp_path, model, 2)
    models.registered(str(tmp_path))
    answer = models.predict(str(tmp_path), model, ["x"])
    assert (answer.version, answer.outputs) == (2, [(2, "x")])
    assert [row["version"] for row in models.loaded()] == [2]
    assert models.predict(str(tmp_path), model, ["x"], version=1).version == 1


@either
def test_a_new_version_that_nobody_told_of_is_noticed(models: Models, tmp_path: Path, model: str) -> None:
    publish(tmp_path, model, 1)
    models.predict(str(tmp_path), model, ["x"])
    publish(tmp_path, model, 2)
    until(lambda: models.predict(str(tmp_path), model, ["x"]).version == 2, "it is served")


def test_a_version_counts_as_the_newest_for_a_moment_unless_a_new_one_was_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, name = SimpleNamespace(s=100.0), ("shop", "m")
    monkeypatch.setattr("superduper_nb.components.lately.time", SimpleNamespace(monotonic=lambda: now.s))
    newest = Newest(lambda database, model: 0)
    assert newest.lately(name) is None
    newest.note(name, 3, now.s)
    now.s += 0.01
    newest.tell("other")
    assert (newest.lately(name), newest.lately(("other", "m"))) == (3, None)
    newest.tell("shop")
    assert newest.lately(name) is None
    newest.note(name, 3, now.s - 0.005)  # by a batch that was sent before
    assert newest.lately(name) is None
    now.s += 0.01
    newest.note(name, 4, now.s)
    assert newest.lately(name) == 4
    now.s += 0.11
    assert newest.lately(name) is None
    newest.close()


@either
def test_a_deleted_model_is_not_found_and_leaves_memory(models: Models, tmp_path: Path, model: str) -> None:
    publish(tmp_path, model, 1)
    models.predict(str(tmp_path), model, ["x"])
    (tmp_path / model).unlink()
    models.registered(str(tmp_path))
    with pytest.raises(NotFoundError):
        models.predict(str(tmp_path), model, ["x"])
    assert [row["state"] for row in models.loaded()] == ["unloaded"]


@either
def test_a_loaded_model_is_served_while_the_database_is_away(models: Models, tmp_path: Path, model: str) -> None:
    publish(tmp_path, model, 1)
    models.predict(str(tmp_path), model, ["x"])
    (tmp_path / model).write_text("away")
    models.registered(str(tmp_path))
    assert models.predict(str(tmp_path), model, ["x"]).version == 1
    (tmp_path / "other").write_text("away")
    with pytest.raises((ModelError, ConnectionError), match="no database"):
        models.predict(str(tmp_path), "other", ["x"])


@either
def test_versions_are_swapped_under_load_without_an_error(server: ModelServer, tmp_path: Path, model: str) -> None:
    publish(tmp_path, model, 1)
    last = 8

    def ask(_: int) -> list[int]:
        seen = [0]
        while seen[-1] < last:
            answer = server.predict(str(tmp_path), model, list(range(5)))
            assert answer.outputs == [(answer.version, i) for i in range(5)]
            seen.append(answer.version)
        return seen

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(ask, range(4))
        for version in range(2, last + 1):
            server.predict(str(tmp_path), model, [0])
            publish(tmp_path, model, version)
            server.registered(str(tmp_path))
        assert all(seen == sorted(seen) for seen in answers)


def test_no_process_loads_a_version_twice(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(replicas=2)

    def ask(_: int) -> int:
        time.sleep(0.005)  # now and then a process has nothing to do, while the other changes over
        return server.predict(str(tmp_path), "compiled", [0] * 5).version

    with ThreadPoolExecutor(8) as pool:
        for version in (1, 2, 3):
            (tmp_path / str(version)).touch()  # it loads without waiting
            publish(tmp_path, "compiled", version)
            server.registered(str(tmp_path))
            until(lambda v=version: set(pool.map(ask, range(300))) == {v}, "both processes serve it")
    loads = (tmp_path / "loads").read_text().split("\n")[:-1]
    assert len({line.split()[0] for line in loads}) == 2
    assert len(loads) == len(set(loads))


def test_a_compiled_model_is_served_until_its_next_version_is_ready(server: ModelServer, tmp_path: Path) -> None:
    def version() -> int:
        return server.predict(str(tmp_path), "compiled", ["x"]).version

    publish(tmp_path, "compiled", 1)
    assert version() == 1
    for old, new in [(1, 2), (2, 3)]:
        publish(tmp_path, "compiled", new)
        server.registered(str(tmp_path))
        assert version() == old
        until((tmp_path / f"{new}.begun").exists, "it is being loaded")
        assert [version() for _ in range(20)] == [old] * 20
        pinned = server.submit(str(tmp_path), "compiled", ["x"], version=new) if new == 3 else None
        (tmp_path / str(new)).touch()
        assert pinned is None or pinned.result().version == new  # asked for by its number it is waited for
        until(lambda v=new: version() == v, "it is served")
        assert [row["version"] for row in server.loaded()] == [new]
    (tmp_path / "4").touch()
    publish(tmp_path, "compiled", 4)
    with pytest.raises(ModelError, match="version 4 can't be loaded"):
        until(lambda: version() == 4, "it fails")


def test_versions_are_not_mixed_in_a_batch(server: ModelServer, tmp_path: Path) -> None:
    publish(tmp_path, "m", 3)
    pins = [None, 1, 2, None, 2, 1, 3]
    futures = [server.submit(str(tmp_path), "m", ["x"], version=pin) for pin in pins]
    assert [future.result().outputs for future in futures] == [[(pin or 3, "x")] for pin in pins]


def test_the_least_recently_used_model_leaves_when_memory_is_short(make_server: MakeServer) -> None:
    plain = make_server()
    plain.predict("shop", "double", [1])
    server = make_server(memory=plain.status()["rss"] + (160 << 20))  # room for two models of 64 MB, not for three
    for model in ("big1", "big2", "big1", "big3"):
        server.predict("shop", model, [0])
    states = {row["model"]: row["state"] for row in server.loaded()}
    assert states == {"big1": "ready", "big2": "unloaded", "big3": "ready"}
    assert server.predict("shop", "big2", [0]).outputs == [64 << 20]


def test_unload(models: Models) -> None:
    models.unload("shop", "double")  # nothing there: harmless
    models.predict("shop", "double", [1])
    models.unload("shop", "double")
    assert [(row["state"], row["version"]) for row in models.loaded()] == [("unloaded", None)]
    assert models.predict("shop", "double", [1]).outputs == [2]


def test_figures(models: Models) -> None:
    for inputs in ([1], [1, 2], [0]):
        models.submit("shop", "inverse", inputs).exception()
    (row,) = models.loaded()
    counted = {
        name: row[name] for name in ("database", "model", "state", "version", "count", "inputs", "errors", "queue")
    }
    assert counted == {
        "database": "shop",
        "model": "inverse",
        "state": "ready",
        "version": 1,
        "count": 3,
        "inputs": 4,
        "errors": 1,
        "queue": 0,
    }
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert row["rate"] > 0
    assert row["rss"] >= 0


def test_names_without_a_model_leave_nothing_behind(server: ModelServer) -> None:
    for i in range(20):
        server.submit("shop", f"nope{i}", [1]).exception()
    assert server.loaded() == []
