"""What the client asks of the cluster, wherever that runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import Future
from typing import Any, Protocol

from superduper_nb.search import SearchReply, SearchRequest
from superduper_nb.serving import Errors, Prediction

__all__ = ["Services"]


class Services(Protocol):
    """What the client asks of the cluster, wherever that runs."""

    def status(self) -> dict[str, Any]:
        """Say where each component runs, in which version and state."""

    def search(self, request: SearchRequest) -> SearchReply:
        """Find the nearest of the documents that match."""

    def indexes(self) -> list[dict[str, Any]]:
        """List the indexes in memory."""

    def describe_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Say how large, how fresh and in what state an index is."""

    def refresh_index(self, database: str, collection: str, id: str) -> dict[str, Any]:
        """Load an index anew."""

    def models(self, database: str) -> list[dict[str, Any]]:
        """List the models of a database, and how those in memory do."""

    def predict(
        self, database: str, model: str, inputs: list[Any], version: int | None = None, errors: Errors = "raise"
    ) -> Prediction:
        """Apply a model."""

    def submit(self, database: str, model: str, inputs: list[Any], **options: Any) -> Future[Prediction]:
        """Have a model applied; options are those of `predict`."""

    def stream(self, database: str, model: str, x: Any, version: int | None = None) -> Iterable[Any]:
        """Return what yields what a model yields for one input, as it comes; closed where iteration ends."""

    def load_model(self, database: str, model: str, example: Any = None) -> dict[str, Any]:
        """Load a model in the model server, and apply it to an example."""

    def unload_model(self, database: str, model: str) -> None:
        """Drop a model from the model server's memory."""

    def notify(self, database: str, jobs: Collection[str]) -> None:
        """Say that something was registered or jobs were written; in-process services run these before they return."""

    def close(self) -> None:
        """Stop what was started."""
