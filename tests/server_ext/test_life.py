"""Start, failed start, stop; what callers are told meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_core.paths import jupyter_runtime_dir

from superduper_nb.errors import ConfigError, MongoUnavailableError
from superduper_nb.server_ext import engine as engine_module
from superduper_nb.server_ext.app import SuperduperApp

SEARCH = {"database": "shop", "collection": "products", "like": {"text": "warm"}}


def runtime_file() -> Path:
    return Path(jupyter_runtime_dir()) / f"superduper-{os.getpid()}.json"


async def test_kernels_of_this_user_are_told_the_mongodb(running: SuperduperApp, start: SimpleNamespace) -> None:
    await running.engine.services(wait=5)
    info = json.loads(runtime_file().read_text())
    assert info.keys() == {"url", "pid", "instance", "version", "mongodb_uri"}
    assert info["mongodb_uri"] == start.services.mongo_uri
    assert stat.S_IMODE(runtime_file().stat().st_mode) == 0o600
    await running.stop_extension()
    assert not runtime_file().exists()
    assert start.services.closed
    assert running.engine.state == "stopped"


class TestSlowStart:
    @pytest.fixture
    def start(self) -> SimpleNamespace:
        return SimpleNamespace(error=None, gate=threading.Event(), services=None, times=0)

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {"ready_timeout": 0.05}

    async def test_callers_wait_briefly_and_are_told_to_come_back(
        self, running: SuperduperApp, ask: Any, start: SimpleNamespace
    ) -> None:
        assert (await ask("GET", "status")).body["state"] == "starting"
        answer = await ask("POST", "search", SEARCH)
        assert (answer.status, answer.body["code"]) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        running.ready_timeout = 20
        waiting = asyncio.ensure_future(ask("POST", "search", SEARCH))
        await asyncio.sleep(0)
        start.gate.set()
        assert (await waiting).status == 200

    async def test_a_stop_during_the_start_leaves_nothing(self, running: SuperduperApp, start: SimpleNamespace) -> None:
        stopping = asyncio.ensure_future(running.stop_extension())
        await asyncio.sleep(0)
        start.gate.set()
        await stopping
        assert start.services.closed
        assert not runtime_file().exists()


class TestFailedStart:
    @pytest.fixture
    def start(self, unavailable: MongoUnavailableError) -> SimpleNamespace:
        return SimpleNamespace(error=unavailable, gate=None, services=None, times=0)

    async def test_the_notebook_server_lives_and_status_says_why(
        self, running: SuperduperApp, ask: Any, jp_fetch: Any, start: SimpleNamespace
    ) -> None:
        answer = await ask("POST", "search", SEARCH)
        assert (answer.status, answer.body["code"]) == (424, "mongodb_unavailable")
        assert answer.body["message"] == str(start.error)
        assert "Retry-After" in answer.headers
        status = (await ask("GET", "status")).body
        assert (status["state"], status["error"]) == ("failed", str(start.error))
        assert (await jp_fetch("api/status")).code == 200
        assert not runtime_file().exists()

    async def test_it_is_tried_again_later(
        self, running: SuperduperApp, ask: Any, start: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert (await ask("POST", "search", SEARCH)).status == 424
        start.error = None
        assert (await ask("POST", "search", SEARCH)).status == 424  # not at every request
        assert start.times == 1
        monkeypatch.setattr(engine_module, "_AGAIN_AFTER_S", 0.0)
        assert (await ask("POST", "search", SEARCH)).status == 200
        assert start.times == 2

    async def test_a_wrong_setting_is_not_tried_again(
        self, running: SuperduperApp, ask: Any, start: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start.error = ConfigError("config.json: there is no setting 'mongdb'. Did you mean 'mongodb'?")
        monkeypatch.setattr(engine_module, "_AGAIN_AFTER_S", 0.0)
        await ask("POST", "search", SEARCH)
        times = start.times
        answer = await ask("POST", "search", SEARCH)
        assert (answer.status, answer.body["code"], start.times) == (424, "config", times)
        assert "Retry-After" not in answer.headers
        assert "mongdb" in answer.body["message"]

    async def test_a_surprise_keeps_its_text_in_the_log(
        self, running: SuperduperApp, ask: Any, start: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        start.error = OSError("mongodb://ana:s3cr3t@db.example is odd")
        monkeypatch.setattr(engine_module, "_AGAIN_AFTER_S", 0.0)
        answer = await ask("POST", "search", SEARCH)
        assert "OSError" in answer.body["message"]
        assert "s3cr3t" not in answer.raw.decode() + caplog.text
        assert "is odd" in caplog.text


class TestLimits:
    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {"search_threads": 2, "max_waiting": 1, "search_timeout": 20.0}

    async def test_beyond_the_limit_callers_are_sent_away_at_once(
        self, running: SuperduperApp, ask: Any, jp_fetch: Any, start: SimpleNamespace
    ) -> None:
        await running.engine.services(wait=5)
        start.services.hold = threading.Event()
        waiting = [asyncio.ensure_future(ask("POST", "search", SEARCH)) for _ in range(3)]
        while running.lanes["search"].busy < 3:
            await asyncio.sleep(0.01)
        answer = await ask("POST", "search", SEARCH)
        assert (answer.status, answer.body["code"]) == (429, "overloaded")
        assert int(answer.headers["Retry-After"]) > 0
        assert (await jp_fetch("api/status")).code == 200  # the loop is free,
        assert (await ask("GET", "models/shop")).status == 200  # and so are the other lanes
        assert running.current_activity() == {"search": 3}
        start.services.hold.set()
        assert [(await one).status for one in waiting] == [200] * 3
        assert running.lanes["search"].busy == 0
        assert running.current_activity() is None

    async def test_too_slow(self, running: SuperduperApp, ask: Any, start: SimpleNamespace) -> None:
        await running.engine.services(wait=5)
        running.lanes["search"]._timeout = 0.05
        start.services.hold = threading.Event()
        answer = await ask("POST", "search", SEARCH)
        assert (answer.status, answer.body["code"]) == (504, "deadline")
        assert running.lanes["search"].busy == 1  # the thread works on: its place is not given away
        start.services.hold.set()
        while running.lanes["search"].busy:
            await asyncio.sleep(0.01)

    async def test_work_of_clients_that_left_is_dropped(
        self, running: SuperduperApp, http_server_client: Any, jp_auth_header: Any, start: SimpleNamespace
    ) -> None:
        services: Any = await running.engine.services(wait=5)
        services.hold = threading.Event()
        body = json.dumps(SEARCH)
        head = f"POST /a%40b/superduper/api/v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        request = head + "".join(f"{k}: {v}\r\n" for k, v in jp_auth_header.items()) + "\r\n" + body
        writers = []
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", http_server_client.get_http_port())
            writer.write(request.encode())
            writers.append(writer)
        while len(services.calls) < 2 or running.lanes["search"].busy < 3:
            await asyncio.sleep(0.01)
        for writer in writers:
            writer.close()
        while running.lanes["search"].busy > 2:  # the one that waited is gone
            await asyncio.sleep(0.01)
        services.hold.set()
        while running.lanes["search"].busy:
            await asyncio.sleep(0.01)
        assert len(services.calls) == 2


async def test_jobs_that_report_are_activity(running: SuperduperApp) -> None:
    assert running.current_activity() is None
    running.events.publish({"type": "job", "state": "running"})
    assert running.current_activity() == {"jobs": 1}


class TestSettings:
    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {"cluster": {"mongodb": {"host": "db.example", "port": 27018}}}

    def test_traits_win(self, app: SuperduperApp, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUPERDUPER_MONGODB__HOST", "elsewhere")
        assert app.load_config().mongodb.where == "db.example:27018"


def test_every_trait_is_explained() -> None:
    for name, trait in SuperduperApp.class_own_traits(config=True).items():
        assert trait.help, name
