"""Models behind a real notebook server: the answers are those of the model applied here, whichever way they travel."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bson
import cloudpickle
import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from playwright._impl._driver import compute_driver_executable
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from superduper_nb.documents.media import AudioClip
from superduper_nb.errors import InvalidInputError, ModelError, NotFoundError, ServiceError
from superduper_nb.models import ItemError, Predictor
from tests.serving import live_models
from tests.serving.live import API, TOKEN, Live, running
from tests.waiting import until

pytestmark = pytest.mark.slow

MODELS: dict[str, Any] = {
    "scale": live_models.Scale(),
    "spell": live_models.Spell(),
    "thumbnail": live_models.thumbnail,
    "count": live_models.count,
    "tick": live_models.tick,
    "trouble": live_models.trouble,
    "short": live_models.Short(),
    "length": live_models.length,
    "measured": live_models.measured,
    "echo": lambda x: x,
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, mongo_uri: str) -> Iterator[Live]:
    cloudpickle.register_pickle_by_value(live_models)
    with running(tmp_path_factory.mktemp("live") / "home", mongo_uri) as server:
        for name, model in MODELS.items():
            server.client["shop"].create_model(name, model)
        yield server
        server.client.drop_database("shop")
    cloudpickle.unregister_pickle_by_value(live_models)


@pytest.fixture(scope="module")
def docs(live: Live) -> Any:
    return live.client["shop"]["products"]


def row_of(live: Live, model: str, database: str = "shop") -> Any:
    """Return what the listing says about a model."""
    return next(row for row in live.client.services.models(database) if row["id"] == model)


def local(model: str) -> Predictor:
    return Predictor(MODELS[model])


VALUES: list[Any] = [None, True, 5, 2.5, "ä", [1, [2.5, "x"]], {"a": {"b": [1]}}, bson.ObjectId("5" * 24), b"\x00"]
ARRAYS = [np.arange(3, dtype=np.float32), np.eye(2), np.arange(6, dtype=np.int8).reshape(1, 2, 3)]


def test_values_and_arrays_come_back_as_they_were(docs: Any) -> None:
    assert docs.predict_many("echo", VALUES) == VALUES
    for array in ARRAYS:
        got = docs.predict("echo", array)
        np.testing.assert_array_equal(got, array)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert torch.equal(docs.predict("echo", tensor), tensor)


def test_a_module_a_function_and_an_image_answer_as_here(docs: Any) -> None:
    xs = [[1, 2, 3], [4.5, 5, 6]]
    here = local("scale").predict_many(xs)
    for there, expected in zip(docs.predict_many("scale", xs), here, strict=True):
        np.testing.assert_array_equal(np.asarray(there), expected.numpy())
    picture = Image.effect_noise((8, 8), 50)
    assert docs.predict("thumbnail", picture).tobytes() == live_models.thumbnail(picture).tobytes()


@pytest.mark.parametrize("estimator", [LinearRegression(), StandardScaler(), DecisionTreeClassifier(random_state=0)])
def test_an_estimator_answers_as_here(docs: Any, estimator: Any) -> None:
    rows = np.random.default_rng(0).random((32, 3))
    labels = np.array(["cheap", "dear"])[(rows[:, 0] > 0.5).astype(int)]
    estimator.fit(rows, labels if isinstance(estimator, DecisionTreeClassifier) else rows @ [1.0, 2.0, 3.0])
    name = type(estimator).__name__
    docs.create_model(name, estimator)
    expected = Predictor(estimator).predict_many(list(rows))
    for there, here in zip(docs.predict_many(name, list(rows)), expected, strict=True):
        np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_sound_answers_as_here(docs: Any, dtype: Any) -> None:
    clip = AudioClip(np.arange(-50, 50, dtype=dtype).reshape(-1, 2), 8000)
    docs.create_model("louder", live_models.louder)
    got, here = docs.predict("louder", clip), live_models.louder(clip)
    np.testing.assert_array_equal(got.samples, here.samples)
    assert (got.samples.dtype, got.rate) == (here.samples.dtype, here.rate)


TEXTS = ["warm", "scarf", "a long red scarf"]


def test_an_int8_model_answers_as_its_variant_here_to_the_last_bit(docs: Any) -> None:
    docs.create_model("small", live_models.Letters(), optimize="int8", examples=TEXTS)
    expected = Predictor(live_models.Letters(), optimize="int8").predict_many(TEXTS)
    plain = Predictor(live_models.Letters()).predict_many(TEXTS)
    for there, here, full in zip(docs.predict_many("small", TEXTS), expected, plain, strict=True):
        np.testing.assert_array_equal(there, here.numpy())
        assert not np.array_equal(there, full.numpy())


@pytest.mark.drill
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own modules, as it imports them
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler")
def test_compiled_models_answer_as_the_plain_ones_here_and_are_swapped_under_load(live: Live, docs: Any) -> None:
    here = [Predictor(live_models.Letters(seed)).predict("warm").numpy() for seed in (1, 2)]
    docs.create_model("quick", live_models.Letters(1), optimize="compile", examples=TEXTS)
    stop, seen = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            reply = live.ask("POST", "models/shop/quick/predict", {"inputs": ["warm"]})[1]
            np.testing.assert_allclose(reply["outputs"][0], here[reply["version"] - 1], atol=1e-5)
            seen.append(reply["version"])

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        until(lambda: 1 in seen, "it is served")
        docs.create_model("quick", live_models.Letters(2), optimize="compile", examples=TEXTS)
        until(lambda: seen[-1] == 2, "the next version is served")
        stop.set()
        for future in asking:
            future.result(timeout=60)


def test_json_in_and_out(live: Live) -> None:
    xs = [[1, 2, 3], [4.5, 5, 6]]
    status, reply = live.ask("POST", "models/shop/scale/predict", {"inputs": xs, "version": 1})
    assert (status, reply["version"]) == (200, 1)
    assert reply["outputs"] == [row.tolist() for row in local("scale").predict_many(xs)]
    picture = Image.effect_noise((8, 8), 50)
    stored = live.client["shop"]._workspace.loader.codec().encode(picture)
    body = json.loads(bson.json_util.dumps({"inputs": [stored]}))
    (output,) = live.ask("POST", "models/shop/thumbnail/predict", body)[1]["outputs"]
    got = live.client["shop"]._workspace.loader.codec().decode(bson.json_util.loads(json.dumps(output)))
    assert got.tobytes() == live_models.thumbnail(picture).tobytes()
    assert live.ask("POST", "models/shop/echo/predict", {"inputs": [{"$numberDouble": "NaN"}, 2**70 % 2**62]})[1][
        "outputs"
    ] == [{"$numberDouble": "NaN"}, 2**70 % 2**62]


def test_inputs_and_outputs_of_a_registered_type(live: Live, docs: Any) -> None:
    docs.create_model("twice", live_models.twice)
    docs.create_model("saved", live_models.saved)
    path, stored = (
        "models/shop/twice/predict",
        {"type": "money", "bytes": {"$binary": {"base64": "NSBFVVI=", "subType": "00"}}},
    )
    status, reply = live.ask("POST", path, {"inputs": [{"_content": stored}]})
    assert (status, "There is no type 'money'" in reply["message"]) == (400, True)
    docs.create_type("money", live_models.MoneyType())  # known from the next request on
    status, reply = live.ask("POST", path, {"inputs": [{"_content": stored}]})
    (output,) = reply["outputs"]
    assert (status, output["_content"]["type"]) == (200, "money")
    assert bson.json_util.object_hook(output["_content"]["bytes"]) == b"10 EUR"
    got = docs.predict("twice", live_models.Money(7, "EUR"))
    assert (type(got).__name__, got.cents, got.currency) == ("Money", 14, "EUR")
    assert [piece.cents for piece in docs.predict_stream("saved", 3)] == [0, 1, 2]
    stored["bytes"]["$binary"]["base64"] = "AAAA"
    status, reply = live.ask("POST", path, {"inputs": [{"_content": stored}]})
    assert (status, "Type 'money' can't decode" in reply["message"]) == (400, True)


def test_a_version_can_be_pinned(live: Live, docs: Any) -> None:
    docs.create_model("versioned", lambda x: ["one", x])
    docs.create_model("versioned", lambda x: ["two", x])
    assert docs.predict("versioned", 1) == ["two", 1]
    assert docs.predict("versioned", 1, version=1) == ["one", 1]
    with pytest.raises(NotFoundError):
        docs.predict("versioned", 1, version=9)


def test_a_new_version_answers_the_next_request_of_a_model_in_use(docs: Any) -> None:
    """Its newest version is known for a moment after each question; `create_model` says that there is another one."""
    docs.create_model("used", lambda x: 0)
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            docs.predict("used", 1)

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(use)
        try:
            for version in range(1, 9):
                docs.create_model("used", lambda x, v=version: v)
                assert docs.predict("used", 1) == version
        finally:
            stop.set()
        using.result()


def test_one_bad_input_may_have_an_error_in_its_place(docs: Any) -> None:
    with pytest.raises(ModelError, match="on 1 of 3 inputs, first on inputs\\[1\\]: RuntimeError: asked to"):
        docs.predict_many("trouble", [1, "raise", 2])
    assert docs.predict_many("trouble", [1, "raise", 2], errors="return") == [
        1,
        ItemError("RuntimeError", "asked to"),
        2,
    ]


def test_awaited_predictions_share_batches(live: Live, docs: Any) -> None:
    docs.predict("length", "warm")
    before = row_of(live, "length")

    async def ask() -> list[Any]:
        return await asyncio.gather(*(docs.apredict("length", "x" * i) for i in range(200)))

    assert asyncio.run(ask()) == [live_models.length("x" * i) for i in range(200)]
    after = row_of(live, "length")
    assert after["inputs"] - before["inputs"] == 200
    assert after["batches"] - before["batches"] < 150


class TestStreams:
    def test_pieces_are_those_of_the_generator(self, docs: Any) -> None:
        assert list(docs.predict_stream("count", 5)) == docs.predict("count", 5) == [0, 1, 2, 3, 4]
        assert list(docs.predict_stream("spell", "warm")) == local("spell").predict("warm") == list("warm")
        assert list(docs.predict_stream("length", "abc")) == [[3.0, 1.0, 0.0]]  # what does not yield: its one output

        async def collect() -> list[Any]:
            return [piece async for piece in docs.apredict_stream("count", 5)]

        assert asyncio.run(collect()) == [0, 1, 2, 3, 4]

    def test_an_error_comes_after_what_was_yielded_before_it(self, docs: Any) -> None:
        seen: list[int] = []
        with pytest.raises(ModelError, match="ValueError: seven"):
            seen.extend(docs.predict_stream("count", 9))
        assert seen == [0, 1, 2, 3, 4, 5, 6]
        for model, error in [("nope", NotFoundError), ("trouble", ModelError)]:
            with pytest.raises(error):
                list(docs.predict_stream(model, "raise"))

    def test_events(self, live: Live) -> None:
        headers = {"Content-Type": "application/json"}
        answer = live.send("POST", "models/shop/count/stream", b'{"input": 2}', headers=headers)
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.body == (b'data: {"output":0}\n\ndata: {"output":1}\n\nevent: end\ndata: {"version": 1}\n\n')
        answer = live.send("POST", "models/shop/count/stream", b'{"input": 9}', headers=headers)
        assert answer.status == 200
        assert b'event: error\ndata: {"message": "The model failed' in answer.body
        assert live.ask("POST", "models/shop/nope/stream", {"input": 9})[0] == 404

    def test_others_are_served_meanwhile_and_a_reader_that_leaves_ends_it(self, docs: Any, tmp_path: Path) -> None:
        pieces = docs.predict_stream("tick", str(tmp_path))
        other = docs.predict_stream("tick", str(tmp_path / "nowhere"))
        assert [next(pieces), next(other), next(pieces)] == [0, 0, 1]
        for i in range(5):
            assert docs.predict("length", "x" * i) == live_models.length("x" * i)
        assert next(other) == 1
        pieces.close()
        until((tmp_path / "closed").exists, "the model's generator is closed")
        other.close()


def test_search_encodes_in_the_batches_of_everyone_else(live: Live) -> None:
    docs = live.client["batched"]["products"]
    docs.create_model("slow", live_models.length, type="vector")
    docs.create_semantic_index("meaning", models=["slow"], keys=["text"], measure="l2")
    docs.insert_many([{"_id": i, "text": "x" * i} for i in range(1, 40)]).jobs.wait(60)
    docs.find_one(like={"text": "x"})

    def ask(i: int) -> None:
        if i % 2:
            assert docs.find_one(like={"text": "x" * i})["_id"] == i
        else:
            assert docs.predict("slow", "x" * i) is not None

    before = row_of(live, "slow", "batched")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, [*range(1, 40)] * 3))
    after = row_of(live, "slow", "batched")
    assert after["inputs"] - before["inputs"] == 117  # searches and predictions, all through the same queue
    assert after["batches"] - before["batches"] < 117
    live.client.drop_database("batched")


DRILLS: list[tuple[str, Any, int, str]] = [
    ("trouble", "raise", 422, "RuntimeError: asked to"),
    ("trouble", "memory", 422, "MemoryError"),
    ("trouble", "exit", 422, "exit code 3"),
    ("short", 1, 422, "answered 0 rows"),
    ("scale", [1, 2], 422, ""),
    ("scale", {"a": 1}, 422, ""),
    ("scale", "abc", 422, ""),
    ("nope", 1, 404, "nope"),
]


@pytest.mark.parametrize(("model", "x", "status", "message"), DRILLS)
def test_trouble_is_answered_and_the_next_request_too(
    live: Live, model: str, x: Any, status: int, message: str
) -> None:
    answered, reply = live.ask("POST", f"models/shop/{model}/predict", {"inputs": [x]})
    assert (answered, message in reply["message"]) == (status, True), reply
    assert live.ask("POST", "models/shop/length/predict", {"inputs": ["abc"]})[1]["outputs"] == [[3.0, 1.0, 0.0]]


def test_a_full_queue_is_429_and_says_when_to_come_back(live: Live, tmp_path: Path) -> None:
    def ask(model: str, inputs: list[Any]) -> tuple[int, str]:
        body, headers = json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}
        answer = live.send("POST", f"models/shop/{model}/predict", body, headers=headers)
        return answer.status, answer.headers.get("Retry-After", "")

    with ThreadPoolExecutor(16) as pool:
        first = pool.submit(ask, "trouble", [[str(tmp_path)]])
        until((tmp_path / "begun").exists, "the process is busy")
        others = [pool.submit(ask, "length", ["x"] * 32) for _ in range(12)]
        refused = until(lambda: [one.result() for one in others if one.done()], "some are refused")
        (tmp_path / "end").touch()
        assert all(status == 429 and int(when) >= 1 for status, when in refused)
        assert sorted({one.result()[0] for one in others}) == [200, 429]
        assert first.result()[0] == 200


def test_what_a_client_that_went_away_asked_for_is_never_run(live: Live, tmp_path: Path) -> None:
    busy, gone = (tmp_path / name for name in ("busy", "gone"))
    for folder in (busy, gone):
        folder.mkdir()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(live.ask, "POST", "models/shop/trouble/predict", {"inputs": [[str(busy)]]})
        until((busy / "begun").exists, "the process is busy")
        address = urlsplit(live.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            body = json.dumps({"inputs": [[str(gone)]]})
            head = f"POST {address.path}{API}models/shop/trouble/predict HTTP/1.1\r\nHost: {address.netloc}\r\n"
            head += f"Authorization: token {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall((head + body).encode())
            until(lambda: row_of(live, "trouble")["queue"] == 1, "it waits")
        until(lambda: row_of(live, "trouble")["queue"] == 0, "it waits no longer")
        (busy / "end").touch()
        assert first.result()[0] == 200
    live.ask("POST", "models/shop/trouble/predict", {"inputs": ["next"]})
    assert not (gone / "begun").exists()


def test_ten_megabytes_of_json(live: Live, docs: Any) -> None:
    rows = np.random.default_rng(0).random((10_000, 64)).tolist()
    assert len(json.dumps(rows)) > 10_000_000
    before = row_of(live, "echo").get("inputs", 0)
    status, reply = live.ask("POST", "models/shop/echo/predict", {"inputs": rows, "version": 1})
    assert (status, reply["outputs"] == rows) == (200, True)
    assert row_of(live, "echo")["inputs"] - before == 10_000
    with pytest.raises(InvalidInputError, match="at most 33554432"):
        docs.predict("echo", b"x" * (40 << 20))


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("model", "body", "status", "message"),
    [
        ("echo", {"inputs": [LONG], "version": 9}, 404, "version 9"),
        ("echo", {"inputs": [LONG], "more": 1}, 400, "more: Extra inputs"),
        ("echo", {"inputs": [LONG], "version": "1"}, 400, "version: Input should be a valid integer"),
        ("nope", {"inputs": [LONG]}, 404, "nope"),
        ("trouble", {"inputs": [LONG, "raise"]}, 422, "on 1 of 2 inputs, first on inputs[1]"),
        ("trouble", {"inputs": [LONG, "raise"], "errors": "return"}, 200, ""),
    ],
)
def test_long_bodies_are_checked_as_short_ones_are(
    live: Live, model: str, body: dict[str, Any], status: int, message: str
) -> None:
    """They are read in the model's process."""
    answered, reply = live.ask("POST", f"models/shop/{model}/predict", body)
    assert (answered, message in reply.get("message", "")) == (status, True), reply


