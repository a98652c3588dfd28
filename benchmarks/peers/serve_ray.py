"""Ray Serve: one replica, batches of up to 32."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve

HERE = str(Path(__file__).parent)


@serve.deployment(num_replicas=1, max_ongoing_requests=512)
class Model:
    """The model as Ray wants it."""

    def __init__(self, name: str) -> None:
        sys.path.insert(0, HERE)
        from serving_models import load

        self.apply = load(name)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def run(self, inputs: list[Any]) -> list[Any]:
        """Run a batch."""
        return self.apply(inputs)

    async def __call__(self, request: Any) -> dict[str, Any]:
        """Take the input, make the reply."""
        return {"outputs": [await self.run((await request.json())["inputs"][0])]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    serve.run(Model.bind(os.environ["BENCH_MODEL"]), route_prefix="/predict")
    while True:
        time.sleep(60)
