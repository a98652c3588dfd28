"""Figures of one model: counts since the start; rate and latencies of the last thousand requests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from superduper_nb.serving.values import LoadedModel

__all__ = ["Statistics"]

_SAMPLES: Final = 1000
_RATE_S: Final = 30.0


class Statistics:
    """What was answered, and how fast."""

    def __init__(self) -> None:
        self.requests = self.inputs = self.errors = self.batches = 0
        self.total_ms = 0.0
        self._samples: deque[tuple[float, float, int]] = deque(maxlen=_SAMPLES)  # (when, ms, inputs)

    def record(self, took_ms: float, *, inputs: int, failed: bool) -> None:
        """Count an answer."""
        self.requests += 1
        self.inputs += inputs
        self.errors += failed
        self.total_ms += took_ms
        self._samples.append((time.monotonic(), took_ms, inputs))

    def rates(self) -> tuple[float, float]:
        """Return requests and inputs a second, over the last 30 s or thousand requests, whichever is shorter."""
        now = time.monotonic()
        recent = [(when, inputs) for when, _, inputs in self._samples if now - when < _RATE_S]
        if not recent:
            return 0.0, 0.0
        span = now - recent[0][0]
        seconds = span if len(recent) == _SAMPLES else max(1.0, span)
        return len(recent) / seconds, sum(inputs for _, inputs in recent) / seconds

    def percentile(self, fraction: float) -> float | None:
        """Return the latency in ms that this fraction of the last thousand requests did not exceed."""
        latencies = sorted(ms for _, ms, _ in self._samples)
        return latencies[min(int(fraction * len(latencies)), len(latencies) - 1)] if latencies else None

    def row(
        self, database: str, model: str, *, models: Iterable[LoadedModel], loading: bool = False, queue: int = 0
    ) -> dict[str, Any]:
        """Return everything that is said about a model in a listing."""
        mine = [about for about in models if (about.database, about.model) == (database, model)]
        return {
            "database": database,
            "model": model,
            "state": "loading" if loading else "ready" if mine else "unloaded",
            "version": mine[-1].version if mine else None,
            "rss": sum(about.rss for about in mine),
            "queue": queue,
            "count": self.requests,
            "inputs": self.inputs,
            "batches": self.batches,
            "errors": self.errors,
            "total_ms": round(self.total_ms, 3),
            "rate": round(self.rates()[0], 3),
            **{f"p{percent}_ms": self.percentile(percent / 100) for percent in (50, 95, 99)},
        }
