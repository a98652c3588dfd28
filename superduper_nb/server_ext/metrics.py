"""Prometheus metrics, in a registry of their own: defined once a process, whatever is imported again."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "IN_FLIGHT", "READY", "REJECTED", "REQUEST_SECONDS", "exposition"]

REGISTRY: Final = CollectorRegistry(auto_describe=True)

REQUEST_SECONDS: Final = Histogram(
    "superduper_request_seconds",
    "Time from the first byte of a request to the last of its answer.",
    ["operation", "status"],
    registry=REGISTRY,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
IN_FLIGHT: Final = Gauge("superduper_in_flight", "Calls that run or wait for a thread.", ["lane"], registry=REGISTRY)
REJECTED: Final = Counter("superduper_rejected", "Calls refused because too many waited.", ["lane"], registry=REGISTRY)
READY: Final = Gauge("superduper_ready", "1 while the engines are up.", registry=REGISTRY)


def exposition() -> bytes:
    """Return all metrics in the text format."""
    return generate_latest(REGISTRY)
