"""The connections of this session. They live here, below what ``%reload_ext`` reloads, and so survive it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import InvalidInputError, NotFoundError, ServiceError, did_you_mean

if TYPE_CHECKING:
    from superduper_nb.client import Client

__all__ = ["CONNECTIONS", "Connection", "Connections", "Target"]

DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class Target:
    """A database, and a collection in it (empty: only the database)."""

    database: str
    collection: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``database`` or ``database.collection``; the collection's name may have dots of its own."""
        database, dot, collection = text.partition(".")
        if not database or (dot and not collection):
            raise InvalidInputError(f"{text!r} is no collection: write database.collection, such as shop.products.")
        return cls(database, collection)

    def __str__(self) -> str:
        return f"{self.database}.{self.collection}" if self.collection else self.database


@dataclass(slots=True)
class Connection:
    """A client under a name, and what ``use`` chose on it.

    Attributes
    ----------
    name : str
        What ``--on`` calls it.
    client : Client
        The client itself.
    settings : mapping
        What it was opened with: the same request gives the same client again.
    target : Target or None
        What ``use`` chose.
    alias : str
        The variable that ``use --as`` bound.
    """

    name: str
    client: Client[dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    target: Target | None = None
    alias: str = ""

    def alive(self) -> bool:
        """Tell whether the cluster still answers."""
        try:
            self.client.status()
        except ServiceError:
            return False
        return True


class Connections:
    """Connections by name, one of them the current one."""

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}
        self._current = ""

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections.values()))

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def current(self) -> Connection | None:
        """The one that is meant where none is named."""
        return self._connections.get(self._current)

    def open(
        self,
        name: str = DEFAULT,
        settings: Mapping[str, Any] | None = None,
        connect: Callable[..., Client[dict[str, Any]]] | None = None,
    ) -> Connection:
        """Open a connection and make it the current one; an open one with the same settings is kept.

        Parameters
        ----------
        name : str
            Its name. A living connection of that name is closed where `settings` differ; with none given it is kept.
        settings : mapping, optional
            Arguments of `connect`.
        connect : callable, optional
            Default: :func:`superduper_nb.connect`.
        """
        settings = dict(settings or {})
        known = self._connections.get(name)
        if known is None or not (settings in ({}, known.settings) and known.alive()):
            known = self._replace(name, settings, connect)
        self._current = name
        return known

    def _replace(
        self, name: str, settings: Mapping[str, Any], connect: Callable[..., Client[dict[str, Any]]] | None
    ) -> Connection:
        made = Connection(name, (connect or _connect)(**settings), settings)
        if (old := self._connections.get(name)) is not None:
            made.target, made.alias = old.target, old.alias
        self.close(name)
        self._connections[name] = made
        return made

    def get(self, name: str = "") -> Connection:
        """Return the connection called `name`, or the current one, which is opened where there is none.

        Raises
        ------
        NotFoundError
            There is none of that name.
        """
        if not name:
            return self.current or self.open()
        if name not in self._connections:
            hint = did_you_mean(name, self._connections) or f" Open it: %sddb connect --name {name}."
            raise NotFoundError(f"there is no connection {name!r}.{hint}")
        return self._connections[name]

    def close(self, name: str) -> None:
        """Close a connection and forget it; nothing happens where there is none."""
        gone = self._connections.pop(name, None)
        if gone is not None:
            gone.client.close()
        if self._current == name:
            self._current = next(reversed(self._connections), "")


def _connect(**settings: Any) -> Client[dict[str, Any]]:
    from superduper_nb.client import connect

    return connect(**settings)


CONNECTIONS: Final = Connections()
"""Those of this process."""
