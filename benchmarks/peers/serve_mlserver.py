"""MLServer: one worker, batches of up to 32, its own protocol."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from serving_models import load


class Model(MLModel):
    """The model as MLServer wants it."""

    async def load(self) -> bool:
        """Load it."""
        self.apply = load(os.environ["BENCH_MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run a batch."""
        tensor = payload.inputs[0]
        text = tensor.datatype == "BYTES"
        inputs = StringCodec.decode_input(tensor) if text else NumpyCodec.decode_input(tensor).tolist()
        rows = np.array(self.apply(inputs), dtype=np.float32)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", rows)])


if __name__ == "__main__":
    folder, port = Path(tempfile.mkdtemp()), int(os.environ["BENCH_PORT"])
    model = {"name": "m", "implementation": "serve_mlserver.Model", "max_batch_size": 32, "max_batch_time": 0.002}
    (folder / "model-settings.json").write_text(json.dumps(model))
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "host": "127.0.0.1"}
    (folder / "settings.json").write_text(json.dumps({**ports, "parallel_workers": 1, "debug": False}))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    command = str(Path(sys.executable).with_name("mlserver"))
    os.execv(command, [command, "start", str(folder)])
