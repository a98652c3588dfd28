"""What passes with pymongo passes with our client: pymongo's own tests, counted with both in one run.

The tests come from pymongo's source distribution of the installed version, kept below ``build/``; without a package
index to get it from, this is skipped.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pymongo
import pytest

from superduper_nb.cluster.mongod import find_binary

FILES = [f"test_{name}.py" for name in ("collection", "cursor", "database", "bulk", "client", "crud_unified")]
BUILD = Path(__file__).parents[2] / "build"

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def suite() -> Path:
    """Return the folder that holds pymongo's folder ``test``."""
    folder = BUILD / f"pymongo-{pymongo.version}-tests"
    if not (folder / "empty.ini").exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        got = subprocess.run([*download, "-d", str(folder), f"pymongo=={pymongo.version}"], check=False, timeout=600)
        if got.returncode:
            pytest.skip("pymongo's source distribution can't be had here")
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            top = archive.getnames()[0].split("/")[0]
            members = [member for member in archive if member.name.startswith(f"{top}/test/")]
            for member in members:  # beside its own pymongo, which is not what is to be tested
                member.name = member.name.removeprefix(f"{top}/")
            archive.extractall(folder, members, filter="data")
        (folder / "empty.ini").write_text("[pytest]\n")
    return folder


@contextmanager
def mongod(folder: Path) -> Iterator[int]:
    """Run a replica set of one as pymongo's tests want it: no login, scripts, and the commands that make errors."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--dbpath", str(folder), "--port", str(port), "--bind_ip", "127.0.0.1", "--replSet", "rs", "--quiet"]
    parameters = ["--setParameter", "enableTestCommands=1", "--setParameter", "diagnosticDataCollectionEnabled=0"]
    small = ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--logpath", str(folder / "log")]
    with subprocess.Popen([find_binary(), *options, *parameters, *small], stdout=subprocess.DEVNULL) as process:
        try:
            with pymongo.MongoClient("127.0.0.1", port, directConnection=True) as client:
                members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
                client.admin.command("replSetInitiate", {"_id": "rs", "members": members})
            with pymongo.MongoClient("127.0.0.1", port, replicaSet="rs") as client:
                client.admin.command("ping")  # waits for the primary
            yield port
        finally:
            process.terminate()


def start(which: str, suite: Path, port: int, results: Path, files: list[str]) -> subprocess.Popen[bytes]:
    runner = Path(__file__).with_name("pymongo_suite.py")
    command = [sys.executable, str(runner), which, str(suite), str(results), *files]
    environment = {**os.environ, "DB_IP": "127.0.0.1", "DB_PORT": str(port)}
    return subprocess.Popen(command, env=environment, cwd=suite, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def passed(results: Path) -> set[str]:
    return {test for test, outcome in json.loads(results.read_text()).items() if outcome == "passed"}


def test_what_passes_with_pymongo_passes_with_ours(suite: Path, tmp_path: Path) -> None:
    which = ("plain", "ours")
    results = {name: tmp_path / f"{name}.json" for name in which}
    with ExitStack() as stack:
        ports = {name: stack.enter_context(mongod(tmp_path / name)) for name in which}
        runs = [stack.enter_context(start(name, suite, ports[name], results[name], FILES)) for name in which]
        for run in runs:
            run.wait()
        plain, ours = (passed(results[name]) for name in which)
        lost = plain - ours
        if lost:  # some of them depend on the time that things take: once more, alone
            again = tmp_path / "again.json"
            tests = [test.removeprefix("test/") for test in sorted(lost)]
            stack.enter_context(start("ours", suite, ports["ours"], again, tests)).wait()
            lost -= passed(again)
    print(
        f"\npymongo {pymongo.version}: {len(plain)} tests pass with pymongo, {len(plain) - len(lost)} of them with ours"
    )
    assert len(plain) > 500
    assert not lost
