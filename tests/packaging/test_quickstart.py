"""The quickstart, as its readers run it: by `make demo` in a notebook server, and headless with no server at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quickstart_passes_with_no_server(home: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=170", "-p", "no:cacheprovider"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("JPY_")}
    env["OMP_NUM_THREADS"] = "1"  # torch gets slow when more threads than free cores wait for each other
    result = subprocess.run(
        [*command, "notebooks/quickstart.ipynb"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:]


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
    assert "<table" in page
    assert "hot beverage" in page
