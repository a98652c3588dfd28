"""Typing in JupyterLab while jobs run, a map of 100 000 points: ``python benchmarks/browser.py [documents] [what]``.

In a real browser (Chromium, drawing in software), on the machine that also runs the server, MongoDB and the workers. A
lag is the time from when the browser got a key to the end of the frame that shows it. `what` is `typing` or `map`;
default: both. Typing goes in rounds of all conditions, so that what the machine does meanwhile falls on each of them:

- at rest;
- beside two loops of plain Python: the control, what any work on all cores costs;
- documents are processed, and nothing of it is shown;
- the same, with its progress below the cell;
- the same, with the panel open as well;
- the same, with the workers at niceness 10.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, pairwise
from pathlib import Path
from urllib.request import Request, urlopen

import psutil

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

def made():
    texts = (f"word{{i % 977}} word{{i % 89}} word{{i % 11}}" for i in range({documents}))
    return [{{"text": text, "kind": f"kind {{i % 7}}"}} for i, text in enumerate(texts)]
"""
INSERT = "result = docs.insert_many(made())"
CELLS = ("%sddb map --color kind", INSERT, f"{INSERT}\nresult.jobs", "")
MAP, UNSEEN, SEEN, TYPED = range(1, 5)
ROUNDS = 3
BUSY = "while True: pass"

LAGS = """() => {
  window.lags = [];
  window.typed ??= document.addEventListener('keydown', event => {
    requestAnimationFrame(() => setTimeout(() => window.lags.push(performance.now() - event.timeStamp)));
  }, true) ?? true;
}"""
FRAMES = """seconds => new Promise(done => {
  const times = [], end = performance.now() + 1000 * seconds;
  const tick = now => { times.push(now); now < end ? requestAnimationFrame(tick) : done(times); };
  requestAnimationFrame(tick);
})"""
TEXT = "price = sum(row.get('price', 0) for row in rows)  # as one types\n"
PIECES = [TEXT[at : at + 11] for at in range(0, len(TEXT), 11)]


def typed(book: Book, text: str = TEXT) -> list[float]:
    """Type into a cell as people do; return the lag of each key in milliseconds."""
    page = book.page
    book.cell(TYPED).locator(".cm-content").click()
    page.keyboard.press("Control+End")
    page.evaluate(LAGS)
    page.keyboard.type(text, delay=70)
    lags: list[float] = page.evaluate("window.lags")
    return lags


def told(what: str, values: list[float]) -> None:
    """Print the middle, the 95th percentile and the worst of some milliseconds."""
    ordered = sorted(values)
    p95 = ordered[int(len(ordered) * 0.95)]
    middle = statistics.median(values)
    print(f"  {what:<58} median {middle:5.1f}  p95 {p95:5.1f}  worst {ordered[-1]:6.1f} ms", flush=True)


def beside_others(book: Book) -> list[float]:
    """Type beside two processes that have nothing to do with us."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
    try:
        return typed(book)
    finally:
        for other in others:
            other.kill()
            other.wait()


def working(book: Book) -> bool:
    """Tell whether a job is still to be done."""
    for status in ("running", "pending"):
        url = f"{book.lab.url}superduper/api/v1/jobs?db=bench&status={status}"
        with urlopen(Request(url, headers={"Authorization": f"token {book.lab.token}"})) as reply:
            if json.load(reply)["jobs"]:
                return True
    return False


def beside_jobs(book: Book, cell: int) -> tuple[list[float], float]:
    """Type while documents are processed; return the lags, and the seconds that it took."""
    began = time.perf_counter()
    book.run(cell, 300.0)
    lags: list[float] = []
    pieces = cycle(PIECES)
    while working(book):
        lags += typed(book, next(pieces))
    return lags, time.perf_counter() - began


def workers() -> list[psutil.Process]:
    """Return the processes in which jobs run: those that Dask forked."""
    return [each for each in psutil.Process().children(recursive=True) if "forkserver" in " ".join(each.cmdline())]


def niced(value: int) -> None:
    """Set the niceness of all threads of the workers."""
    for thread in (thread for worker in workers() for thread in worker.threads()):
        os.setpriority(os.PRIO_PROCESS, thread.id, value)


def of_typing(book: Book) -> None:
    """Measure typing under each condition."""
    lags: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        lags.setdefault("at rest", []).extend(typed(book))
        lags.setdefault("beside two loops of Python", []).extend(beside_others(book))
        for what, cell in {"nothing shown": UNSEEN, "progress": SEEN, "progress, panel": SEEN, "niced": SEEN}.items():
            niced(10 if what == "niced" else 0)
            side = "superduper-panel" if what == "progress, panel" else "filebrowser"
            book.page.evaluate(f"jupyterapp.shell.activateById('{side}')")
            found, took = beside_jobs(book, cell)
            lags.setdefault(f"documents are processed: {what}", []).extend(found)
            seconds.setdefault(what, []).append(took)
        niced(0)
    for what, found in lags.items():
        told(f"{what} ({len(found)} keys)", found)
    for what, took in seconds.items():
        print(f"  inserted and processed, {what}: " + ", ".join(f"{each:.1f}" for each in took) + " s", flush=True)


def of_the_map(book: Book) -> None:
    """Measure how long the map takes, and its frames while it is moved."""
    began = time.perf_counter()
    book.run(MAP, 300.0)
    canvas = book.output(MAP).locator("canvas").first
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
    chosen = sys.argv[2:] or ["typing", "map"]
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab, chromium() as browser:
        (lab.work / "typing.ipynb").write_text(new_notebook(SETUP.format(documents=documents), *CELLS))
        book = Book(browser.new_context(viewport={"width": 1180, "height": 900}).new_page(), lab)
        book.open("typing.ipynb")
        book.run(0, 200.0)
        for what in chosen:
            {"typing": of_typing, "map": of_the_map}[what](book)
        print("  the console says:", book.complaints)


if __name__ == "__main__":
    main()
