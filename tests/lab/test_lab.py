"""The quickstart, hostile documents, jobs and whatever can be clicked, as a reader of JupyterLab sees them.

In one module, so that all of it has one JupyterLab.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from scripts import demo
from tests.lab.browsing import SHOTS, THEMES, USE, check, shoot, violations
from tests.lab.notebooks import code_cells
from tests.widgets.payloads import PAYLOADS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

Open = Callable[..., Any]


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


CORPUS = """
import numpy as np, zlib

def words(text):
    vector = np.zeros(1024, dtype=np.float32)
    for word in text.split():
        vector[zlib.crc32(word.encode()) % 1024] += 1
    return vector

things, stuffs = ("scarf", "coat", "hat", "glove", "sock"), ("wool", "linen", "silk", "straw", "felt", "denim")
rows = [
    {"text": f"{tone} {stuff} {thing}", "stuff": stuff, "price": 10 + 7 * n % 90}
    for n, (thing, stuff, tone) in enumerate(
        (thing, stuff, tone) for thing in things for stuff in stuffs for tone in ("red", "blue", "grey", "green")
    )
]
docs.create_model("words", words, type="vector")
docs.create_watcher("words", "text")
docs.create_semantic_index("meaning", ["words"], ["text"])
docs.insert_many(rows).jobs.wait(120);

from PIL import Image
from superduper_nb.documents import AudioClip

tone = np.sin(np.arange(12_000) / 8_000 * 2 * np.pi * 440).astype(np.float32)
shades = [Image.new("RGB", (320, 200), shade) for shade in ("teal", "salmon")]
media = [{"name": "a shade", "picture": shade} for shade in shades]
media.append({"name": "a tone", "sound": AudioClip(tone, 8_000)})
media.append({"name": "a film", "film": bytes(4) + b"ftypisom" + bytes(1_000)})
docs.database["media"].insert_many(media);
"""


def test_more_like_this_a_lasso_and_completion(open_notebook: Callable[..., Any]) -> None:
    book = open_notebook(
        "around.ipynb",
        USE.format("around"),
        CORPUS,
        '%%sddb explore -n 8 -o seen\n{"$like": {"text": "wool scarf"}}',
        "%sddb map --color stuff -o chart",
        "print(seen.query)\nprint(len(chart.selected), len(list(docs.find(chart.filter))))",
        "%sddb status --live",
        "%sddb jobs --live",
        "%%sddb find --in lab.media --as gallery\n{}",
        '%%sddb find --explain\n{"price": {"$lt": 50}, "$like": {"text": "wool scarf"}}',
        "%%sddb find\n",
    )
    for number in range(3):
        book.run(number)
    explorer = book.output(2)
    cards = explorer.locator("ul.sddb-explore > li")
    cards.nth(7).wait_for(timeout=30_000)
    before = cards.all_inner_texts()
    explorer.get_by_role("button", name="More like number 8").click()
    explorer.get_by_role("button", name="Less like number 1").first.wait_for()
    explorer.locator("ul.sddb-chosen li.sddb-is-more").wait_for(timeout=20_000)
    explorer.get_by_role("button", name="Less like number 1", exact=True).click()
    explorer.locator("ul.sddb-chosen li.sddb-is-less").wait_for(timeout=20_000)
    assert cards.all_inner_texts() != before
    explorer.get_by_label("Filter").fill("{price: {$lt: 50}}")
    explorer.get_by_label("Show").fill("5")
    explorer.get_by_role("button", name="Apply").click()
    cards.nth(5).wait_for(state="detached", timeout=20_000)
    assert cards.count() == 5
    shoot(book, "explore", 2)
    book.run(3)
    canvas = book.output(3).locator("canvas").first
    canvas.wait_for(timeout=60_000)
    book.theme("Dark")
    wait_for_shade(canvas, dark=True)
    book.theme("Light")
    wait_for_shade(canvas, dark=False)
    hover(book.page, canvas)
    book.output(3).get_by_text(re.compile(r"^(\w+) · \w+ \1 \w+$")).wait_for(timeout=20_000)
    book.shoot("map-hover", 3)
    book.output(3).locator("button").nth(1).click()
    lasso(book.page, canvas)
    shoot(book, "map", 3)
    book.run(4)
    query, counted = book.output(4).inner_text().strip().splitlines()[:2]
    assert query.startswith("docs.find({'price': {'$lt': 50}}, like=[{'text': 'wool scarf'}, {'_id': ObjectId(")
    assert "unlike={'_id': ObjectId(" in query
    chosen, found = map(int, counted.split())
    assert chosen == found > 20
    book.run(5)
    live = book.output(5)
    live.get_by_role("button", name="Stop following").click()
    live.get_by_role("button", name="Stop following").wait_for(state="detached", timeout=20_000)
    assert "running" in live.inner_text()
    for number in (6, 7, 8):
        book.run(number)
    media = book.output(7)
    assert media.locator("audio").evaluate(LENGTH) == pytest.approx(1.5, abs=0.01)
    assert media.get_by_role("img", name="picture of row 1").is_visible()
    assert book.output(6).get_by_role("rowheader").or_(book.output(6).get_by_role("row")).count() > 1
    for theme in reversed(THEMES):
        book.theme(theme)
        for name, number in {"jobs-live": 6, "media": 7, "explain": 8, "status-live": 5}.items():
            book.shoot(name, number, theme)
        assert violations(book.page, ".jp-OutputArea") == []
    book.output(6).get_by_role("button", name="Stop following").click()
    book.output(6).get_by_role("button", name="Stop following").wait_for(state="detached", timeout=20_000)
    book.cell(9).locator(".cm-content").click()
    book.page.keyboard.press("Control+End")
    book.page.keyboard.type("{price: {$l")
    book.page.keyboard.press("Tab")
    popup = book.page.locator(".jp-Completer")
    popup.get_by_text("$lte").wait_for(timeout=20_000)
    assert popup.locator(".jp-Completer-match").all_inner_texts() == ["$like", "$lt", "$lte"]
    book.page.screenshot(path=str(SHOTS / "completion-light.png"))
    check(book)


LENGTH = """audio => new Promise(done => {
  if (audio.readyState) done(audio.duration);
  else audio.addEventListener('loadedmetadata', () => done(audio.duration));
})"""


def wait_for_shade(canvas: Any, *, dark: bool) -> None:
    """Wait until a map is drawn on the page's own background."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        corner = Image.open(BytesIO(canvas.screenshot())).convert("L").getpixel((400, 430))
        if (corner < 60) if dark else (corner > 200):
            return
        time.sleep(0.1)
    raise AssertionError(f"the map's background is {corner} of 255")


def hover(page: Any, canvas: Any) -> None:
    """Point at a document: somewhere right of the legend where the map is not empty."""
    picture = Image.open(BytesIO(canvas.screenshot())).convert("L")
    places = ((x, y) for y in range(picture.height) for x in range(200, picture.width))
    x, y = next(place for place in places if picture.getpixel(place) < 200)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + x - 30, box["y"] + y + 30)
    page.mouse.move(box["x"] + x + 2, box["y"] + y + 3, steps=8)


def lasso(page: Any, canvas: Any) -> None:
    """Draw a lasso around all points."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    at = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in AROUND]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=12)
    page.mouse.up()
    page.wait_for_timeout(600)  # the selection is on its way to the kernel, and nothing in the page tells when


AROUND = ((0.2, 0.02), (0.97, 0.02), (0.97, 0.97), (0.2, 0.97), (0.2, 0.03))
