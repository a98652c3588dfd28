"""Typing in JupyterLab while jobs run, and a map of 100 000 points: ``python benchmarks/browser.py [documents]``.

In a real browser (Chromium, drawing in software), on the machine that also runs the server, MongoDB and the workers. A
lag is the time from a key's event to the end of the frame that shows it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.lab.browsing import Book, chromium, running_lab  # noqa: E402
from tests.lab.notebooks import new_notebook  # noqa: E402

SETUP = """
%load_ext superduper_nb
%sddb connect
%sddb use bench.typing --as docs
import zlib
import numpy as np

def words(text):
    vector = np.zeros(64, dtype=np.float32)
    for word in text.split():
        vector[zlib.crc32(word.encode()) % 64] += 1
    return vector

docs.create_model("words", words, type="vector")
docs.create_watcher("words", "text")
docs.create_semantic_index("meaning", ["words"], ["text"])
docs.insert_one({{"text": "the first"}}).jobs.wait(120)
rows = [
    {{"text": f"word{{i % 977}} word{{i % 89}} word{{i % 11}}", "kind": f"kind {{i % 7}}"}} for i in range({documents})
]
"""
INSERT = "result = docs.insert_many(rows)\nresult.jobs"

LAGS = """() => {
  window.lags = [];
  window.typed ??= document.addEventListener('keydown', () => {
    const pressed = performance.now();
    requestAnimationFrame(() => setTimeout(() => window.lags.push(performance.now() - pressed)));
  }, true) ?? true;
}"""
FRAMES = """seconds => new Promise(done => {
  const times = [], end = performance.now() + 1000 * seconds;
  const tick = now => { times.push(now); now < end ? requestAnimationFrame(tick) : done(times); };
  requestAnimationFrame(tick);
})"""
TEXT = "price = sum(row.get('price', 0) for row in rows)  # as one types "


def typed(book: Book, number: int, times: int = 3) -> list[float]:
    """Type into a cell as people do; return the lag of each key in milliseconds."""
    page = book.page
    book.cell(number).locator(".cm-content").click()
    page.evaluate(LAGS)
    for _ in range(times):
        page.keyboard.type(TEXT, delay=70)
        page.keyboard.press("Enter")
    lags: list[float] = page.evaluate("window.lags")
    return lags


def told(what: str, values: list[float]) -> None:
    """Print the middle, the 95th percentile and the worst of some milliseconds."""
    ordered = sorted(values)
    p95 = ordered[int(len(ordered) * 0.95)]
    print(
        f"  {what:<48} median {statistics.median(values):6.1f}  p95 {p95:6.1f}  worst {ordered[-1]:7.1f} ms", flush=True
    )


def of_typing(book: Book) -> None:
    """Measure typing with nothing at work, and while documents are processed."""
    told("typing, nothing at work", typed(book, 3))
    began = time.perf_counter()
    book.run(1, 300.0)
    print(f"  inserted in {time.perf_counter() - began:.1f} s", flush=True)
    busy: list[float] = []
    while "succeeded" not in book.output(1).inner_text() and len(busy) < 1000:
        busy += typed(book, 3, 1)
    told(f"typing, while they are processed ({len(busy)} keys)", busy)
    book.output(1).get_by_text("✓ succeeded").wait_for(timeout=600_000)
    print(f"  processed {time.perf_counter() - began:.1f} s after the insert began", flush=True)
    told("typing, afterwards", typed(book, 3))


def of_the_map(book: Book) -> None:
    """Measure how long the map takes, and its frames while it is moved."""
    began = time.perf_counter()
    book.run(2, 300.0)
    canvas = book.output(2).locator("canvas").first
    canvas.wait_for(timeout=120_000)
    print(f"  the map is there after {time.perf_counter() - began:.1f} s", flush=True)
    book.page.wait_for_timeout(3_000)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    book.page.mouse.move(x, y)
    book.page.mouse.down()
    book.page.evaluate(f"window.moved = ({FRAMES})(4); undefined")
    for step in range(120):
        book.page.mouse.move(x + 80 * (step % 20) / 20, y + step % 40)
    times = book.page.evaluate("window.moved")
    book.page.mouse.up()
    told("frames while the map is moved", [after - before for before, after in pairwise(times)])


def main() -> None:
    """Print a line for each figure."""
    documents = int(sys.argv[1]) if sys.argv[1:] else 100_000
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab, chromium() as browser:
        cells = SETUP.format(documents=documents), INSERT, "%sddb map --color kind", ""
        (lab.work / "typing.ipynb").write_text(new_notebook(*cells))
        book = Book(browser.new_context(viewport={"width": 1180, "height": 900}).new_page(), lab)
        book.open("typing.ipynb")
        book.run(0, 200.0)
        of_typing(book)
        of_the_map(book)
        print("  the console says:", book.complaints)


if __name__ == "__main__":
    main()
