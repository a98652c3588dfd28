from __future__ import annotations

import socket
import time

import pytest

from superduper_nb.cluster import dask_external
from superduper_nb.cluster.dask import DaskPool
from superduper_nb.errors import ServiceError
from tests.waiting import until


def test_a_port_that_somebody_else_uses_is_said_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listens there takes the connection and never says a word; Dask's own client waits for ever."""
    monkeypatch.setattr(dask_external, "TIMEOUT_S", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServiceError, match=f"{address} does not answer"):
            DaskPool(address=address).start()


@pytest.mark.drill
def test_our_own_pool_grows_while_there_is_work() -> None:
    pool = DaskPool(workers=1, max_workers=2)
    try:
        pool.start()
        assert (pool.describe()["workers"], pool.threads()) == (1, 2)
        futures = [pool.submit(f"sleep-{n}", time.sleep, 0.5) for n in range(60)]
        until(lambda: pool.describe()["workers"] == 2, "the pool has grown")
        assert [future.result(60) for future in futures] == [None] * 60
    finally:
        pool.close()
