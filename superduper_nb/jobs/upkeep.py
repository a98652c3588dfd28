"""What is kept up to date in a collection, and the plan of a write: which jobs follow from it, in which order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from superduper_nb.components.store import Component, ComponentStore
from superduper_nb.jobs.values import NewJob
from superduper_nb.jobs.watchers import Watcher, plan

__all__ = ["DOWNLOAD", "WHOLE_COLLECTION", "Neighbourhood", "Step", "Upkeep", "Work", "new_jobs", "upkeep_of"]

DOWNLOAD: Final = "download"
Work = tuple[dict[str, Any], int | None]
"""What a job has to do (see `NewJob`), and how many documents that are, where known."""
WHOLE_COLLECTION: Final[Work] = {"ids": ["whole collection"]}, None
"""The work of a job that finds out by itself what there is to do."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """A list of the nearest that is kept up to date in each document.

    Attributes
    ----------
    watcher : str
        Whose outputs are the vectors.
    filtered : bool
        The semantic index has a filter, so that any change may move a document in or out.
    """

    id: str
    index: str
    watcher: str
    filtered: bool

    @property
    def name(self) -> str:
        """What its jobs are called."""
        return f"neighbours {self.id}"


@dataclass(frozen=True, slots=True)
class Step:
    """A job of a plan.

    Attributes
    ----------
    before : tuple of str
        The names of the steps that it waits for.
    """

    kind: str
    name: str
    component: str
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Upkeep:
    """The watchers and neighbourhoods of a collection."""

    watchers: tuple[Watcher, ...] = ()
    neighbourhoods: tuple[Neighbourhood, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.watchers or self.neighbourhoods)

    def steps(self, changed: Collection[str] | None = None, content: Collection[str] | None = ()) -> list[Step]:
        """Order the jobs that follow from a write: downloads, watchers, neighbours; each once, after all its parents.

        Parameters
        ----------
        changed : collection of str, optional
            The paths that the write changed; None stands for whole documents.
        content : collection of str, optional
            Where there is something to be fetched; None stands for anywhere.
        """
        fetch = content is None or len(content) > 0
        steps = [Step(DOWNLOAD, DOWNLOAD, "")] if fetch else []
        changed = None if changed is None or content is None else {*changed, *content}
        for watcher, before in plan(self.watchers, changed):
            waits = (*before, DOWNLOAD) if fetch and watcher.reads(content) else before
            steps.append(Step("outputs", watcher.id, watcher.id, waits))
        return steps + self.neighbours({step.name for step in steps})

    def neighbours(self, planned: Collection[str]) -> list[Step]:
        """List the steps that revise neighbourhoods, behind the watchers that are planned."""
        return [
            Step("neighbours", each.name, each.id, (each.watcher,) if each.watcher in planned else ())
            for each in self.neighbourhoods
            if each.filtered or each.watcher in planned
        ]

    def upon(self, index: str) -> list[str]:
        """List the neighbourhoods of a semantic index."""
        return [each.id for each in self.neighbourhoods if each.index == index]

    def after_delete(self) -> list[Step]:
        """List the jobs that follow from a deletion."""
        return [Step("neighbours", each.name, each.id) for each in self.neighbourhoods]


def upkeep_of(store: ComponentStore, collection: str) -> Upkeep:
    """Read what is kept up to date in a collection."""
    found = store.current("watcher", "neighbourhood", "semantic_index", collection=collection)
    indexes = {component.id: component for component in found if component.kind == "semantic_index"}
    return Upkeep(
        tuple(Watcher.from_component(component) for component in found if component.kind == "watcher"),
        tuple(
            _neighbourhood(component, indexes[name])
            for component in found
            if component.kind == "neighbourhood" and (name := component.definition["semantic_index"]) in indexes
        ),
    )


def _neighbourhood(component: Component, index: Component) -> Neighbourhood:
    watcher = f"{index.definition['models'][0]}/{index.definition['keys'][0]}"
    return Neighbourhood(component.id, index.id, watcher, bool(index.definition["filter"]))


def new_jobs(
    steps: Sequence[Step],
    collection: str,
    work: Mapping[str, Work],
    *,
    known: Mapping[str, NewJob] | None = None,
    parents: Sequence[str] = (),
) -> dict[str, NewJob]:
    """Make the jobs of a plan, by name.

    Parameters
    ----------
    work : mapping of str to Work
        For each kind, what a job of it has to do.
    known : mapping of str to NewJob, optional
        Other jobs that steps may wait for.
    parents : sequence of str
        Jobs that all of them wait for.
    """
    new: dict[str, NewJob] = {}
    for step in steps:
        before = [({**(known or {}), **new})[name].id for name in step.before]
        given, total = work[step.kind]
        new[step.name] = NewJob(step.kind, step.name, collection, step.component, given, total, (*parents, *before))
    return new