def test_long_bodies_that_are_no_json_or_of_another_type(live: Live, docs: Any) -> None:
    for content, status in [("text/plain", 415), ("application/json", 400), ("application/bson", 400)]:
        for verb in ("predict", "stream", "load"):
            headers = {"Content-Type": content}
            assert live.send("POST", f"models/shop/echo/{verb}", b"{" * 100_000, headers=headers).status == status
    assert len(list(docs.predict_stream("length", LONG))) == 1


def test_each_model_is_described_with_the_types_of_its_annotations(live: Live) -> None:
    described = live.ask("GET", "openapi.json?db=shop")[1]["paths"]
    assert set(described) > {f"/models/shop/{name}/predict" for name in MODELS}
    said = described["/models/shop/measured/predict"]["post"]
    asked = said["requestBody"]["content"]["application/json"]["schema"]
    answered = said["responses"]["200"]["content"]["application/json"]["schema"]
    assert asked["properties"]["inputs"]["items"] == {"type": "array", "items": {"type": "number"}}
    assert answered["properties"]["outputs"]["items"] == {"type": "number"}
    body = {"inputs": [[1.5, 2.5]]}
    jsonschema.validate(body, asked)
    jsonschema.validate(live.ask("POST", "models/shop/measured/predict", body)[1], answered)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"inputs": ["a text"]}, asked)
    for name, types in [("spell", {"type": "string"}), ("count", {"type": "integer"}), ("scale", {})]:
        schema = described[f"/models/shop/{name}/predict"]["post"]["requestBody"]["content"]["application/json"]
        assert schema["schema"]["properties"]["inputs"]["items"] == types


