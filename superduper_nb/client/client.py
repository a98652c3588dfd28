"""``Client``: pymongo's, whose databases know models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

import pymongo
from pymongo.typings import _DocumentType

from superduper_nb.client.database import Database
from superduper_nb.client.workspace import Workspace

if TYPE_CHECKING:
    from superduper_nb.config import Config
    from superduper_nb.services import Services

__all__ = ["Client"]

_USERS_ONLY: Final = {"connect", "documentclass", "eventlisteners", "fsync", "j", "journal", "readconcernlevel"} | {
    "readpreference", "readpreferencetags", "typeregistry", "tzaware", "w", "wtimeoutms", "autoencryptionopts"
}  # fmt: skip
"""Options that say how the user reads and writes, which is not how the package keeps its records."""


class Client(pymongo.MongoClient[_DocumentType]):
    """A `pymongo.MongoClient` whose databases and collections also register models and find by meaning.

    Takes `MongoClient`'s arguments. A client made directly does everything in this process; `superduper_nb.connect`
    makes one that uses the notebook server.

    Examples
    --------
    >>> docs = Client("mongodb://localhost")["shop"]["products"]                  # doctest: +SKIP
    """

    # MongoClient turns unknown attributes into databases, so these exist before its constructor runs.
    _services: Services | None = None
    _on_close: Callable[[], None] | None = None
    _workspaces: dict[str, Workspace] | None = None
    _records_client: pymongo.MongoClient[dict[str, Any]] | None = None
    _records_lock = threading.Lock()
    _valid_fraction: float = 0.05
    _models_here: bool = True
    _how: str = "this client was made directly: everything runs in this process"

    @property
    def how(self) -> str:
        """How the cluster was found."""
        return self._how

    def _use(self, services: Services, how: str, config: Config, on_close: Callable[[], None] | None = None) -> None:
        self._services, self._how, self._on_close = services, how, on_close
        self._valid_fraction = config.valid_fraction

    @property
    def _records(self) -> pymongo.MongoClient[dict[str, Any]]:
        """The package's own connections to the same MongoDB: its look-ups are not among the user's events."""
        with self._records_lock:
            if self._records_client is None:
                given = self._init_kwargs.items()
                options = {name: value for name, value in given if name.lower().replace("_", "") not in _USERS_ONLY}
                options |= {"w": "majority", "journal": True, "readPreference": "primary", "connect": False}
                self._records_client = pymongo.MongoClient(**options)
            return self._records_client

    @property
    def services(self) -> Services:
        """Search, model server and jobs, wherever they run."""
        if self._services is None:
            from superduper_nb.services import InProcessServices

            self._services = InProcessServices(self._records)
        return self._services

    def status(self) -> dict[str, Any]:
        """Say where each component runs, in which version and state."""
        return {**self.services.status(), "found": self.how}

    def _workspace(self, name: str) -> Workspace:
        known = self._workspaces
        if known is None:
            known = self._workspaces = {}
        return known[name] if name in known else known.setdefault(name, Workspace(self, name))

    def close(self) -> None:
        """Close the connections, and what runs in this process for this client."""
        services, on_close, records = self._services, self._on_close, self._records_client
        self._services = self._on_close = self._records_client = self._workspaces = None
        if services is not None:
            services.close()
        super().close()
        if records is not None:
            records.close()
        if on_close is not None:
            on_close()

    def drop_database(self, name_or_database: Any, *args: Any, **kwargs: Any) -> None:
        """Drop a database, as pymongo does, with all that is registered in it."""
        super().drop_database(name_or_database, *args, **kwargs)
        if self._workspaces is not None:
            self._workspaces.pop(getattr(name_or_database, "name", name_or_database), None)

    # --- the same as pymongo's, but of our classes -----------------------------------------------------------------

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __getitem__(self, name: str) -> Database[_DocumentType]:
        return Database(self, name)

    def get_database(self, name: str | None = None, *args: Any, **kwargs: Any) -> Database[_DocumentType]:
        """Return a database with options, as pymongo does; of our class."""
        return Database._of(super().get_database(name, *args, **kwargs))

    def get_default_database(self, *args: Any, **kwargs: Any) -> Database[_DocumentType]:
        """Return the database that the URI names, as pymongo does; of our class."""
        return Database._of(super().get_default_database(*args, **kwargs))
