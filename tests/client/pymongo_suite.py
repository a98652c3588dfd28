"""Run files of pymongo's own test suite, with our client in the place of `MongoClient` or without.

    python pymongo_suite.py plain|ours FOLDER RESULTS FILE...

`FOLDER` holds the folder ``test`` of pymongo's source distribution; ``DB_IP`` and ``DB_PORT`` say where MongoDB is. The
outcome of each test is written to `RESULTS`, as JSON. Run in a process of its own: it replaces a class of pymongo for
good.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest


class Recorder:
    """Notes how each test, and each of its subtests, ended."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            known = self.outcomes.get(report.nodeid)
            self.outcomes[report.nodeid] = known if known == "failed" else report.outcome


def substitute() -> None:
    """Put our client where the tests import `MongoClient` from."""
    import pymongo
    import pymongo.mongo_client
    import pymongo.synchronous.mongo_client

    import superduper_nb as sd

    sd.Client.__name__ = "MongoClient"  # some tests look at the name of the class
    for module in (pymongo, pymongo.mongo_client, pymongo.synchronous.mongo_client):
        module.MongoClient = sd.Client  # type: ignore[attr-defined]


def main(which: str, folder: str, results: str, *files: str) -> int:
    if which == "ours":
        substitute()
    sys.path.insert(0, folder)
    recorder = Recorder()
    options = ["--rootdir", folder, "-c", str(Path(folder, "empty.ini")), "-q", "--tb=short", "--timeout=120"]
    options += ["-p", "no:cacheprovider", "-p", "no:jupyter_server", "-p", "no:jupyter_core", "-p", "no:anyio"]
    status = pytest.main([*options, *(str(Path(folder, "test", file)) for file in files)], plugins=[recorder])
    Path(results).write_text(json.dumps(recorder.outcomes, indent=0, sort_keys=True))
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
