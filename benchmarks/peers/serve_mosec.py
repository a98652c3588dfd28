"""mosec (its front is written in Rust): one worker, batches of up to 32."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

from mosec import Server, Worker
from serving_models import load


class Model(Worker):
    """The model as mosec wants it."""

    def __init__(self) -> None:
        self.apply = load(os.environ["BENCH_MODEL"])

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run a batch."""
        return [{"outputs": [row]} for row in self.apply([body["inputs"][0] for body in data])]


if __name__ == "__main__":
    sys.argv = ["mosec", "--port", os.environ["BENCH_PORT"], "--address", "127.0.0.1", "--path", tempfile.mkdtemp()]
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=32, max_wait_time=2)
    server.run()
