"""The quickstart, as its readers run it: by `make demo` in a notebook server, and headless with no server at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebook_runs import ROOT, problems


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quickstart_passes_with_no_server(home: Path, tmp_path: Path) -> None:
    assert problems([ROOT / "notebooks" / "quickstart.ipynb"], tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_shows_relevant_results_and_leaves_no_process() -> None:
    result = subprocess.run(
        [sys.executable, "scripts/demo.py"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=280
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "hot beverage" in result.stdout
    assert "no process is left" in result.stdout
    page = (ROOT / "build" / "quickstart.html").read_text("utf-8")
    assert (
        'data-mime-type="application/vnd.jupyter.stderr"' not in page
    )  # no library's warnings in the first thing that a reader sees
    assert "<table" in page
    assert "hot beverage" in page