def test_the_listing_and_memory(live: Live, docs: Any) -> None:
    docs.load_model("scale", example=[1, 2, 3])
    row = row_of(live, "scale")
    assert (row["state"], row["version"]) == ("ready", 1)
    assert row["rss"] >= 0
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert all(row[name] == round(row[name], 3) for name in ("p50_ms", "p99_ms", "total_ms"))
    docs.unload_model("scale")
    assert row_of(live, "scale")["state"] == "unloaded"
    text = live.send("GET", "metrics").body.decode()
    for figure in ("inputs_total", "batches_total", "errors_total", "queue", "latency_seconds"):
        assert f'superduper_model_{figure}{{database="shop",model="scale"' in text, figure
    assert "superduper_model_server_restarts_total" in text


class TestDocs:
    """The examples of docs/serving.md, run as they stand there."""

    TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"```{language}\n(.*?)```", self.TEXT, flags=re.DOTALL)

    def run(self, live: Live, command: list[str]) -> str:
        environment = {**os.environ, "SERVER": live.url.rstrip("/"), "TOKEN": TOKEN}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    def test_curl(self, live: Live) -> None:
        predict, stream = (self.run(live, ["bash", "-c", block]) for block in self.blocks("sh"))
        assert json.loads(predict)["outputs"] == [[11.0, 1.0, 0.0], [6.0, 1.0, 0.0]]
        assert [line for line in stream.splitlines() if line.startswith('data: {"output":')] == [
            f'data: {{"output":{i}}}' for i in range(3)
        ]

    def test_javascript(self, live: Live) -> None:
        node, *_ = compute_driver_executable()
        prelude = "const { SERVER, TOKEN } = process.env;\n"
        command = [str(node), "--input-type=module", "-e"]
        predict, stream = (self.run(live, [*command, prelude + block]) for block in self.blocks("js"))
        assert " ".join(predict.split()) == "1 [ [ 11, 1, 0 ], [ 6, 1, 0 ] ]"
        assert stream.splitlines()[:3] == [f'data: {{"output":{i}}}' for i in range(3)]
        assert "event: end" in stream

    def test_python(self, live: Live, docs: Any) -> None:
        block, variants = self.blocks("python")
        plain = [line for line in block.splitlines() if line and "await" not in line]
        docs.create_model("minilm", live_models.length)
        docs.create_model("writer", live_models.count)
        for _ in range(2):
            docs.create_model("minilm", lambda text: len(text))
            docs.create_model("minilm", live_models.length)
        code = "\n".join(plain).replace('"Once upon"', "3")
        exec(code, {"docs": docs, "texts": ["a", "b"], "print": lambda *args, **options: None})
        exec(variants, {"docs": docs, "encoder": live_models.Letters()})
        assert 0 < row_of(live, "minilm")["optimized"]["max_difference"] < 0.05
        expected = Predictor(live_models.Letters(), optimize="bf16").predict("warm")
        np.testing.assert_array_equal(docs.predict("minilm", "warm"), expected.numpy())  # the variant is what is served


