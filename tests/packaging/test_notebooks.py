"""The notebooks that show training, as their readers run them, with no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import ROOT, problems

NOTEBOOKS = ["fine_tune_search", "classify_images", "impute_column", "transfer_learning"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_holds_what_it_says(home: Path, tmp_path: Path, mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERDUPER_MONGODB__URI", mongo_uri)  # four starts of an embedded one would take ten seconds
    assert problems([ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS], tmp_path) == []
