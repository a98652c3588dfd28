from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from superduper_nb.serving import ModelServer
from tests.serving import fakes


@pytest.fixture
def make_server() -> Iterator[Callable[..., ModelServer]]:
    """Return what makes servers, closed after the test."""
    with ExitStack() as stack:

        def make(load: Any = fakes.load, current: Any = fakes.current, **options: Any) -> ModelServer:
            server = ModelServer(load, current, **{"preload": (), **options})
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def server(make_server: Callable[..., ModelServer]) -> ModelServer:
    """Return a server with short patience."""
    return make_server(grace=0.5)
