"""What the notebook's side costs: ``python benchmarks/notebook.py``.

``%load_ext`` and the first find in fresh processes that have IPython already, ``%%sddb find`` beside the same call in
Python, completion, and 100 000 vectors as a map. Each line says its limit.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import superduper_nb as sd
from superduper_nb.cluster.mongod import Mongod, connect_options
from superduper_nb.magics.completion import Completions
from superduper_nb.magics.session import Connections
from superduper_nb.magics.table import run
from superduper_nb.search.plane import principal

LOAD = """
import sys, time
from IPython.core.interactiveshell import InteractiveShell
import ipywidgets
shell = InteractiveShell.instance()
began = time.perf_counter()
shell.run_line_magic("load_ext", "superduper_nb")
print((time.perf_counter() - began) * 1000)
"""
FIRST = """
import time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for line in ("load_ext superduper_nb", "sddb connect --local", "sddb use bench.rows --as docs"):
    shell.run_line_magic(*line.split(maxsplit=1))
time.sleep(1)  # as long as it takes to type the next cell
began = time.perf_counter()
shell.run_cell_magic("sddb", "find -n 10", '{"$like": {"text": "xxx"}}')._repr_mimebundle_()
print((time.perf_counter() - began) * 1000)
"""
ROUNDS = 60


def fresh_ms(code: str, **environment: str) -> float:
    """Return the median of what fresh processes say that they took, in milliseconds."""
    took = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as home:
            env = {**os.environ, "IPYTHONDIR": home, **environment}
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        took.append(float(done.stdout.split()[-1]))
    return statistics.median(took)


def median_ms(*calls: Callable[[], Any]) -> list[float]:
    """Return the median time of each call in milliseconds, measured in turns."""
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, took, strict=True):
            began = time.perf_counter()
            call()
            times.append((time.perf_counter() - began) * 1000)
    return [statistics.median(times) for times in took]


def embed(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a vector that depends on the text."""
    return np.random.default_rng(len(text)).standard_normal(64).astype(np.float32)


def report(what: str, value: float, limit: float) -> None:
    """Print a figure and its limit."""
    print(f"  {what:<58} {value:8.1f} ms   limit {limit:5.0f}   {'ok' if value < limit else 'TOO SLOW'}", flush=True)


def of_a_search(client: Any) -> None:
    """Measure the magic beside the client, and completion."""
    docs = client["bench"]["rows"]
    docs.create_model("embed", embed, type="vector")
    docs.create_watcher("embed", "text")
    docs.create_semantic_index("meaning", ["embed"], ["text"])
    docs.insert_many([{"text": "x" * (i % 97), "price": i, "nested": {"a": [i]}} for i in range(500)])
    connections = Connections()
    connections.open("default", {}, connect=lambda **_: client)
    run("use bench.rows --as docs", connections=connections)
    body = '{"price": {"$lt": 400}, "$like": {"text": "xxx"}}'

    def python() -> Any:
        return list(docs.find({"price": {"$lt": 400}}, like={"text": "xxx"}, n=10))

    def magic() -> Any:
        return run("find -n 10", body, connections=connections).value

    plain, ours = median_ms(python, magic)
    report("%%sddb find, over the same call in Python", ours - plain, 5)
    (shown,) = median_ms(magic()._repr_mimebundle_)
    report("drawing its ten hits", shown, 50)
    completions = Completions(connections)
    texts = [("%%sddb find\n{pri", 1, "{pri"), ("%sddb find --unl", 0, "%sddb find --unl")]
    times = []
    for text in texts:
        began = time.perf_counter()
        completions.find(*text)
        times.append((time.perf_counter() - began) * 1000)
    report("the slowest first completion", max(times), 50)


def main() -> None:
    """Print a line for each figure."""
    report("%load_ext superduper_nb", fresh_ms(LOAD), 150)
    with tempfile.TemporaryDirectory() as folder, Mongod.attach(Path(folder), cache_gb=0.5) as mongod:
        client = sd.Client(mongod.uri, **connect_options())
        of_a_search(client)
        client.close()
        report("the first find of a process, drawn", fresh_ms(FIRST, SUPERDUPER_MONGODB__URI=mongod.uri), 300)
    vectors = np.random.default_rng(0).standard_normal((100_000, 384), dtype=np.float32)
    began = time.perf_counter()
    principal(vectors)
    report("principal components of 100 000 x 384", (time.perf_counter() - began) * 1000, 5000)


if __name__ == "__main__":
    main()
