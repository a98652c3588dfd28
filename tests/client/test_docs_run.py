"""The examples of the documentation run, in their order, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import superduper_nb as sd

DOCS = Path(__file__).resolve().parents[2] / "docs"


# The first stores an encoder of 90 MB; the quickstart, which always runs, has those lines, too.
@pytest.mark.parametrize("page", [pytest.param("models.md", marks=pytest.mark.drill), "training.md"])
def test_the_examples_of_a_page_run(page: str, client: sd.Client[Any], database: Any) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert examples
    names = {"sd": sd, "docs": client[database.name]["docs"]}
    for example in examples:
        exec(example, names)