def test_killed_and_swapped_under_load_every_request_is_answered(live: Live, docs: Any) -> None:
    """Clients over HTTP see outputs of one version or another, or an error that says to try again; none hangs."""
    docs.create_model("swapped", lambda x: [1, x])
    stop, seen = threading.Event(), []

    def ask(i: int) -> None:
        while not stop.is_set():
            try:
                version, x = docs.predict("swapped", i)
                assert x == i
                seen.append(version)
            except (ServiceError, ModelError) as error:
                seen.append(type(error).__name__)

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, i) for i in range(8)]
        for version in (2, 3, 4):
            until(lambda v=version: v - 1 in seen[-20:], "the version is served")
            docs.create_model("swapped", lambda x, v=version: [v, x])
        until(lambda: 4 in seen[-20:], "the last version is served")
        assert not [answer for answer in seen if isinstance(answer, str)]  # no swap failed a request
        for _ in range(3):
            pid = until(live.model_process, "a process runs the models")
            os.kill(pid, signal.SIGKILL)
            until(lambda dead=pid: live.model_process() not in (None, dead), "there is another one")
        begun = len(seen)
        until(lambda: len(seen) > begun + 50, "requests are answered again")
        stop.set()
        for future in asking:
            future.result(timeout=60)
    assert seen[-1] == 4
