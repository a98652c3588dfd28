"""What the tests train."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def pixels(image: Any) -> Any:
    return np.asarray(image, dtype=np.float32) / 16


class Net(torch.nn.Module):
    """A small classifier; dropout makes it draw random numbers."""

    def __init__(self, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(32, classes)
        )

    def preprocess(self, image: Any) -> torch.Tensor:
        return torch.as_tensor(np.array(image))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


def net(classes: int = 10, dropout: float = 0.1) -> Net:
    torch.manual_seed(0)
    return Net(classes, dropout)


class Bag(torch.nn.Module):
    """A text becomes the mean of its words' vectors."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(512, size, mode="mean")

    def preprocess(self, text: str) -> torch.Tensor:
        numbers = [zlib.crc32(word.encode()) % 512 for word in text.split()][:8]
        return torch.tensor(numbers + numbers[-1:] * (8 - len(numbers)))

    def forward(self, x: torch.Tensor) -> Any:
        return self.bag(x)


def bag(seed: int = 0) -> Bag:
    torch.manual_seed(seed)
    return Bag()
