"""The panel of JupyterLab, the status page, Notebook 7: live, under an odd base URL, and readable by everybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import demo
from tests.lab.browsing import PANEL, SHOTS, THEMES, USE, Book, Lab, check, running_lab, violations
from tests.lab.notebooks import code_cells, new_notebook

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
    pytest.mark.parametrize("lab", ["/a%40b/"], indirect=True, scope="module"),
]
panel_built = pytest.mark.skipif(not PANEL.exists(), reason="the panel is not built: `make panel` does, with Node")

Open = Callable[..., Any]

SLOW = """
import pathlib, time

hold = pathlib.Path("hold").resolve()
hold.touch()

def slow(text):
    if hold.exists():
        time.sleep(0.15)
    return [float(len(text)), 1.0]

docs.create_model("slow", slow, type="vector", batch_size=2)
docs.create_watcher("slow", key="text")
docs.create_semantic_index("meaning", models=["slow"], keys=["text"]);
"""
INSERT = "result = docs.insert_many([{'text': 'x' * n} for n in range(1, 61)])\nresult.jobs"
FIND = '%%sddb find -n 3\n{"$like": {"text": "xxx"}, "text": {"$ne": ObjectId("5" * 24)}}  # a comment'
CANCELLED = "assert [job.status for job in result.jobs.values()] == ['cancelled']"


def positions(bar: Any, seconds: float = 60.0) -> Iterator[float]:
    """Yield where a progress bar is, each place once."""
    last, deadline = -1.0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = bar.evaluate("bar => bar.position")
        if now != last:
            last = now
            yield now
        time.sleep(0.1)
    raise AssertionError(f"the bar stands still at {last}")


def shoot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SHOTS / f"{name}.png"), animations="disabled")


@panel_built
def test_panel(open_notebook: Open) -> None:
    book = open_notebook("panel.ipynb", USE.format("panel"), SLOW, INSERT, CANCELLED, "result.jobs.wait(90);", FIND)
    page = book.page
    page.get_by_role("tab", name="superduper").click()
    panel = page.get_by_role("region", name="superduper")
    panel.get_by_role("status").filter(has_text="Ready").wait_for(timeout=60_000)
    for number in (0, 1, 2):
        book.run(number)
    row = panel.get_by_role("list", name="Jobs").get_by_role("listitem").filter(has_text="of 60")
    row.get_by_role("button", name="Cancel slow/text").wait_for()
    moving = positions(row.get_by_role("progressbar"))
    seen = [next(moving) for _ in range(4)]
    assert seen == sorted(seen)
    for theme in reversed(THEMES):
        book.theme(theme)
        shoot(page, f"panel-{theme.lower()}")
        assert violations(page, ".sddb-panel", ".jp-OutputArea") == []
    row.get_by_role("button", name="Cancel slow/text").click()
    row.get_by_text("⊘ cancelled").wait_for()
    book.run(3)
    (book.lab.work / "hold").unlink()
    row.get_by_role("button", name="Retry slow/text").press("Enter")
    book.run(4)
    row.get_by_text("✓ succeeded").or_(panel.get_by_text("✓ succeeded")).first.wait_for()
    book.run(5)
    indexes = panel.get_by_role("list", name="Indexes")
    indexes.get_by_text("60 vectors").wait_for()
    assert "ready" in indexes.inner_text()
    assert "slow" in panel.get_by_role("list", name="Models").inner_text()
    coloured(book.cell(5))
    for theme in reversed(THEMES):
        book.theme(theme)
        shoot(page, f"panel-after-{theme.lower()}")
        assert violations(page, ".sddb-panel", ".jp-OutputArea") == []
    check(book)


def coloured(cell: Any) -> None:
    """Check that a cell's words have the colours of what they are."""
    spans = cell.locator(".cm-line span").evaluate_all(
        "spans => spans.map(span => [span.textContent, getComputedStyle(span).color])"
    )
    colours = dict(spans)
    assert {"%%sddb", "find", "-n", "3", '"$like"', '"text"', '"xxx"', "ObjectId", "# a comment"} <= colours.keys()
    assert len({colours[word] for word in ("%%sddb", '"$like"', '"xxx"', "3", "# a comment")}) == 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_status_page(lab: Lab, browser: Any, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1000, "height": 700})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{lab.url}superduper?token={lab.token}")
    page.get_by_role("status").filter(has_text="Ready").wait_for(timeout=60_000)
    page.get_by_role("list", name="Components").get_by_text("linear algebra").wait_for()
    page.get_by_role("list", name="Jobs").get_by_text("slow/text").first.wait_for()
    assert page.get_by_role("link", name="Metrics").get_attribute("href") == "superduper/api/v1/metrics"
    shoot(page, f"status-page-{scheme}")
    assert violations(page, "html") == []
    assert complaints == []
    context.close()


