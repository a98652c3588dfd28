"""Two real servers, side by side, and a kernel that one of them starts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

import superduper_nb as sd
from superduper_nb.cluster.ending import wait_for_end
from superduper_nb.transport import Transport
from tests.serving.live import OTHERS, TOKEN
from tests.waiting import until

SUPERDUPER = (sys.executable, "-c", "from superduper_nb.server_ext.app import main; main()")
"""What the command ``jupyter superduper`` runs."""
FIND = """
from superduper_nb.cluster.discovery import find_server
from superduper_nb.config import Config
server = find_server(Config.load({}))
print(server.url, server.mongodb_uri == URI, server.how, sep="\\n", end="")
"""


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    home: Path
    log: Path

    def info(self) -> dict[str, Any]:
        path = self.home / "runtime" / f"jpserver-{self.process.pid}.json"
        until(lambda: path.exists() and path.read_text().endswith("}"), "its runtime file is there")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def ask(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        transport = Transport(self.info()["url"], TOKEN)
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = transport.request(verb, path, body=data, timeout=30)
        finally:
            transport.close()
        return answer.status, json.loads(answer.body) if answer.body else None

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.ask("GET", "superduper/api/v1/status")[1]
        return status

    def ready(self) -> None:
        assert until(lambda: (s := self.status())["state"] != "starting" and s, "it is up")["state"] == "ready"

    def family(self) -> list[psutil.Process]:
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]


Launch = Callable[..., Running]


@contextlib.contextmanager
def launching(home: Path, mongo_uri: str, extensions: dict[str, bool]) -> Iterator[Launch]:
    """Give what starts a server whose files are in `home`; all are gone afterwards."""
    enabled = {"ServerApp": {"jpserver_extensions": {"superduper_nb": True, **extensions}}}
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(enabled))
    servers: list[Running] = []

    def start(*command: str, **environment: str) -> Running:
        log = home / f"server-{len(servers)}.log"
        options = [
            "--port=0",
            "--no-browser",
            "--allow-root",
            f"--IdentityProvider.token={TOKEN}",
            f"--notebook-dir={home}",
        ]
        environment = {"SUPERDUPER_MONGODB__URI": mongo_uri, "SUPERDUPER_JOBS__WORKERS": "1", **environment}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*(command or (sys.executable, "-m", "jupyter", "server")), *options],
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        servers.append(Running(process, home, log))
        return servers[-1]

    yield start
    for server in servers:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = server.family()
        server.process.terminate()
        for process in wait_for_end(family, timeout=20):
            process.kill()
        server.process.wait()


@pytest.fixture
def launch(home: Path, mongo_uri: str) -> Iterator[Launch]:
    """Return what starts a server beside all other extensions that are installed."""
    with launching(home, mongo_uri, {}) as start:
        yield start


@pytest.fixture
def launch_alone(home: Path, mongo_uri: str) -> Iterator[Launch]:
    """Return what starts a server without the other extensions."""
    with launching(home, mongo_uri, OTHERS) as start:
        yield start


@pytest.mark.slow
def test_a_kernel_finds_the_server_that_started_it_and_servers_leave_nothing_behind(
    launch: Launch, mongo_uri: str
) -> None:
    """Neither the one that is stopped, with the kernel that it started, nor the other, which is killed."""
    first, second = launch(), launch()
    first.ready()
    second.ready()
    _, kernel = second.ask("POST", "api/kernels", {"name": "python3"})
    connection = second.home / "runtime" / f"kernel-{kernel['id']}.json"
    client = BlockingKernelClient(connection_file=str(connection))
    client.load_connection_file()
    client.start_channels(hb=False)  # its beat stumbles on a busy machine, and the kernel would be called dead
    try:
        client.wait_for_ready(timeout=60)
        hide = "import os; os.environ.pop('SUPERDUPER_MONGODB__URI'); URI = " + repr(mongo_uri)
        assert said(client, hide + FIND) == [second.info()["url"], "True", "the server that started this kernel"]
        lost = "os.environ.pop('JPY_PARENT_PID')"
        assert said(client, lost + FIND) == [second.info()["url"], "True", "the running server that owns this kernel"]
    finally:
        client.stop_channels()
    stop(second)
    text = second.log.read_text()
    assert mongo_uri not in text
    assert "Traceback" not in text, text
    kill(first)


def stop(server: Running) -> None:
    """Stop a server in order; nothing of it is left."""
    family = server.family()
    assert len(family) > 1
    files = [server.home / "runtime" / f"{kind}-{server.process.pid}.json" for kind in ("superduper", "jpserver")]
    assert [file.exists() for file in files] == [True, True]
    server.process.send_signal(signal.SIGTERM)
    assert wait_for_end(family, timeout=30) == []
    assert [file.exists() for file in files] == [False, False]


def kill(server: Running) -> None:
    """Kill a server; no process of it is left either."""
    family = server.family()
    assert len(family) > 1
    server.process.kill()
    assert wait_for_end(family, timeout=30) == []


def said(client: BlockingKernelClient, code: str) -> list[str]:
    """Run code in the kernel and return the lines it printed."""
    printed: list[str] = []

    def note(message: dict[str, Any]) -> None:
        content = message["content"]
        assert message["msg_type"] != "error", "\n".join(content["traceback"])
        if message["msg_type"] == "stream":
            printed.append(content["text"])

    client.execute_interactive(code, output_hook=note, timeout=60)
    return "".join(printed).splitlines()


@pytest.mark.slow
def test_jupyter_superduper_refuses_a_wrong_file_before_anything_starts(home: Path, tmp_path: Path) -> None:
    (home / "config" / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": OTHERS}})
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"mongdb": {"uri": "mongodb://ana:s3cr3t@h/"}}))
    file.chmod(0o600)
    command = [*SUPERDUPER, "--config", str(file), "--allow-root", "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "mongdb" in done.stderr
    assert str(file) in done.stderr
    assert "s3cr3t" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def wrong_starts(mongo_uri: str, home: Path) -> dict[str, tuple[dict[str, str], str, str]]:
    """Return, for each way of not starting: environment, code of the answer, what its message must name."""
    host = mongo_uri.rpartition("@")[2].partition("/")[0]
    typo = home / "config.json"
    typo.write_text(json.dumps({"mongdb": {"password": "s3cr3t"}}))
    typo.chmod(0o600)
    return {
        "MongoDB is not there": (
            {"SUPERDUPER_MONGODB__URI": "mongodb://ana:s3cr3t@127.0.0.1:1/"},
            "mongodb_unavailable",
            "127.0.0.1:1",
        ),
        "MongoDB refuses the password": (
            {"SUPERDUPER_MONGODB__URI": f"mongodb://ana:s3cr3t@{host}/"},
            "mongodb_unavailable",
            host,
        ),
        "MongoDB needs a password": ({"SUPERDUPER_MONGODB__URI": f"mongodb://{host}/"}, "mongodb_unavailable", host),
        "a setting with a typo": ({"SUPERDUPER_CONFIG": str(typo)}, "config", "mongdb"),
    }


@pytest.mark.slow
def test_engines_that_do_not_start_leave_the_notebook_server_alive(
    launch_alone: Launch, mongo_uri: str, home: Path
) -> None:
    """A person has to look: requests get 424 with one line that says at what; the notebooks go on."""
    wrong = wrong_starts(mongo_uri, home)
    servers = {what: launch_alone(**environment) for what, (environment, _, _) in wrong.items()}
    for what, server in servers.items():
        _, expected, named = wrong[what]
        status = until(lambda server=server: (s := server.status())["state"] != "starting" and s, "it gave up")
        assert status["state"] == "failed", what
        code, body = server.ask("POST", "superduper/api/v1/search", {"database": "a", "collection": "b", "id": 1})
        assert (code, body["code"], body["message"]) == (424, expected, status["error"]), what
        assert named in body["message"], what
        assert "\n" not in body["message"], what
        assert server.ask("GET", "api/status")[0] == 200, what
        assert "s3cr3t" not in server.log.read_text() + json.dumps(status), what


def embed(text: str) -> np.ndarray:
    """Return a vector that depends on every letter of a text."""
    if text == "poison":
        raise ValueError("this text is poison")
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=16).astype(np.float32)


@pytest.fixture(scope="module")
def superduper(tmp_path_factory: pytest.TempPathFactory, mongo_uri: str) -> Iterator[Running]:
    """Return a server that was started by `jupyter superduper --config`, and share its Jupyter folders."""
    home = tmp_path_factory.mktemp("superduper")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("data", "runtime", "config"):
            (home / kind).mkdir(mode=0o700)
            patch.setenv(f"JUPYTER_{kind.upper()}_DIR", str(home / kind))
        file = home / "config.json"
        file.write_text(json.dumps({"mongodb": {"uri": mongo_uri}, "jobs": {"workers": 1}, "redis": {"port": 6379}}))
        file.chmod(0o600)
        with launching(home, mongo_uri, OTHERS) as start:
            unset = {"SUPERDUPER_MONGODB__URI": "", "SUPERDUPER_JOBS__WORKERS": ""}
            server = start(*SUPERDUPER, "--config", str(file), **unset)
            server.ready()
            yield server


@pytest.mark.slow
def test_jupyter_superduper_reads_the_clusters_file(superduper: Running, mongo_uri: str) -> None:
    host, port = mongo_uri.rpartition("@")[2].partition("/")[0].split(":")
    assert superduper.status()["components"]["mongodb"]["where"] == f"{host}:{port}"


@pytest.fixture
def shop(
    superduper: Running, mongo_uri: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Running, Any]]:
    """Return a real server, and a collection of a client that works through it, with an index and no documents."""
    monkeypatch.setenv("SUPERDUPER_MONGODB__URI", mongo_uri)
    with sd.connect(superduper.info()["url"], token=TOKEN) as client:
        docs = client[database.name]["products"]
        docs.create_model("embed", embed, type="vector")
        docs.create_semantic_index("meaning", models=["embed"], keys=["text"])
        yield superduper, docs


@pytest.mark.slow
def test_the_main_job_through_a_real_server(shop: tuple[Running, Any]) -> None:
    """Insert, outputs by Dask workers, search and prediction: each as brute force and the model itself have it."""
    server, docs = shop
    rows = [{"_id": i, "text": f"text {i}", "price": i % 100} for i in range(1500)]
    docs.insert_many(rows).jobs.wait(120)
    stored = {row["_id"]: row["_outputs"]["text"]["embed"] for row in docs.find()}
    assert stored.keys() == {row["_id"] for row in rows}
    for row in rows:
        np.testing.assert_array_equal(stored[row["_id"]], embed(row["text"]))
    for filter in ({}, {"price": {"$lt": 50}}, {"price": 7}, {"price": -1}):
        for word in ("text 7", "something else"):
            hits = list(docs.find(filter, like={"text": word}, n=10))
            expected = brute_force(rows, filter, word, 10)
            assert [hit["_id"] for hit in hits] == [id for id, _ in expected]
            np.testing.assert_allclose([hit["_score"] for hit in hits], [score for _, score in expected], rtol=1e-9)
    np.testing.assert_array_equal(docs.predict("embed", "a red scarf"), embed("a red scarf"))
    assert server.status()["components"]["jobs"]["workers"] == 1


def brute_force(rows: list[dict[str, Any]], filter: dict[str, Any], word: str, n: int) -> list[tuple[int, float]]:
    """Score every document that matches in float64; ties by identifier."""
    limit = filter.get("price", {"$lt": 1000})
    matches = [
        row for row in rows if (row["price"] < limit["$lt"] if isinstance(limit, dict) else row["price"] == limit)
    ]
    query = embed(word).astype(np.float64)
    scored = []
    for row in matches:
        vector = embed(row["text"]).astype(np.float64)
        scored.append((row["_id"], float(vector @ query / np.sqrt((vector @ vector) * (query @ query)))))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:n]


@pytest.mark.slow
def test_bad_input_over_http_and_in_the_client_says_what_to_do(shop: tuple[Running, Any]) -> None:
    server, docs = shop
    name = docs.database.name
    search = {"database": name, "collection": "products", "like": {"text": "x"}}

    def post(path: str, body: Any) -> tuple[int, str, str]:
        status, answer = server.ask("POST", f"superduper/api/v1/{path}", body)
        assert "Traceback" not in json.dumps(answer)
        return status, answer.get("code", ""), answer.get("message", "")

    assert server.ask("POST", "superduper/api/v1/search", search)[1]["ids"] == []  # an empty collection
    assert list(docs.find(like={"text": "x"})) == []
    status, code, message = post("search", {**search, "collection": "other"})
    assert (status, code) == (404, "not_found")
    assert "create_semantic_index" in message
    with pytest.raises(sd.SuperduperError, match="create_semantic_index"):
        list(docs.database["other"].find(like={"text": "x"}))
    status, code, message = post("search", {**search, "like": {"txt": "x"}})
    assert (status, code) == (400, "invalid_input")
    assert "'text'" in message
    status, code, message = post(f"models/{name}/embed/predict", {"inputs": ["poison"]})
    assert (status, code) == (422, "model")
    assert "this text is poison" in message
    with pytest.raises(sd.SuperduperError, match="this text is poison"):
        docs.predict("embed", "poison")
    jobs = docs.insert_many([{"_id": 1, "text": "poison"}, {"_id": 2, "text": "good"}]).jobs.wait(120)
    assert jobs["embed/text"].failures == {
        "count": 1,
        "first": [{"_id": 1, "error": "ValueError: this text is poison"}],
    }
    assert [hit["_id"] for hit in docs.find(like={"text": "good"})] == [2]
    _check_bad_searches(server, name)


def _check_bad_searches(server: Running, name: str) -> None:
    """Ask what no index can answer, alone and beside good searches: each gets its 400 or 404, and the index goes on."""
    where = {"database": name, "collection": "products", "semantic_index": "meaning"}
    good = [float(x) for x in embed("good")]
    long = "x" * 10_000_000
    bad: list[tuple[int, str, dict[str, Any]]] = [
        (400, "15 numbers, those of the index have 16", {"vector": good[:-1]}),
        (400, "17 numbers", {"vector": [*good, 0.0]}),
        (400, "NaN", {"vector": [float("nan"), *good[1:]]}),
        (400, "finite", {"vector": [{"$numberDouble": "NaN"}, *good[1:]]}),
        (400, "Infinity", {"vector": [float("inf"), *good[1:]]}),
        (400, "finite", {"vector": [1e300, *good[1:]]}),
        (400, "zero: it has no direction", {"vector": [0.0] * 16}),
        (400, "n: ", {"vector": good, "n": 0}),
        (400, "n: ", {"vector": good, "n": 10**9}),
        (400, "filter", {"vector": good, "filter": {"text": {"$regex": long}}}),
        (404, "'nope'", {"vector": good, "semantic_index": "nope"}),
        (404, "create_semantic_index", {"vector": good, "collection": "other", "semantic_index": None}),
        (404, "No vector of a document", {"id": 1}),  # its model failed: it has no output
    ]
    plain = {**where, "vector": good}
    with ThreadPoolExecutor(4) as pool:
        for status, message, body in bad:
            several = [{**where, **body}, plain, {**where, **body}, plain]
            answers = list(pool.map(lambda one: server.ask("POST", "superduper/api/v1/search", one), several))
            assert [answer[0] for answer in answers] == [status, 200, status, 200], (message, answers)
            assert message in answers[0][1]["message"]
            assert "Traceback" not in json.dumps(answers[0][1])
            assert [answer[1]["ids"] for answer in answers[1::2]] == [[2], [2]]
    wide = {**plain, "filter": {"text": {"$in": ["good", *(f"{i:099}" for i in range(100_000))]}}}
    assert server.ask("POST", "superduper/api/v1/search", wide)[1]["ids"] == [2]  # ten megabytes, and nothing bad in it
