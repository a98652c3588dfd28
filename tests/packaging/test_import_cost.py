"""`import superduper_nb` is paid by every kernel and every server start: it must stay cheap."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import superduper_nb as sd

BUDGET_MS = 50
HEAVY = {
    "IPython",
    "dask",
    "distributed",
    "ipywidgets",
    "jupyter_server",
    "numpy",
    "pandas",
    "pydantic",
    "pymongo",
    "torch",
}

PROBE = """
import sys, time, json
began = time.perf_counter()
import superduper_nb
took = (time.perf_counter() - began) * 1000
print(json.dumps({"ms": took, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""

PUBLIC = [
    "Client",
    "Collection",
    "Config",
    "Cursor",
    "Database",
    "IndexOptions",
    "ItemError",
    "Job",
    "Jobs",
    "Predictor",
    "SuperduperError",
    "Trainer",
    "Training",
    "__version__",
    "connect",
]


def import_in_fresh_process() -> dict[str, Any]:
    output = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


def test_import_is_cheap_and_pulls_in_nothing_heavy() -> None:
    runs = [import_in_fresh_process() for _ in range(5)]
    assert HEAVY.isdisjoint(runs[0]["modules"]), HEAVY.intersection(runs[0]["modules"])
    assert statistics.median(run["ms"] for run in runs) < BUDGET_MS


def test_public_names_are_these_and_no_others() -> None:
    assert sd.__all__ == PUBLIC
    assert dir(sd) == PUBLIC


def test_every_public_name_resolves() -> None:
    for name in PUBLIC:
        assert getattr(sd, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(sd, "conect")
