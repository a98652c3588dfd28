"""BentoML: one worker, adaptive batches of up to 32."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import bentoml
from serving_models import load


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 512})
class Service:
    """The model as BentoML wants it."""

    def __init__(self) -> None:
        self.apply = load(os.environ["BENCH_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60_000)
    def predict(self, inputs: list[Any]) -> list[Any]:
        """Run a batch."""
        return self.apply(inputs)


if __name__ == "__main__":
    os.environ |= {"BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": tempfile.mkdtemp()}
    os.chdir(Path(__file__).parent)
    address = ["--port", os.environ["BENCH_PORT"], "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "serve_bentoml:Service", *address])
