"""How fast training from documents is, and how good, beside a hand-written PyTorch loop over the same data in memory.

``python benchmarks/training.py [--fashion FOLDER] [--epochs 5] [--seeds 3]``; FOLDER holds Fashion-MNIST's four ``.gz``
files, as Debian's package ``dataset-fashion-mnist`` installs them (``apt-get download``, ``dpkg -x`` will do).

One torch thread on both sides; for each seed the loop runs before and after the job, and the mean of the two counts.

The time of ours is that of the whole job: it reads documents from MongoDB, decodes and preprocesses them, validates
after each epoch as the other loop does, keeps the history, and stores the best weights as a version of the model. The
second figure leaves out the first epoch, in which documents are read and prepared.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import superduper_nb as sd
from superduper_nb.cluster.mongod import Mongod

BATCH, RATE = 64, 2e-3
Data = tuple[Any, Any, Any, Any]


class Net(nn.Module):
    """Two convolutions and a layer over them."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10),
        )  # fmt: skip

    def preprocess(self, image: Any) -> torch.Tensor:
        """Return grey values between 0 and 1."""
        return torch.as_tensor(image)[None].float() / 255

    def forward(self, x: torch.Tensor) -> Any:
        """Return ten logits for each image."""
        return self.layers(x)


def digits() -> Data:
    """Return handwritten digits: images and labels to train with, and to judge by."""
    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    return images[:1400], y[:1400], images[1400:], y[1400:]


def fashion(folder: Path) -> Data:
    """Return a fifth of Fashion-MNIST."""

    def read(name: str, skip: int) -> Any:
        with gzip.open(next(folder.rglob(f"{name}*.gz"))) as file:
            return np.frombuffer(file.read(), np.uint8, offset=skip)

    x, y = read("train-images", 16).reshape(-1, 28, 28), read("train-labels", 8)
    return x[:12000], y[:12000], x[50000:52000], y[50000:52000]


def by_hand(data: Data, epochs: int, seed: int) -> tuple[float, float]:
    """Train as anybody would; return samples a second, and the last accuracy."""
    net = started(data, seed)
    x, y, valid_x, valid_y = (torch.as_tensor(np.array(part)) for part in data)
    begun = time.perf_counter()
    x, valid_x = x[:, None].float() / 255, valid_x[:, None].float() / 255
    y, valid_y = y.long(), valid_y.long()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    for _ in range(epochs):
        net.train()
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            if not torch.isfinite(loss):
                raise ValueError("the loss is no number")
        net.eval()
        with torch.no_grad():
            outputs = torch.cat([net(part) for part in valid_x.split(BATCH)])
            accuracy = float((outputs.argmax(1) == valid_y).float().mean())
            cross_entropy(outputs, valid_y)
    return epochs * len(x) / (time.perf_counter() - begun), accuracy


def by_job(docs: Any, data: Data, epochs: int, seed: int) -> tuple[float, float, float]:
    """Train from documents; return samples a second: of the whole job, after its first epoch; and the last accuracy."""
    docs.create_model("net", started(data, seed))
    how = sd.Training(epochs=epochs, batch_size=BATCH, lr=RATE, seed=seed)
    task = {"loss": "cross_entropy", "metrics": ["accuracy"], "training": how}
    jobs = docs.create_imputation("task", "net", "img", None, "label", **task)
    job = jobs["train task"].wait()
    record = job.record
    seconds = (record["finished"] - record["started"]).total_seconds()
    history = docs.imputations["task"].history.dropna()
    later = (history["time"].iloc[-1] - history["time"].iloc[0]).total_seconds()
    rates = epochs * len(data[0]) / seconds, (epochs - 1) * len(data[0]) / later
    return *rates, history["valid.accuracy"].iloc[-1]


def started(data: Data, seed: int) -> Net:
    """Return an untrained net."""
    torch.manual_seed(seed)
    return Net(data[0].shape[1])


def insert(docs: Any, data: Data) -> None:
    """Insert the images as documents."""
    x, y, valid_x, valid_y = data
    docs.create_model("net", started(data, 0))
    for fold, images, labels in (("train", x, y), ("valid", valid_x, valid_y)):
        rows = [{"img": image, "label": int(label), "_fold": fold} for image, label in zip(images, labels, strict=True)]
        docs.insert_many(rows)


def in_turns(docs: Any, data: Data, epochs: int, seed: int) -> tuple[tuple[float, float], tuple[float, float, float]]:
    """Train by hand, by a job, and by hand again; return what the loop and what the job found."""
    before, accuracy = by_hand(data, epochs, seed)
    ours = by_job(docs, data, epochs, seed)
    after, _ = by_hand(data, epochs, seed)
    return ((before + after) / 2, accuracy), ours


def report(name: str, docs: Any, data: Data, epochs: int, seeds: int) -> None:
    """Train both ways, in turns for each seed, and print what was found."""
    insert(docs, data)
    by_hand(data, 1, 0)  # torch warms up
    runs = [in_turns(docs, data, epochs, seed) for seed in range(seeds)]
    hand, job = zip(*runs, strict=True)
    whole, later = (statistics.median(ours[n] / theirs[0] for theirs, ours in runs) for n in (0, 1))
    print(f"{name}: {len(data[0])} images, {epochs} epochs, {seeds} seeds")
    for who, found in (("by hand", hand), ("as a job", job)):
        rate = statistics.median(each[0] for each in found)
        accuracies = [each[-1] for each in found]
        spread = max(accuracies) - min(accuracies)
        print(f"  {who:9} {rate:8.0f} samples/s   accuracy {statistics.mean(accuracies):.4f} (spread {spread:.4f})")
    ratios = ", ".join(f"{ours[0] / theirs[0]:.2f}/{ours[1] / theirs[0]:.2f}" for theirs, ours in runs)
    print(f"  each seed: {ratios}")
    print(f"  speed: {whole:.2f} of the hand-written loop; {later:.2f} after the first epoch (goal 0.9)")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        Mongod.attach(Path(folder), cache_gb=0.5) as mongod,
        sd.Client[Any](mongod.uri) as client,
    ):
        report("digits", client["bench"]["digits"], digits(), 4 * options.epochs, options.seeds)
        if options.fashion:
            report(
                "Fashion-MNIST", client["bench2"]["fashion"], fashion(options.fashion), options.epochs, options.seeds
            )


if __name__ == "__main__":
    main()
