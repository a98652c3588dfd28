"""The quickstart, and hostile documents, as a reader of JupyterLab sees them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from scripts import demo
from tests.lab.notebooks import code_cells
from tests.widgets.payloads import foreign_parts

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
    for name, number in where.items():
        shoot(book, f"quickstart-{name}", number)
    check(book)


PLACES = {
    "connect": "%sddb connect",
    "registered": "create_semantic_index(",
    "progress": "insert_many(",
    "find": "%%sddb find",
    "frame": "hits.to_pandas()",
    "status": "%sddb status",
}

HOSTILE = """
from tests.widgets.payloads import PAYLOADS
docs.delete_many({})
docs.insert_many([{"name": text, text.replace("$", "").replace("\\0", "") or "x": {"deep": [text]}} for text in PAYLOADS]);
"""


@pytest.mark.skip(reason="later")
def test_documents_run_no_script(open_notebook: Open) -> None:
    assert foreign_parts
