"""Notebooks that must be red, and the README's first session, which must not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pymongo import MongoClient

from tests.lab.notebooks import new_notebook
from tests.notebook_runs import ROOT, problems

THREAD = "from threading import Thread\nthread = Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()"
HANDLER = """
from ipywidgets import Button
button = Button()
button.comm.on_msg(lambda _: {}["missing"])
kernel = get_ipython().kernel
kernel.comm_manager.comm_msg(None, None, {"content": {"comm_id": button.comm.comm_id, "data": {}}})
"""


def first_session() -> list[str]:
    """Return the cells of the README's first session."""
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.partition("## A first session")[2].partition("\n## ")[0]
    return re.findall(r"^```(?:python)?\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_what_fails_on_stderr_only_is_red(
    home: Path, tmp_path: Path, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_MONGODB__URI", mongo_uri)
    cells = first_session()
    assert len(cells) == 5
    (tmp_path / "readme.ipynb").write_text(new_notebook(*cells, "assert len(hits) == 2, hits"))
    (tmp_path / "bad.ipynb").write_text(new_notebook("1 + 1", THREAD, HANDLER, "%no_such_magic"))
    folder = tmp_path / "run"
    folder.mkdir()
    try:
        found = problems([tmp_path / "readme.ipynb", tmp_path / "bad.ipynb"], folder)
    finally:
        with MongoClient(mongo_uri) as client:
            client.drop_database("shop")
    assert all(each.startswith("bad.ipynb: ") for each in found)
    assert "bad.ipynb: cell 1: ZeroDivisionError: division by zero" in found
    assert "bad.ipynb: cell 2: KeyError: 'missing'" in found
    assert any(each.startswith("bad.ipynb: cell 3: UsageError") for each in found)
