"""Validation sets as users hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from superduper_nb.components.store import Component
from superduper_nb.components.validation import ValidationStore
from superduper_nb.errors import InvalidInputError

if TYPE_CHECKING:
    from superduper_nb.client.workspace import Workspace

__all__ = ["ValidationSet"]


class ValidationSet(Sequence[dict[str, Any]]):
    """The frozen documents of a validation set, in a fixed order, decoded; read as they are asked for.

    Parameters
    ----------
    workspace : Workspace
        Of its database.
    component : Component
        The set.
    """

    def __init__(self, workspace: Workspace, component: Component) -> None:
        self._workspace, self._component = workspace, component
        self._store = ValidationStore(workspace.store.database)

    @property
    def definition(self) -> dict[str, Any]:
        """What it was created with, and how many documents it holds."""
        return {"id": self._component.id, **self._component.definition}

    def __len__(self) -> int:
        return int(self._component.definition["count"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._documents()

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Return a document, or those of a slice."""
        places = range(len(self))[index]
        if isinstance(places, int):
            return next(self._documents(places, 1))
        if not places:
            return []
        low, high = min(places[0], places[-1]), max(places[0], places[-1])
        read = list(self._documents(low, high - low + 1))
        return [read[place - low] for place in places]

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Yield ``(query part, rest)`` as the splitter made them, decoded."""
        if self._component.definition["splitter"] is None:
            raise InvalidInputError(
                f"The validation set {self._component.id!r} was created without splitter=: it has no pairs."
            )
        codec = self._workspace.codec
        for row in self._store.documents(self._component):
            query, rest = codec.decode(row["split"])
            yield query, rest

    def _documents(self, skip: int = 0, limit: int = 0) -> Iterator[dict[str, Any]]:
        codec = self._workspace.codec
        for row in self._store.documents(self._component, skip, limit):
            yield codec.decode(row["document"])

    def __repr__(self) -> str:
        version = f", version {self._component.version}" if self._component.version > 1 else ""
        return f"<validation set {self._component.id!r}: {len(self)} documents{version}>"
