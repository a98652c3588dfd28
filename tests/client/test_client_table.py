"""``docs/pymongo.md`` says what the code does now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_pymongos_methods_is_current() -> None:
    command = "import sys; sys.path.insert(0, 'scripts'); import pymongo_table as t; sys.stdout.write(t.page())"
    page = subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert page == (ROOT / "docs" / "pymongo.md").read_text(), "run python scripts/pymongo_table.py"
    assert "| `find` | extended |" in page
    assert "| `create_index` | same |" in page
