"""The log of events, and how it reaches those who listen."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from superduper_nb.server_ext.events import EventLog


def event(n: int) -> dict[str, Any]:
    return {"type": "job", "job": str(n)}


def jobs(page: Any) -> list[str]:
    return [event["job"] for event in page.events]


def test_events_are_numbered_and_read_in_pages() -> None:
    log = EventLog()
    assert log.since(0).events == []
    for n in range(1500):
        log.publish(event(n))
    first = log.since(0)
    rest = log.since(first.next)
    assert jobs(first) + jobs(rest) == [str(n) for n in range(1500)]
    assert [e["seq"] for e in first.events] == list(range(1, 1001))
    assert not first.missed
    assert not rest.missed
    assert log.since(rest.next).events == []
    assert log.since(rest.next).next == 1500


def test_it_is_bounded_and_says_what_was_missed() -> None:
    log = EventLog(kept=3)
    for n in range(10):
        log.publish(event(n))
    assert jobs(log.since(0)) == ["7", "8", "9"]
    assert log.since(6).missed
    assert not log.since(7).missed
    assert jobs(log.since(8)) == ["8", "9"]


def test_a_reader_from_before_a_restart_starts_anew() -> None:
    log = EventLog()
    log.publish(event(0))
    page = log.since(500)
    assert (page.missed, jobs(page), page.next) == (True, ["0"], 1)


def test_many_threads() -> None:
    log = EventLog(kept=10_000)
    woken: list[int] = []
    end = log.listen(lambda: woken.append(1))
    threads = [threading.Thread(target=lambda: [log.publish(event(n)) for n in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end()
    log.publish(event(0))
    seen, since = [], 0
    while page := log.since(since).events:
        seen += [e["seq"] for e in page]
        since = seen[-1]
    assert seen == list(range(1, 4002))
    assert len(woken) == 4000


async def test_events_by_get(running: Any, ask: Any) -> None:
    running.events.publish(event(1))
    running.events.publish(event(2))
    page = (await ask("GET", "events", params={"since": "1"})).body
    assert [e["job"] for e in page["events"]] == ["2"]
    assert (page["next"], page["missed"]) == (2, False)


async def test_events_by_websocket(running: Any, jp_ws_fetch: Any) -> None:
    running.events.publish(event(0))
    socket = await jp_ws_fetch("superduper/api/v1/events", params={"since": "0"})
    first = json.loads(await socket.read_message())
    assert (first["seq"], first["job"]) == (1, "0")
    publisher = threading.Thread(target=lambda: [running.events.publish(event(n)) for n in range(1, 101)])
    publisher.start()
    got = [json.loads(await socket.read_message()) for _ in range(100)]
    publisher.join()
    assert [e["seq"] for e in got] == list(range(2, 102))
    socket.close()
    while running.events._listeners:  # nobody is left listening
        await asyncio.sleep(0.01)


async def test_a_websocket_with_bad_parameters(running: Any, jp_ws_fetch: Any) -> None:
    with pytest.raises(HTTPClientError, match="400"):
        await jp_ws_fetch("superduper/api/v1/events", params={"since": "x"})


async def test_a_websocket_from_another_site(running: Any, jp_ws_fetch: Any, jp_auth_header: Any, ask: Any) -> None:
    answer = await ask("GET", "status")
    cookie = "; ".join(value.partition(";")[0] for value in answer.headers.get_list("Set-Cookie"))
    headers = {"Authorization": "", "Cookie": cookie, "Origin": "http://evil.example"}
    with pytest.raises(HTTPClientError) as refused:
        await jp_ws_fetch("superduper/api/v1/events", headers=headers)
    assert refused.value.code in (403, 404)
