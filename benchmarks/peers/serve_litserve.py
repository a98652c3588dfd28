"""LitServe: one worker, batches of up to 32."""

# No `from __future__ import annotations`: LitServe reads the annotations.

import os
from typing import Any

import litserve
from serving_models import load


class Api(litserve.LitAPI):
    """The model as LitServe wants it."""

    def setup(self, device: str) -> None:
        """Load it."""
        self.apply = load(os.environ["BENCH_MODEL"])

    def decode_request(self, request: dict) -> Any:  # type: ignore[type-arg]
        """Take the input."""
        return request["inputs"][0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Leave the joining to the model."""
        return inputs

    def predict(self, x: Any) -> Any:
        """Run a batch."""
        return self.apply(x)

    def unbatch(self, output: Any) -> Any:
        """It is a list already."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Make the reply."""
        return {"outputs": [output]}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=32, batch_timeout=0.002), accelerator="cpu", workers_per_device=1)
    port = int(os.environ["BENCH_PORT"])
    server.run(port=port, host="127.0.0.1", num_api_servers=1, generate_client_file=False, log_level="warning")
