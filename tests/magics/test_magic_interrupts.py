"""The stop button, in a real kernel: one line, and the kernel goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from superduper_nb.jobs import JobStore

SETUP = """
%load_ext superduper_nb
%sddb connect --local
%sddb use {database}.texts --as docs
import pathlib, time

def slow(text):
    if text == "slow":
        pathlib.Path({begun!r}).touch()
        time.sleep(600)
    return [float(len(text)), 1.0]

docs.create_model("slow", slow, type="vector")
docs.create_watcher("slow", "text")
docs.create_semantic_index("meaning", ["slow"], ["text"])
docs.insert_one({{"text": "quick"}});
"""


STOPPED = {
    '%%sddb find\n{"$like": {"text": "slow"}}': "search",
    "list(docs.find({}, like={'text': 'slow'}))": "search",
    '%%sddb predict slow\n"slow"': "prediction",
    "docs.predict('slow', 'slow')": "prediction",
}
"""Magics and their Python twins, and what was stopped where stop is pressed."""


class Kernel:
    """A kernel, and its stop button."""

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager, self._client = manager, client

    def run(self, cell: str) -> list[dict[str, Any]]:
        """Run a cell to its end; return its outputs."""
        return self._ended(self._client.execute(cell))

    def stopped(self, cell: str, begun: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Run a cell, and press stop when it has begun, which its last message may tell."""
        asked = self._client.execute(cell)
        seen: list[dict[str, Any]] = []
        while not begun(seen[-1] if seen else {}):
            seen += self._more(0.05)
        self._manager.interrupt_kernel()
        return [*seen, *self._ended(asked)]

    def _more(self, seconds: float) -> list[dict[str, Any]]:
        try:
            return [self._client.get_iopub_msg(timeout=seconds)]
        except Empty:
            return []

    def _ended(self, asked: str) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        while not (
            seen
            and seen[-1]["content"].get("execution_state") == "idle"
            and seen[-1]["parent_header"]["msg_id"] == asked
        ):
            seen += self._more(60) or pytest.fail(f"the cell does not end: {seen}")
        return seen


@pytest.fixture
def kernel(home: Path, mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Return a kernel that finds the test's MongoDB."""
    monkeypatch.setenv("SUPERDUPER_MONGODB__URI", mongo_uri)
    monkeypatch.setenv("IPYTHONDIR", str(home))
    manager, client = start_new_kernel(kernel_name="python3")
    yield Kernel(manager, client)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def errors(messages: list[dict[str, Any]]) -> list[str]:
    """Return the errors among messages, as they are shown."""
    return ["\n".join(each["content"]["traceback"]) for each in messages if each["msg_type"] == "error"]


def test_stop_ends_what_runs_in_one_line_and_the_kernel_goes_on(kernel: Kernel, database: Any, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    assert errors(kernel.run(SETUP.format(database=database.name, begun=str(mark)))) == []

    def at_work(_: dict[str, Any]) -> bool:
        return mark.exists()

    for cell, what in STOPPED.items():
        mark.unlink(missing_ok=True)
        assert errors(kernel.stopped(cell, at_work)) == [f"Interrupted: The {what} was stopped."]

    mark.unlink()
    (told,) = errors(kernel.stopped('docs.insert_many([{"text": "slow"}])', at_work))
    (job,) = database["_sddb.jobs"].find({"state": "cancelled"})
    assert told.startswith(f"Interrupted: job {job['_id']} (slow/text) is cancelled; what it has written stays")
    assert database["texts"].count_documents({}) == 2

    JobStore(database).retry(job["_id"])
    JobStore(database).claim(job["_id"], "a worker elsewhere")

    def shown(message: dict[str, Any]) -> bool:
        return message.get("msg_type") == "display_data"

    def waits(message: dict[str, Any]) -> bool:
        return "waits" in message.get("content", {}).get("text", "")

    python = f"import threading\nthreading.Timer(0.2, print, ['waits']).start()\ndocs.jobs[{job['_id']!r}].wait()"
    for cell, begun in (("%sddb wait", shown), (python, waits)):
        (told,) = errors(kernel.stopped(cell, begun))
        assert told == f"Interrupted: job {job['_id']} goes on; docs.jobs['{job['_id']}'].cancel() stops it."
    assert JobStore(database).get(job["_id"])["state"] == "running"

    assert errors(kernel.run("assert len(docs.find({}, like={'text': 'quick'}).to_list()) == 1")) == []
