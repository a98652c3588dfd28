"""The whole cluster in this process."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pymongo import MongoClient

from superduper_nb.config import Config, DownloadsConfig
from superduper_nb.documents.download import DownloadPolicy
from superduper_nb.jobs.foreground import run_foreground
from superduper_nb.models.apply import Predictor
from superduper_nb.models.loading import Loader
from superduper_nb.services.engines import Engines
from superduper_nb.serving import InProcessModels

__all__ = ["InProcessServices"]


class InProcessServices(Engines):
    """Everything in this process; jobs run in the foreground, as they are written.

    Parameters
    ----------
    client : pymongo.MongoClient
        Where documents, components and jobs are.
    config : Config, optional
        What content may be fetched from where, how much memory indexes may take; default: the defaults.
    """

    mode = "in one process"

    def __init__(self, client: MongoClient[Any], config: Config | None = None) -> None:
        downloads, search = (config.downloads, config.linear_algebra) if config else (DownloadsConfig(), None)
        self._loaders: dict[str, Loader] = {}
        self._downloads = DownloadPolicy(**downloads.values())
        super().__init__(client, InProcessModels(self._load, self._current), search)

    def notify(self, database: str, jobs: Collection[str]) -> None:
        """Run these jobs, and return when they have ended."""
        super().notify(database, jobs)
        if jobs:
            run_foreground(self.client[database], self._loader(database), jobs, self._downloads)

    def unload_model(self, database: str, model: str) -> None:
        """Drop a model from memory, and with it whatever jobs and predictions loaded of its database."""
        self._loaders.pop(database, None)  # it keeps what it loads
        super().unload_model(database, model)

    def _loader(self, database: str) -> Loader:
        return self._loaders.setdefault(database, Loader(self.client[database]))

    def _load(self, database: str, model: str, version: int | None) -> tuple[Predictor, int]:
        predictor, component = self._loader(database).model(model, version)
        return predictor, component.version

    def _current(self, database: str, model: str) -> int:
        return self._loader(database).store.get("model", model).version
