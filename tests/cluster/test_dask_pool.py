from __future__ import annotations

import socket

import pytest

from superduper_nb.cluster import dask_external
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.errors import ServiceError


def test_a_port_that_somebody_else_uses_is_said_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listens there takes the connection and never says a word; Dask's own client waits for ever."""
    monkeypatch.setattr(dask_external, "TIMEOUT_S", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServiceError, match=f"{address} does not answer"):
            DaskPool(address=address).start()
