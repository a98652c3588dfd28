"""Models for the tests of a real server: stored by value with their code, as those of a notebook cell are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


class Scale(torch.nn.Module):
    """A vector times two; needs three numbers."""

    def preprocess(self, x: Any) -> torch.Tensor:
        return torch.as_tensor(x, dtype=torch.float32)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch @ (2 * torch.eye(3))


class Letters(torch.nn.Module):
    """Counts of letters, mixed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.mix = torch.nn.Linear(26, 4)

    def preprocess(self, text: str) -> torch.Tensor:
        return torch.tensor([float(text.count(chr(97 + i))) for i in range(26)])

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.mix(batch)
        return rows


class Spell(torch.nn.Module):
    """Yields a batch of one letter for each step."""

    def preprocess(self, text: str) -> torch.Tensor:
        return torch.tensor([ord(letter) for letter in text])

    def forward(self, batch: torch.Tensor) -> Iterator[torch.Tensor]:
        for i in range(batch.shape[1]):
            assert torch.is_inference_mode_enabled()
            yield batch[:, i]

    def postprocess(self, row: torch.Tensor) -> str:
        return chr(int(row))


def thumbnail(image: Any) -> Any:
    return image.resize((2, 2))


def louder(clip: Any) -> Any:
    return type(clip)(2 * clip.samples, clip.rate)


def count(n: int) -> Iterator[int]:
    for i in range(n):
        if i == 7:
            raise ValueError("seven")
        yield i


def tick(folder: str) -> Iterator[int]:
    """Yield a number every moment, until closed; say so by a file."""
    try:
        for i in range(1_000_000):
            yield i
            time.sleep(0.03)
    finally:
        Path(folder, "closed").touch()


def trouble(x: Any) -> Any:
    """Do what is asked for: the drills."""
    if x == "raise":
        raise RuntimeError("asked to")
    if x == "exit":
        os._exit(3)
    if x == "memory":
        return bytearray(1 << 60)
    if isinstance(x, list):  # a folder in which to say that it has begun, and to wait for the end
        Path(x[0], "begun").touch()
        while not Path(x[0], "end").exists():
            time.sleep(0.01)
    return x


class Money:
    """What only a registered type can send."""

    def __init__(self, cents: int, currency: str) -> None:
        self.cents, self.currency = cents, currency


class MoneyType:
    types = (Money,)

    def encode(self, x: Money) -> bytes:
        return f"{x.cents} {x.currency}".encode()

    def decode(self, data: bytes) -> Money:
        cents, currency = data.decode().split()
        return Money(int(cents), currency)


def twice(money: Money) -> Money:
    return Money(2 * money.cents, money.currency)


def saved(cents: int) -> Iterator[Money]:
    for i in range(cents):
        yield Money(i, "EUR")


class Short:
    """Answers one row too few."""

    def forward(self, batch: Any) -> list[Any]:
        return list(range(len(batch) - 1))


def measured(size: list[float]) -> float:
    """Be annotated."""
    return sum(size)


def length(text: str) -> list[float]:
    return [float(len(text)), 1.0, 0.0]
