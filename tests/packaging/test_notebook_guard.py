from __future__ import annotations

from pathlib import Path

from tests.lab.notebooks import new_notebook
from tests.notebook_runs import problems

THREAD = "from threading import Thread\nthread = Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()"
HANDLER = """
from ipywidgets import Button
button = Button()
button.comm.on_msg(lambda _: {}["missing"])
kernel = get_ipython().kernel
kernel.comm_manager.comm_msg(None, None, {"content": {"comm_id": button.comm.comm_id, "data": {}}})
"""


def test_what_fails_on_stderr_only_is_red(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.ipynb").write_text(new_notebook("1 + 1", THREAD, HANDLER, "%no_such_magic"))
    folder = tmp_path / "run"
    folder.mkdir()
    found = problems([tmp_path / "bad.ipynb"], folder)
    assert "bad.ipynb: cell 1: ZeroDivisionError: division by zero" in found
    assert any(each.startswith("bad.ipynb: cell 3: UsageError") for each in found)
    assert "bad.ipynb: cell 2: KeyError: 'missing'" in found
