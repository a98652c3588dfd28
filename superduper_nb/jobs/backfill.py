"""Jobs over all documents there are: after a registration, or a new version of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bson import json_util

from superduper_nb.components import Component, ComponentStore
from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.upkeep import WHOLE_COLLECTION, new_jobs, upkeep_of
from superduper_nb.jobs.values import NewJob
from superduper_nb.jobs.watchers import Watcher, plan

__all__ = ["backfill", "dependents", "matching"]


def matching(filter: Mapping[str, Any]) -> dict[str, Any]:
    """Return the work of a job over all documents that match a filter."""
    return {"filter": json_util.dumps(dict(filter), json_options=json_util.CANONICAL_JSON_OPTIONS)}


def dependents(store: ComponentStore, model: Component | str) -> list[Watcher]:
    """List the watchers that apply a model or read its outputs, upstream first, in every collection."""
    name = model if isinstance(model, str) else model.id
    found: list[Watcher] = []
    collections = {component.collection for component in store.current("watcher")}
    for collection in sorted(collections):
        reached: set[str] = set()
        for watcher, before in plan(upkeep_of(store, collection).watchers):
            if watcher.model == name or reached & set(before):
                reached.add(watcher.id)
                found.append(watcher)
    return found


def backfill(jobs: JobStore, watchers: Sequence[Watcher], parents: Sequence[str] = ()) -> dict[tuple[str, str], NewJob]:
    """Record the jobs that compute watchers' outputs for all documents there are, and revise neighbourhoods of them.

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
        By collection and name.
    """
    made: dict[tuple[str, str], NewJob] = {}
    for watcher in watchers:
        documents = jobs.database[watcher.collection]
        total = documents.count_documents(watcher.filter) if watcher.filter else documents.estimated_document_count()
        if not total:
            continue
        place = watcher.collection
        before = [made[place, name].id for name in sorted(watcher.upstream) if (place, name) in made]
        made[place, watcher.id] = NewJob(
            "outputs", watcher.id, place, watcher.id, matching(watcher.filter), total, (*parents, *before)
        )
    store = ComponentStore(jobs.database)
    for place in {place for place, _ in made}:
        known = {name: job for (where, name), job in made.items() if where == place}
        steps = upkeep_of(store, place).neighbours(known)
        after = new_jobs(steps, place, {"neighbours": WHOLE_COLLECTION}, known=known, parents=parents)
        made |= {(place, name): job for name, job in after.items()}
    jobs.create(list(made.values()))
    return made
