"""What the client keeps for one database: its components, its jobs, the codec for its documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from bson import Timestamp, json_util

from superduper_nb.components import Component
from superduper_nb.documents.codec import Codec
from superduper_nb.jobs import JobStore, NewJob
from superduper_nb.jobs.watchers import Watcher, plan
from superduper_nb.models import Loader

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from superduper_nb.client.client import Client
    from superduper_nb.services import Services

__all__ = ["Workspace"]

_LOOK_EVERY_S: Final = 1.0


class Workspace:
    """The package's side of one database.

    Parameters
    ----------
    client : Client
        Whose database.
    name : str
        Which one.
    """

    def __init__(self, client: Client[Any], name: str) -> None:
        self.client, self.name = client, name
        self.loader = Loader(client[name])
        self.store = self.loader.store
        self.jobs = JobStore(client[name])
        self.after: Timestamp | None = None
        self._managed = False
        self._looked = float("-inf")
        self._codec: Codec | None = None
        self._codec_read = float("-inf")

    @property
    def services(self) -> Services:
        """The cluster, here or in the notebook server."""
        return self.client.services

    @property
    def managed(self) -> bool:
        """Something is registered in this database. Where nothing is, everything is pymongo's, to the byte."""
        if not self._managed and time.monotonic() - self._looked > _LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._managed = self.store.exists()
        return self._managed

    def changed(self) -> None:
        """Note that this client registered something."""
        self._managed, self._codec = True, None

    @property
    def codec(self) -> Codec:
        """A codec that knows the types registered here; asked for anew now and then, others register types too."""
        if self._codec is None or time.monotonic() - self._codec_read > _LOOK_EVERY_S:
            self._codec, self._codec_read = self.loader.codec(), time.monotonic()
        return self._codec

    def reader(self, document_class: type) -> Callable[[Any], Any] | None:
        """Return what turns a stored document into the user's; None where nothing has to be done."""
        if not self.managed or not issubclass(document_class, dict):
            return None
        decode = self.codec.decode

        def read(document: Any) -> Any:
            document = decode(document)
            document.pop("_sddb", None)
            return document

        return read

    def mark(self) -> None:
        """Remember the present cluster time: later searches by this client see what was written until now."""
        self.after = _cluster_time(self.client) or self.after

    # --- jobs ----------------------------------------------------------------------------------------------------

    def watchers(self, collection: str) -> list[Watcher]:
        """List the watchers of a collection."""
        return [Watcher.from_component(component) for component in self.store.current("watcher", collection=collection)]

    def plan_ids(
        self,
        collection: str,
        ids: Sequence[Any],
        changed: Collection[str] | None = None,
        session: ClientSession | None = None,
    ) -> dict[str, str]:
        """Record the jobs that follow a write of these documents; return name → job identifier."""
        planned = plan(self.watchers(collection), changed) if ids else []
        if not planned:
            return {}
        return self._record(planned, self.jobs.create_batch(ids, session=session), len(ids), session)

    def backfill(self, watchers: Sequence[Watcher]) -> dict[str, str]:
        """Record the jobs that compute watchers' outputs for all documents there are."""
        jobs: dict[str, str] = {}
        for watcher in watchers:
            work = {"filter": json_util.dumps(dict(watcher.filter), json_options=json_util.CANONICAL_JSON_OPTIONS)}
            documents = self.store.database[watcher.collection]
            total = (
                documents.count_documents(watcher.filter) if watcher.filter else documents.estimated_document_count()
            )
            if total:
                parents = tuple(job for name, job in jobs.items() if name in watcher.upstream)
                new = NewJob("outputs", watcher.id, watcher.collection, watcher.id, work, total, parents)
                self.jobs.create([new])
                jobs[watcher.id] = new.id
        return jobs

    def _record(
        self,
        planned: Sequence[tuple[Watcher, tuple[str, ...]]],
        work: dict[str, Any],
        total: int,
        session: ClientSession | None,
    ) -> dict[str, str]:
        new: dict[str, NewJob] = {}
        for watcher, before in planned:
            parents = tuple(new[name].id for name in before)
            new[watcher.id] = NewJob("outputs", watcher.id, watcher.collection, watcher.id, work, total, parents)
        self.jobs.create(list(new.values()), session=session)
        return {name: job.id for name, job in new.items()}

    def dependents(self, model: Component) -> list[Watcher]:
        """List the watchers that apply a model or read its outputs, upstream first, in every collection."""
        found: list[Watcher] = []
        collections = {component.collection for component in self.store.current("watcher")}
        for collection in sorted(collections):
            reached: set[str] = set()
            for watcher, before in plan(self.watchers(collection)):
                if watcher.model == model.id or reached & set(before):
                    reached.add(watcher.id)
                    found.append(watcher)
        return found


def _cluster_time(client: Any) -> Timestamp | None:
    # The newest cluster time that any reply to this client carried; pymongo tells it only of explicit sessions.
    topology = getattr(client, "_topology", None)
    gossip = topology.max_cluster_time() if topology is not None else None
    return gossip["clusterTime"] if gossip else None