FAKE = """async ([base, {status, jobs}]) => {
  const {Cluster} = await import(`${base}static/superduper/cluster.js`);
  const {View} = await import(`${base}static/superduper/view.js`);
  const asked = [], sockets = [];
  const answers = {
    status: {state: 'ready', version: '1', components: {mongodb: {state: 'running'}}},
    databases: {databases: ['shop']}, models: {models: []}, indexes: {indexes: []}, jobs: {jobs},
  };
  const server = {
    request: async path => (asked.push(path), new Response(JSON.stringify(answers[path.match(/^\\w+/)[0]]), {status})),
    socket: path => (sockets.push({path, close() {}}), sockets.at(-1)),
  };
  const cluster = new Cluster(server, () => view.update()), view = new View(cluster);
  document.body.replaceChildren(view.node);
  cluster.start();
  return window.fake = {cluster, view, asked, sockets};
}"""


@pytest.fixture
def page(lab: Lab, browser: Any) -> Iterator[Any]:
    """Return a page of the server in which our modules can be tried."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{lab.url}superduper?token={lab.token}")
    yield page
    context.close()


def test_a_thousand_jobs_are_a_hundred_rows_that_stay_where_they_are(lab: Lab, page: Any) -> None:
    progress = {"done": 1, "total": 9, "failed": 0}
    jobs = [{"_id": f"{n:05}", "name": f"job {n}", "state": "running", "progress": progress} for n in range(1000)]
    page.evaluate(f"async given => {{ await ({FAKE})(given) }}", ["/a%40b/", {"status": 200, "jobs": jobs}])
    rows = page.get_by_role("list", name="Jobs").get_by_role("listitem")
    rows.nth(99).wait_for()
    assert rows.count() == 100
    assert page.get_by_text("Older ones: %sddb jobs").is_visible()
    rows.nth(1).get_by_role("button").focus()
    page.evaluate("fake.cluster.hear({type: 'job', seq: 7, database: 'shop', job: '00998', state: 'running', done: 5})")
    rows.nth(1).get_by_text("5 of 9").wait_for()
    assert "◐ running" in rows.nth(1).inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Cancel job 998"
    assert page.evaluate("fake.sockets.map(socket => socket.path)") == ["events?since=-1"]
    page.evaluate("fake.sockets[0].onclose()")  # the connection is lost: it hears on from where it was
    page.evaluate("new Promise(done => setInterval(() => fake.sockets[1] && done(), 20))")
    assert page.evaluate("fake.sockets[1].path") == "events?since=7"
    assert page.evaluate("fake.cluster.pause") == 1000  # and waits longer each time


def test_a_server_without_the_extension_is_told_in_a_line(lab: Lab, page: Any) -> None:
    page.evaluate(f"async given => {{ await ({FAKE})(given) }}", ["/a%40b/", {"status": 404, "jobs": []}])
    page.get_by_role("status").filter(has_text="pip install superduper-nb").wait_for()
    assert page.get_by_role("list").count() == 0


def test_status_page_without_javascript(lab: Lab, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{lab.url}superduper?token={lab.token}")
    assert "%sddb status" in page.locator("main").inner_text()
    context.close()


@pytest.mark.drill
def test_notebook_7_runs_and_shows_the_quickstart(open_notebook: Open, browser: Any, tmp_path: Path) -> None:
    cells = code_cells(demo.NOTEBOOK.read_text("utf-8"))
    book = open_notebook(demo.NOTEBOOK.name, app="notebook")
    find = next(number for number, source in cells.items() if "%%sddb find" in source)
    for number in cells:
        book.run(number, 200.0)
        if number == find:
            break
    table = book.output(find).locator("table.sddb-table")
    assert "hot beverage" in table.get_by_role("row").nth(1).inner_text()
    for theme in reversed(THEMES):
        book.theme(theme)
        book.shoot("notebook-7", find, theme)
        assert violations(book.page, ".jp-OutputArea") == []
    assert without_us(browser, tmp_path) == set(NOTEBOOKS_OWN)
    book.complaints = [text for text in book.complaints if text not in NOTEBOOKS_OWN]
    check(book)


NOTEBOOKS_OWN = (
    "Cannot read properties of undefined (reading 'schema')",
    # JupyterLab's file browser, which is in Notebook 7 without its commands, restores its place by one: seen
    # without us, always where the address names a place, now and then where it names none.
    "Command 'filebrowser:open-path' not registered.",
)
"""What Notebook 7 complains of by itself, word for word."""


def without_us(browser: Any, home: Path) -> set[str]:
    """Return what Notebook 7 complains of where nothing of this package is there."""
    with running_lab(home, "/a%40b/", ours=False) as lab, browser.new_context() as context:
        (lab.work / "plain.ipynb").write_text(new_notebook("1 + 1"))
        book = Book(context.new_page(), lab)
        book.open("plain.ipynb", app="notebook")
        book.run(0)
        page = context.new_page()
        with page.expect_event("pageerror", lambda error: str(error) == NOTEBOOKS_OWN[1]) as told:
            page.goto(f"{lab.url}notebooks/plain.ipynb?token={lab.token}&file-browser-path=/")
        return {*book.complaints, str(told.value)}
