"""What the client keeps for one database: its components, its jobs, the codec for its documents."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from bson import Timestamp
from bson.codec_options import DEFAULT_CODEC_OPTIONS, CodecOptions, TypeRegistry
from pymongo.database import Database
from pymongo.errors import CollectionInvalid, ConnectionFailure

from superduper_nb.client.jobs import Jobs
from superduper_nb.components import Component
from superduper_nb.components.store import COLLECTION
from superduper_nb.documents.codec import Codec
from superduper_nb.documents.types import builtin_types
from superduper_nb.errors import InvalidInputError, ServiceError
from superduper_nb.jobs import JobStore, NewJob
from superduper_nb.jobs.backfill import backfill, dependents, matching
from superduper_nb.jobs.upkeep import DOWNLOAD, WHOLE_COLLECTION, Step, Upkeep, Work, new_jobs, upkeep_of
from superduper_nb.jobs.watchers import Watcher
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
        self.loader = Loader(client._records[name])
        self.store = self.loader.store
        self.jobs = JobStore(client._records[name])
        self.after: Timestamp | None = None
        self.document_bytes: dict[str, float] = {}
        """Of each collection: how large those documents were, on average, that a search read last."""
        self._managed = False
        self._looked = float("-inf")
        self._codecs: dict[Any, Codec] = {}
        self._codecs_read = float("-inf")
        self._unheard = float("-inf")
        """When the cluster did not answer: one that hangs is not waited for again and again."""

    @property
    def services(self) -> Services:
        """The cluster, here or in the notebook server."""
        return self.client.services

    @property
    def managed(self) -> bool:
        """Something is registered in this database. Where nothing is, everything is pymongo's, to the byte."""
        if time.monotonic() - self._looked > _LOOK_EVERY_S and not self.client._closed:
            self._managed, self._looked = self._look(), time.monotonic()
        return self._managed

    def _look(self) -> bool:
        try:
            return _has_components(self.store.database)
        except ConnectionFailure:  # the user's own connections may do; if not, theirs is the error to be seen
            return _has_components(self.client[self.name])

    def takes(self, written: Any, options: CodecOptions[Any]) -> bool:
        """Say whether a write is ours to prepare: something is registered, or it holds what only our types can store.

        By the latter a database becomes ours, too: what is encoded now has to be decoded from now on.
        """
        if self.managed:
            return True
        codec = _builtin()
        if codec.plain(written):
            return False
        if options.type_registry != DEFAULT_CODEC_OPTIONS.type_registry:
            codec = Codec(builtin_types(), leave=_left(options.type_registry))
        try:
            if codec.encode(written) is written:
                return False
        except InvalidInputError:  # what is wrong is pymongo's to say
            return False
        with suppress(CollectionInvalid):  # somebody else did it just now
            self.store.database.create_collection(COLLECTION)
        self.changed()
        return True

    def changed(self) -> None:
        """Note that this client registered or deleted something, and tell the cluster."""
        self._managed, self._looked = True, time.monotonic()
        self._codecs = {}
        if time.monotonic() - self._unheard > _LOOK_EVERY_S:
            self.announce([])

    @property
    def codec(self) -> Codec:
        """A codec that knows the types registered here."""
        return self.codec_beside(DEFAULT_CODEC_OPTIONS)

    def codec_beside(self, options: CodecOptions[Any]) -> Codec:
        """Return a codec that leaves to pymongo the classes that its type registry knows.

        The types are asked for anew now and then: others register some, too.
        """
        if time.monotonic() - self._codecs_read > _LOOK_EVERY_S:
            self._codecs, self._codecs_read = {}, time.monotonic()
        known = self._codecs  # other threads may begin a new one
        registry = options.type_registry
        key = None if registry == DEFAULT_CODEC_OPTIONS.type_registry else id(registry)
        if key not in known:
            loader = self.loader
            known[key] = loader.codec() if key is None else Codec(loader.types(), leave=_left(registry))
        return known[key]

    def reader(self, options: CodecOptions[Any]) -> Callable[[Iterable[Any]], list[Any]] | None:
        """Return what turns stored documents into the user's; None where nothing has to be done."""
        if not self.managed or not issubclass(options.document_class, dict):
            return None
        decode = self.codec.decode

        def read(documents: Iterable[Any]) -> list[Any]:
            batch = list(documents)
            for document in batch:
                document.pop("_sddb", None)
            decoded: list[Any] = decode(batch)  # one look at a whole batch that is plain
            return decoded

        return read

    def mark(self) -> None:
        """Remember the present cluster time: later searches by this client see what was written until now."""
        times = [_cluster_time(self.client), _cluster_time(self.client._records), self.after]
        self.after = max((time for time in times if time is not None), default=None)

    # --- jobs ----------------------------------------------------------------------------------------------------

    def upkeep(self, collection: str) -> Upkeep:
        """Return what is kept up to date in a collection."""
        return upkeep_of(self.store, collection)

    def plan_write(
        self,
        collection: str,
        steps: Sequence[Step],
        ids: Sequence[Any],
        fetching: Sequence[Any] = (),
        session: ClientSession | None = None,
    ) -> dict[str, str]:
        """Record the jobs that follow a write of these documents; return name → job identifier.

        Outside a transaction they are held until `release`: the write is still to come.

        Parameters
        ----------
        fetching : sequence
            The identifiers of those that have something to fetch.
        """
        kinds = {step.kind for step in steps}
        jobs = self._jobs(session)
        work: dict[str, Work] = {"neighbours": WHOLE_COLLECTION}
        if "outputs" in kinds:
            work["outputs"] = jobs.chunks.create(ids, session=session), len(ids)
        if DOWNLOAD in kinds:
            same = "outputs" in work and len(fetching) == len(ids)
            of_its_own = (jobs.chunks.create(fetching, session=session), len(fetching))
            work[DOWNLOAD] = work["outputs"] if same else of_its_own
        new = new_jobs(steps, collection, work)
        jobs.create(list(new.values()), session=session, held=not _in_transaction(session))
        return {name: job.id for name, job in new.items()}

    def release(self, jobs: Collection[str], session: ClientSession | None = None) -> None:
        """Let jobs begin whose write is done."""
        if not _in_transaction(session):
            self.jobs.release(list(jobs))
            self.announce(jobs)

    def started(self, jobs: dict[str, str]) -> Jobs:
        """Have recorded jobs looked at now, and return them as users hold them."""
        self.announce(jobs.values())
        return Jobs(self, jobs)

    def announce(self, jobs: Collection[str]) -> None:
        """Have recorded jobs looked at now. They are found without it, so a server that is away fails no write."""
        try:
            self.services.notify(self.name, list(jobs))
        except ServiceError:
            self._unheard = time.monotonic()

    def backfill(self, watchers: Sequence[Watcher], parents: Sequence[str] = ()) -> dict[str, str]:
        """Record the jobs that compute watchers' outputs for all documents there are, after their parents."""
        jobs = backfill(self.jobs, watchers, parents)
        return _named({place: job.id for place, job in jobs.items()})

    def underway(self, watchers: Sequence[Watcher]) -> dict[str, str]:
        """Return the jobs that compute watchers' outputs for all documents and have not ended: name → identifier."""
        jobs = {(each.collection, each.id): self.jobs.backfilling(each.collection, each.id) for each in watchers}
        return _named({place: id for place, id in jobs.items() if id is not None})

    def fetch(self, collection: str, filter: Mapping[str, Any]) -> dict[str, str]:
        """Record a job that fetches content for the documents that match, where some do."""
        total = self.store.database[collection].count_documents(filter)
        if not total:
            return {}
        job = NewJob(DOWNLOAD, DOWNLOAD, collection, "", matching(filter), total)
        self.jobs.create([job])
        return {job.name: job.id}

    def revise(self, collection: str, neighbourhoods: Collection[str]) -> dict[str, str]:
        """Record the jobs that make neighbourhoods anew, behind all that is under way in the collection."""
        steps = [step for step in self.upkeep(collection).after_delete() if step.component in neighbourhoods]
        parents = self.jobs.active(collection) if steps else ()
        new = new_jobs(steps, collection, {"neighbours": WHOLE_COLLECTION}, parents=parents)
        self.jobs.create(list(new.values()))
        return {name: job.id for name, job in new.items()}

    def _jobs(self, session: ClientSession | None) -> JobStore:
        """Return the job records, by way of the user's connections where a session of those is given."""
        return self.jobs if session is None else JobStore(self.client[self.name])

    def dependents(self, model: Component | str) -> list[Watcher]:
        """List the watchers that apply a model or read its outputs, upstream first, in every collection."""
        return dependents(self.store, model)


@functools.cache
def _builtin() -> Codec:
    return Codec(builtin_types())


def _cluster_time(client: Any) -> Timestamp | None:
    # The newest cluster time that any reply to this client carried; pymongo tells it only of explicit sessions.
    topology = getattr(client, "_topology", None)
    gossip = topology.max_cluster_time() if topology is not None else None
    return gossip["clusterTime"] if gossip else None


def _has_components(database: Database[Any]) -> bool:
    return bool(database.list_collection_names(filter={"name": COLLECTION}, authorizedCollections=True))


def _named(jobs: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Return jobs by what they are called in views: with the collection where there are several."""
    several = len({place for place, _ in jobs}) > 1
    return {f"{name} of {place}" if several else name: id for (place, name), id in jobs.items()}


def _in_transaction(session: ClientSession | None) -> bool:
    return session is not None and session.in_transaction


def _left(registry: TypeRegistry) -> Callable[[type], bool]:
    """Say which classes a type registry encodes; with a fallback encoder, any."""
    return lambda cls: cls in registry._encoder_map or registry._fallback_encoder is not None
