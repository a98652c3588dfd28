"""Prometheus metrics, in a registry of their own: defined once a process, whatever is imported again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

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

_LABELS: Final = ("database", "model")
_COUNTERS: Final = {
    "requests": "Requests that were answered.",
    "inputs": "Inputs in them.",
    "batches": "Batches that were run.",
    "errors": "Requests that failed.",
}
_GAUGES: Final = {"queue": "Requests that wait.", "bytes": "Memory that the model took when it was loaded."}
_FIELDS: Final = {"requests": "count", "bytes": "rss"}


_OF_INDEXES: Final = ("database", "collection", "index")
_INDEX_GAUGES: Final = {
    "vectors": ("size", "Vectors in the index."),
    "bytes": ("bytes", "Memory that the index takes."),
    "lag_seconds": ("lag_s", "How far the index is behind its collection."),
}


def exposition(
    models: Iterable[Mapping[str, Any]] = (),
    server: Mapping[str, Any] | None = None,
    indexes: Iterable[Mapping[str, Any]] = (),
) -> bytes:
    """Return all metrics in the text format.

    Parameters
    ----------
    models : iterable of mapping
        What the model server says about each model.
    server : mapping, optional
        What it says about itself.
    indexes : iterable of mapping
        What the search engine says about each index; one that is not in memory has no size.
    """
    now = CollectorRegistry()
    now.register(_Models(list(models), server or {}))
    now.register(_Indexes(list(indexes)))
    return generate_latest(REGISTRY) + generate_latest(now)


class _Models(Collector):
    """The model server's figures, which it keeps itself."""

    def __init__(self, rows: list[Mapping[str, Any]], server: Mapping[str, Any]) -> None:
        self._rows, self._server = rows, server

    def collect(self) -> Iterator[Metric]:
        for name, help in _COUNTERS.items():
            yield self._of_models(CounterMetricFamily(f"superduper_model_{name}", help, labels=_LABELS), name)
        for name, help in _GAUGES.items():
            yield self._of_models(GaugeMetricFamily(f"superduper_model_{name}", help, labels=_LABELS), name)
        yield self._latencies()
        restarts = CounterMetricFamily("superduper_model_server_restarts", "Processes that were replaced.")
        restarts.add_metric([], self._server.get("restarts", 0))
        yield restarts
        memory = GaugeMetricFamily("superduper_model_server_bytes", "Memory of the processes that run models.")
        memory.add_metric([], self._server.get("rss", 0))
        yield memory

    def _of_models(self, family: CounterMetricFamily | GaugeMetricFamily, name: str) -> Metric:
        for row in self._rows:
            family.add_metric([row["database"], row["model"]], row[_FIELDS.get(name, name)])
        return family

    def _latencies(self) -> Metric:
        name = "superduper_model_latency_seconds"
        family = Metric(name, "From a request to its answer; quantiles of the last thousand.", "summary")
        for row in self._rows:
            labels = {"database": row["database"], "model": row["model"]}
            for percent in (50, 95, 99):
                if row[f"p{percent}_ms"] is not None:
                    quantile = {**labels, "quantile": str(percent / 100)}
                    family.add_sample(name, quantile, row[f"p{percent}_ms"] / 1000)
            family.add_sample(f"{name}_count", labels, row["count"])
            family.add_sample(f"{name}_sum", labels, row["total_ms"] / 1000)
        return family


class _Indexes(Collector):
    """The figures of semantic indexes, which the search engine keeps itself."""

    def __init__(self, rows: list[Mapping[str, Any]]) -> None:
        self._rows = rows

    def collect(self) -> Iterator[Metric]:
        name, help = "superduper_search_seconds", "Time of a search in the engine; its count is that of the searches."
        times = HistogramMetricFamily(name, help, labels=_OF_INDEXES)
        for row in self._rows:
            times.add_metric(_index(row), row["searches"], row["searched_s"])
        yield times
        for name, (field, help) in _INDEX_GAUGES.items():
            family = GaugeMetricFamily(f"superduper_index_{name}", help, labels=_OF_INDEXES)
            for row in self._rows:
                if field in row:
                    family.add_metric(_index(row), row[field])
            yield family


def _index(row: Mapping[str, Any]) -> list[str]:
    return [row["database"], row["collection"], row["id"]]
