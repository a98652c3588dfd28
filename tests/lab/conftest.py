"""JupyterLab and Chromium for the tests of one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.browsing import Book, Lab, chromium, running_lab
from tests.lab.notebooks import new_notebook


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a running JupyterLab; its parameter is the base URL."""
    with running_lab(tmp_path_factory.mktemp("lab"), getattr(request, "param", "/")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return Chromium."""
    with chromium() as made:
        yield made


@pytest.fixture
def open_notebook(lab: Lab, browser: Any) -> Iterator[Callable[..., Book]]:
    """Return a function that opens a notebook (a new one of given cells) in a page of its own."""
    contexts = []

    def opened(name: str, *cells: str, app: str = "lab") -> Book:
        if cells:
            (lab.work / name).write_text(new_notebook(*cells))
        context = browser.new_context(viewport={"width": 1180, "height": 900}, device_scale_factor=1)
        contexts.append(context)
        book = Book(context.new_page(), lab)
        book.open(name, app)
        return book

    yield opened
    for context in contexts:
        context.close()
