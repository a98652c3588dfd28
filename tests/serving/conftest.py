from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from superduper_nb.serving import InProcessModels, ModelServer
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


@pytest.fixture(scope="module", params=["child", "in process"])
def shared_models(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return each kind of model server in turn, for tests that only ask it."""
    child = request.param == "child"
    made = ModelServer(fakes.load, fakes.current, preload=()) if child else InProcessModels(fakes.load, fakes.current)
    yield made
    made.close()


@pytest.fixture(params=["child", "in process"])
def models(request: pytest.FixtureRequest, make_server: Callable[..., ModelServer]) -> Iterator[Any]:
    """Return each kind of model server in turn."""
    if request.param == "child":
        yield make_server()
        return
    here = InProcessModels(fakes.load, fakes.current)
    yield here
    here.close()
