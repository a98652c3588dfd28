"""Watchers as values, and the plan of a write: which of them have work, in which order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from superduper_nb.components.store import Component
from superduper_nb.documents.paths import BASE, output_path, token_path
from superduper_nb.errors import InvalidInputError

__all__ = ["Watcher", "overlap", "plan"]


@dataclass(frozen=True, slots=True)
class Watcher:
    """A model whose outputs on one key of a collection are kept up to date.

    Attributes
    ----------
    filter : Mapping
        Documents outside it are left alone.
    features : Mapping of str to str
        For each of these keys, the output of that model stands in the place of the raw value.
    """

    collection: str
    model: str
    key: str
    filter: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    batch_size: int | None = None

    @property
    def id(self) -> str:
        """``model/key``, unique in the collection."""
        return f"{self.model}/{self.key}"

    @property
    def output_path(self) -> str:
        """Where the outputs are in a document."""
        return output_path(self.key, self.model)

    @property
    def token_path(self) -> str:
        """Where a document notes which model version, and which input, its output belongs to."""
        return token_path(self.model, self.key)

    @property
    def upstream(self) -> set[str]:
        """The watchers whose outputs it reads."""
        return {f"{model}/{key}" for key, model in self.features.items()}

    @classmethod
    def from_component(cls, component: Component) -> Watcher:
        """Build one from its record."""
        return cls(collection=component.collection, **component.definition)

    def definition(self) -> dict[str, Any]:
        """Return what is registered."""
        return {
            "model": self.model,
            "key": self.key,
            "filter": dict(self.filter),
            "features": dict(self.features),
            "batch_size": self.batch_size,
        }

    def reads(self, changed: Collection[str] | None) -> bool:
        """Say whether a change of these paths (None: of everything) can change its outputs."""
        if changed is None or self.key == BASE or self.filter:
            return True
        mine = {self.key, *self.features}
        return any(overlap(path, own) for path in changed for own in mine)


def overlap(a: str, b: str) -> bool:
    """Say whether one of two paths leads to the other, or both are the same."""
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def plan(watchers: Sequence[Watcher], changed: Collection[str] | None = None) -> list[tuple[Watcher, tuple[str, ...]]]:
    """Order the watchers that a write concerns, each once and after those it reads from.

    Parameters
    ----------
    watchers : sequence of Watcher
        All of one collection.
    changed : collection of str, optional
        The paths that the write changed; None stands for whole documents.

    Returns
    -------
    list of (Watcher, tuple of str)
        Each with the identifiers of those before it that it waits for.

    Raises
    ------
    InvalidInputError
        The watchers read from each other in a circle.
    """
    by_id = {watcher.id: watcher for watcher in watchers}
    graph = {watcher.id: watcher.upstream & by_id.keys() for watcher in watchers}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise InvalidInputError(f"These watchers read from each other in a circle: {circle}. Break it.") from None
    planned: dict[str, tuple[str, ...]] = {}
    for id in order:
        before = tuple(sorted(graph[id] & planned.keys()))
        if before or by_id[id].reads(changed):
            planned[id] = before
    return [(by_id[id], before) for id, before in planned.items()]
