"""The quickstart, and hostile documents, as a reader of JupyterLab sees them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from scripts import demo
from tests.lab.notebooks import code_cells
from tests.widgets.payloads import PAYLOADS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

Open = Callable[..., Any]
THEMES = ("Light", "Dark")
HARMLESS = ("favicon",)


def moves(book: Any, number: int, seconds: float = 150.0) -> list[float]:
    """Return what the progress bar of a cell showed, one after another, until its job is done."""
    seen: list[float] = []
    deadline = time.monotonic() + seconds
    output = book.output(number)
    while "succeeded" not in output.inner_text():
        assert time.monotonic() < deadline, output.inner_text()
        bars = output.locator("progress.sddb-bar").evaluate_all("bars => bars.map(bar => bar.position)")
        if bars and bars[0] not in seen:
            seen.append(bars[0])
            if len(seen) == 3:
                shoot(book, "progress", number)
        time.sleep(0.1)
    return seen


def shoot(book: Any, name: str, number: int) -> None:
    for theme in reversed(THEMES):
        book.theme(theme)
        book.shoot(name, number, theme)


def check(book: Any) -> None:
    """Check that nothing went wrong in the page."""
    complaints = [text for text in book.complaints if not any(word in text for word in HARMLESS)]
    assert complaints == []


def test_the_quickstart_cell_by_cell(open_notebook: Open) -> None:
    cells = code_cells(demo.NOTEBOOK.read_text("utf-8"))
    book = open_notebook(demo.NOTEBOOK.name)
    where = {name: next(n for n, source in cells.items() if text in source) for name, text in PLACES.items()}
    bars: list[float] = []
    for number, source in cells.items():
        book.start(number)
        if number == where["progress"]:
            bars = moves(book, number)
        book.finish(number, 200.0)
        if ".close()" in source:
            break
    assert len(bars) > 3
    assert bars == sorted(bars)
    assert "succeeded" in book.output(where["progress"]).inner_text()
    table = book.output(where["find"]).locator("table.sddb-table")
    assert table.get_by_role("columnheader").first.inner_text() == "#"
    assert "hot beverage" in table.get_by_role("row").nth(1).inner_text()
    assert table.get_by_role("row").count() == 7
    assert "6 documents · index meaning" in book.output(where["find"]).inner_text()
    status = book.output(where["status"]).inner_text()
    assert all(word in status for word in ("mongodb", "running", "jobs", "linear algebra", "model server"))
    assert book.output(where["find"]).locator("script, iframe, object, embed").count() == 0
    shown = json.dumps([book.outputs(number) for number in cells])
    assert book.lab.token not in shown
    assert "mongodb://" not in shown
    for theme in reversed(THEMES):
        book.theme(theme)
        for name, number in where.items():
            book.shoot(f"quickstart-{name}", number, theme)
    check(book)


PLACES = {
    "connect": "%sddb connect",
    "registered": "create_semantic_index(",
    "progress": "insert_many(",
    "find": "%%sddb find",
    "frame": "hits.to_pandas()",
    "status": "%sddb status",
}

USE = "%load_ext superduper_nb\n%sddb connect\n%sddb use lab.{} --as docs"


def storable(text: str) -> bool:
    """Tell whether MongoDB takes a text as value and as name of a field."""
    return "\0" not in text and not text.startswith("$") and text.isprintable() and len(text) < 10_000


def test_documents_run_no_script(open_notebook: Open) -> None:
    hostile = [text for text in PAYLOADS if storable(text)]
    assert len(hostile) > 25
    rows = [{"name": text, "deep": [{"value": text}], text.replace(".", ""): 1} for text in hostile]
    book = open_notebook(
        "hostile.ipynb",
        USE.format("hostile"),
        f"docs.insert_many({rows!r})",
        "%sddb find -n 0",
        "%sddb find -n 0 --as gallery",
        "%sddb find_one",
        "%sddb distinct name",
        "%sddb find -n 0 --as json",
        "%sddb describe",
    )
    before = book.page.evaluate("document.querySelectorAll('script, iframe, object, embed, form, base').length")
    for number in range(8):
        book.run(number)
    for theme in THEMES:
        book.theme(theme)
    book.shoot("hostile", 4, "Dark")
    assert book.output(2).locator("table.sddb-table").count() == 1
    after = book.page.evaluate("document.querySelectorAll('script, iframe, object, embed, form, base').length")
    assert after == before
    assert book.page.evaluate("window.pwned === undefined")
    for number in range(2, 8):
        assert book.output(number).locator(".jp-RenderedHTMLCommon").locator(FOREIGN).count() == 0
    check(book)


FOREIGN = "script, iframe, object, embed, form, base, svg, a[href], [onerror], [onload]"

SLOW = """
import pathlib, time

hold = pathlib.Path("hold").resolve()
hold.touch()

def slow(text):
    if hold.exists():
        time.sleep(0.3)
    return [float(len(text))]

docs.create_model("slow", slow, type="vector")
docs.create_watcher("slow", key="text");
"""


def test_a_job_is_cancelled_by_its_button_while_a_cell_waits_for_it_and_retried(open_notebook: Open) -> None:
    book = open_notebook(
        "cancel.ipynb",
        USE.format("cancel"),
        SLOW,
        "result = docs.insert_many([{'text': 'x' * n} for n in range(1, 151)])\nresult.jobs",
        "result.jobs.wait()",
        "result.jobs.wait(90)\nassert docs.count_documents({'_outputs.text.slow': {'$exists': True}}) == 150",
    )
    for number in range(3):
        book.run(number)
    book.start(3)
    progress = book.output(2)
    progress.get_by_text("◐ running").wait_for(timeout=60_000)
    shoot(book, "cancel-offered", 2)
    progress.get_by_role("button", name="Cancel").click()
    progress.get_by_text("⊘ cancelled").wait_for(timeout=20_000)
    book.output(3).get_by_text("JobCancelledError").wait_for(timeout=20_000)
    shoot(book, "retry-offered", 2)
    (book.lab.work / "hold").unlink()
    progress.get_by_role("button", name="Retry").click()
    progress.get_by_text("✓ succeeded").wait_for(timeout=90_000)
    assert progress.get_by_role("button", name="Retry").count() == 0
    book.run(4)
    check(book)
