"""More like this, a lasso on the map, completion and live views, by clicks and keys in JupyterLab."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.lab.browsing import SHOTS, violations
from tests.lab.test_lab import THEMES, USE, check, shoot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

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
    book.page.screenshot(path=str(SHOTS / "completion-dark.png"))
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
