"""``docs/pymongo.md`` says what the code does now."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_table_of_pymongos_methods_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page = import_module("pymongo_table").page()
    assert page == (ROOT / "docs" / "pymongo.md").read_text(), "run python scripts/pymongo_table.py"
    assert "| `find` | extended |" in page
    assert "| `create_index` | same |" in page
