"""The notebooks that show training, as their readers run them, with no server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ["fine_tune_search", "classify_images", "impute_column", "transfer_learning"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_holds_what_it_says(home: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=170", "-p", "no:cacheprovider"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("JPY_")}
    env["OMP_NUM_THREADS"] = "1"  # torch gets slow when more threads than free cores wait for each other
    notebooks = [f"notebooks/{name}.ipynb" for name in NOTEBOOKS]
    result = subprocess.run([*command, *notebooks], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
