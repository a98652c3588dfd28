from __future__ import annotations

from superduper_nb.widgets.status import Status


def test_facts_are_told_as_people_say_them() -> None:
    replica = {"state": "running", "pid": 7, "rss": 3 * 2**20}
    server = {
        "state": "running",
        "where": "this machine",
        "rss": 2000 * 2**20,
        "replicas": [replica, replica],
        "models": 1,
    }
    line = repr(Status({"components": {"model_server": server}})).splitlines()[-1]
    assert line.endswith("memory: 1.95 GiB, replicas: 2, models: 1")
    assert "model server" in line
    algebra = {"state": "running", "indexes": 2, "bytes": 5 * 2**20}
    assert repr(Status({"components": {"linear_algebra": algebra}})).endswith("indexes: 2, memory: 5 MiB")
