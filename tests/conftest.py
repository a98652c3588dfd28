"""Fixtures of the whole suite: a real MongoDB, and a home of the test's own.

Property tests run the same 100 examples each time; ``SUPERDUPER_TEST_EXAMPLES=10000`` searches longer, and elsewhere.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from hypothesis import HealthCheck, settings
from pymongo import MongoClient
from pymongo.database import Database

from superduper_nb.cluster.ending import wait_for_end
from superduper_nb.cluster.mongod import Mongod, connect_options

EXAMPLES = os.environ.get("SUPERDUPER_TEST_EXAMPLES")
settings.register_profile(
    "tests",
    max_examples=int(EXAMPLES or 100),
    derandomize=EXAMPLES is None,
    deadline=None,  # a busy machine is no defect
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Spare who collects garbage, as a client does that lets models go, a look at all that was imported: 0.2 s each."""
    gc.collect()
    gc.freeze()


_ROOM = 2 * 2**30
"""Bytes in memory: each process of tests takes a third of a gigabyte."""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out of them."""
    for name in [name for name in os.environ if name.startswith("SUPERDUPER_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def _mongod_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder, in memory where there is room: each new collection and each index waits for a disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < _ROOM:
        yield tmp_path_factory.mktemp("mongodb")
        return
    for left in memory.glob("superduper-tests-*-*"):  # by a process that was killed
        if not psutil.pid_exists(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f"superduper-tests-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=memory, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def mongo_uri(_mongod_folder: Path) -> Iterator[str]:
    """URI, with credentials, of an embedded MongoDB that lives as long as the session."""
    with Mongod.attach(_mongod_folder, cache_gb=0.25) as mongod:
        with MongoClient[dict[str, Any]](mongod.uri) as client:
            # Who drops a database waits for the journal to be written, which is done every 100 ms.
            client.admin.command("setParameter", 1, journalCommitInterval=10)
        keeper = psutil.Process(mongod.status()["keeper"])
        yield mongod.uri
    wait_for_end([keeper], timeout=20)


@pytest.fixture(scope="session")
def _mongo_client(mongo_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri, **connect_options()) as client:
        yield client


@pytest.fixture
def database(_mongo_client: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    """Return a fresh database, dropped after the test."""
    name = f"test_{uuid4().hex[:12]}"
    yield _mongo_client[name]
    _mongo_client.drop_database(name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds Jupyter's data, runtime files and config for this test."""
    folder = tmp_path / "home"
    for kind in ("data", "runtime", "config"):
        (folder / kind).mkdir(mode=0o700, parents=True)
        monkeypatch.setenv(f"JUPYTER_{kind.upper()}_DIR", str(folder / kind))
    return folder
