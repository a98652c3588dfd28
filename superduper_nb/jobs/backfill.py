"""Jobs over all documents there are: after a registration, or a new version of a model."""

from __future__ import annotations

from collections.abc import Sequence

from bson import json_util

from superduper_nb.components import Component, ComponentStore
from superduper_nb.jobs.records import JobStore, NewJob
from superduper_nb.jobs.watchers import Watcher, plan

__all__ = ["backfill", "dependents", "watchers_of"]


def watchers_of(store: ComponentStore, collection: str) -> list[Watcher]:
    """List the watchers of a collection."""
    return [Watcher.from_component(component) for component in store.current("watcher", collection=collection)]


def dependents(store: ComponentStore, model: Component | str) -> list[Watcher]:
    """List the watchers that apply a model or read its outputs, upstream first, in every collection."""
    name = model if isinstance(model, str) else model.id
    found: list[Watcher] = []
    collections = {component.collection for component in store.current("watcher")}
    for collection in sorted(collections):
        reached: set[str] = set()
        for watcher, before in plan(watchers_of(store, collection)):
            if watcher.model == name or reached & set(before):
                reached.add(watcher.id)
                found.append(watcher)
    return found


def backfill(jobs: JobStore, watchers: Sequence[Watcher], parents: Sequence[str] = ()) -> dict[tuple[str, str], NewJob]:
    """Record the jobs that compute watchers' outputs for all documents there are.

    Parameters
    ----------
    jobs : JobStore
        Of the database.
    watchers : sequence of Watcher
        Each after those it reads from.
    parents : sequence of str
        Jobs that must succeed first.

    Returns
    -------
    dict of (str, str) to NewJob
        By collection and watcher.
    """
    made: dict[tuple[str, str], NewJob] = {}
    for watcher in watchers:
        work = {"filter": json_util.dumps(dict(watcher.filter), json_options=json_util.CANONICAL_JSON_OPTIONS)}
        documents = jobs.database[watcher.collection]
        total = documents.count_documents(watcher.filter) if watcher.filter else documents.estimated_document_count()
        if not total:
            continue
        place = watcher.collection
        before = [made[place, name].id for name in sorted(watcher.upstream) if (place, name) in made]
        new = NewJob("outputs", watcher.id, place, watcher.id, work, total, (*parents, *before))
        jobs.create([new])
        made[place, watcher.id] = new
    return made
