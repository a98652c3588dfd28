"""In a real kernel, headless, as nbmake runs notebooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from tests.widgets.payloads import foreign_parts


def executed(folder: Path, *cells: str) -> Any:
    """Run cells in a kernel of their own, and return the notebook as it would be saved."""
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    nbformat.validate(notebook)
    return notebook


PASSWORD, TOKEN = "correcthorse", "batterystaple"

WRONG = [
    {"mongodb": {"uri": f"mongodb://me:{PASSWORD}@127.0.0.1:1/?serverSelectionTimeoutMS=50"}, "remote": False},
    {"mongodb": {"uri": f"http://me:{PASSWORD}@127.0.0.1:1/"}},
    {"url": f"http://me:{PASSWORD}@127.0.0.1:1/"},
    {"url": f"http://127.0.0.1:1/?token={TOKEN}"},
    {"url": "http://127.0.0.1:1/", "token": TOKEN},
    {"url": "http://127.0.0.1:1/", "tokn": TOKEN},
    {"downloads": {"headers": {"a.example": {"Authorization": TOKEN}, "b.example": [TOKEN]}}},
]
"""Arguments of `connect` that lead nowhere, and hold secrets."""

EVERYTHING_SHOWN = (
    *(f"%sddb {line}" for line in ("config", "connections", "collections", "describe", "stats", "models", "types")),
    *(f"%sddb {line}" for line in ("watchers", "indexes", "jobs", "describe models/words", "find --explain")),
    '%%sddb find --explain\n{"$like": {"text": "scarf"}}',
    "docs, docs.database, docs.database.client, hits.query, repr(docs.database.client)",
    "import json, os, traceback\nimport superduper_nb as sd",
    """
for wrong in json.loads(os.environ["WRONG"]):
    try:
        sd.connect(**wrong)
    except sd.errors.SuperduperError as error:
        print("told in full", error, repr(error))
        traceback.print_exc()
    """,
    f"""
for line in ("connect mongodb://me:{PASSWORD}@127.0.0.1:1/", "connect http://127.0.0.1:1/?token={TOKEN}"):
    result = get_ipython().run_cell("%sddb " + line)
    assert not result.success
    """,
)
"""What of a connection can be seen, and what its errors say."""


def test_the_session_of_the_design(
    home: Path, docs: Any, mongo_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SUPERDUPER_MONGODB__URI", mongo_uri)
    monkeypatch.setenv("SUPERDUPER_TOKEN", TOKEN)
    monkeypatch.setenv("WRONG", json.dumps(WRONG))
    notebook = executed(
        tmp_path,
        "%load_ext superduper_nb",
        f"%sddb connect --local\n%sddb use {docs.full_name} --as docs",
        'docs.insert_many([{"text": f"scarf number {i}", "price": i} for i in range(30)])',
        '%%sddb find -n 6 -o hits\n{"price": {"$lt": 50}, "$like": {"text": "warm red wool scarf"}}',
        "assert len(hits) == 6 and hits[0]['_score'] > 0.9, hits",
        "hits.to_pandas(), docs.predict('words', 'a red scarf')",
        "%sddb status",
        "%sddb wait",
        *EVERYTHING_SHOWN,
    )
    loaded, used, inserted, found, *_ = (cell.outputs for cell in notebook.cells)
    assert loaded == []
    assert used[-1].data["text/plain"] == f"docs = {docs.full_name}: 6 documents"
    assert inserted[-1].data["text/plain"] == "30 documents inserted"
    assert any("✓ succeeded" in output.data["text/plain"] for output in inserted)
    (table,) = found
    assert "6 documents · index meaning (" in table.data["text/plain"]
    assert foreign_parts(table.data["text/html"]) == []
    saved = json.dumps([cell.outputs for cell in notebook.cells])
    assert "widget-view" not in saved
    password = urlsplit(mongo_uri).password
    assert password
    assert [secret for secret in (password, PASSWORD, TOKEN) if secret in saved] == []
    assert saved.count("told in full") == len(WRONG)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%sddb find --nope", "unrecognized arguments"),
        ("%sddb fnd", "Did you mean 'find'"),
        ("%%sddb find\n{price: {$lt 50}}", "line 1, column 14"),
        ("%sddb connect mongodb://u:hunter2@h/", "SUPERDUPER_TOKEN"),
        ("%sddb status --on nowhere", "no connection 'nowhere'"),
    ],
)
def test_a_wrong_cell_fails_and_its_error_is_in_the_notebook(
    home: Path, tmp_path: Path, mongo_uri: str, monkeypatch: pytest.MonkeyPatch, cell: str, message: str
) -> None:
    monkeypatch.setenv("SUPERDUPER_MONGODB__URI", mongo_uri)
    notebook = new_notebook(
        cells=[new_code_cell("%load_ext superduper_nb\n%sddb connect --local\n%sddb use a.b;"), new_code_cell(cell)]
    )
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    with pytest.raises(CellExecutionError):
        client.execute()
    (error,) = notebook.cells[1].outputs
    assert error.output_type == "error"
    assert message in error.evalue
    assert len(error.traceback) == 1
    assert "hunter2" not in json.dumps(error)


SLOW_JOB = """
import time
from superduper_nb.widgets.progress import JobsView

class Job:
    began, workers = time.monotonic(), 0
    def cancel(self): pass
    def retry(self): pass
    @property
    def record(self):
        seconds = time.monotonic() - self.began
        state = "succeeded" if seconds > 2 else "running"
        progress = {"done": min(int(seconds * 5), 10), "total": 10, "failed": 0}
        return {"_id": "1", "name": "slow", "state": state, "progress": progress}

view = JobsView([Job()])
view.show()
assert not view.ended.is_set()
"""


def test_progress_goes_on_in_its_own_cell_and_ends_there(home: Path, tmp_path: Path) -> None:
    notebook = executed(
        tmp_path,
        SLOW_JOB,
        "from ipywidgets.widgets.widget import _instances\nprint(len(_instances), 'widgets')",
        "assert view.ended.wait(30)\nprint(len(_instances), 'widgets')",
        "print('next')",
    )
    (picture,) = notebook.cells[0].outputs
    assert "✓ succeeded" in picture.data["text/plain"]
    assert "10/10" in picture.data["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in picture.data
    assert notebook.cells[1].outputs[0].text == "8 widgets\n"
    assert notebook.cells[2].outputs[0].text == "0 widgets\n"
    assert [output.text for output in notebook.cells[3].outputs] == ["next\n"]
