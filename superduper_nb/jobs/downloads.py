"""Fetch the content that documents name by URL: the effect of a ``download`` job.

Bytes and errors are written only while the document still names the URL that they are of, and carry it as ``source``.
So a URL that is changed while it is fetched never gets the bytes of the old one, and a part that is done twice finds
nothing to do.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DocumentTooLarge, WriteError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from tenacity.nap import sleep_using_event
from toolz import interleave

from superduper_nb.components.store import plain_database
from superduper_nb.documents.content import CONTENT, find_content, find_downloads, public_url, settled
from superduper_nb.documents.download import DownloadError, DownloadPolicy, fetch
from superduper_nb.jobs.outputs import Control, Outcome
from superduper_nb.search.ids import id_key

__all__ = ["DownloadWork", "with_downloads"]

_ROUNDS: Final = 20
_DOCUMENT_BYTES: Final = 16 * 2**20
_PATIENCE_S: Final = 30.0
"""Who asks to be tried again later than that is not waited for."""
_MARK: Final = b"\x03" + CONTENT.encode() + b"\x00"
"""How a sub-document of that name begins in BSON."""
_WAIT: Final = wait_exponential_jitter(multiplier=0.5, max=8)
_MAJORITY: Final = WriteConcern(w="majority", j=True)


@dataclass(frozen=True, slots=True)
class _Task:
    """One place of one document, and the URL that stood there when it was read."""

    id: Any
    path: str
    url: str


_Results = list[tuple[_Task, str | None]]
"""What became of tasks: an error, empty where it was fetched, None where the document changed meanwhile."""


class DownloadWork:
    """Fetches what documents of one collection still have to fetch.

    Parameters
    ----------
    database : pymongo.database.Database
        Where they are.
    collection : str
        Which collection.
    policy : DownloadPolicy
        What may be fetched, and how politely.
    retry_failed : bool, default False
        Fetch again what failed before.
    """

    def __init__(
        self, database: Database[Any], collection: str, policy: DownloadPolicy, *, retry_failed: bool = False
    ) -> None:
        self._documents = plain_database(database)[collection].with_options(write_concern=_MAJORITY)
        self._policy = replace(policy, max_bytes=min(policy.max_bytes, _DOCUMENT_BYTES))
        self._retry_failed = retry_failed

    def run(self, ids: Sequence[Any], control: Control | None = None) -> Outcome:
        """Fetch for these documents; a place that fails says why, in the document and in the outcome."""
        control = control or Control()
        failures: dict[Any, dict[str, Any]] = {}
        left = list(ids)
        for round in range(_ROUNDS):
            tasks, results = self._look(left, retry_failed=self._retry_failed and round == 0)
            for id in left:
                failures.pop(id_key(id), None)
            results += self._fetched(tasks, control)
            left = [task.id for task, error in results if error is None]
            for task, error in results:
                if error:
                    failures.setdefault(id_key(task.id), {"_id": task.id, "error": f"{task.path}: {error}"})
            if not left or control.stopped():
                break
        else:
            why = "it changed each time it was fetched; its next change fetches it"
            failures |= {id_key(id): {"_id": id, "error": why} for id in left}
        return Outcome(len(ids), tuple(failures.values()))

    def condemn(self, id: Any, message: str) -> None:
        """Note that fetching for a document ends the worker each time."""
        for task in self._look([id], retry_failed=True)[0]:
            self._note_failure(task, message)

    def _look(self, ids: list[Any], *, retry_failed: bool) -> tuple[list[_Task], _Results]:
        """Return what is to be fetched, and what failed before, with its error."""
        tasks: list[_Task] = []
        failed: _Results = []
        for document in _with_content(self._documents, ids):
            for path, content in find_content(document):
                task = _Task(document["_id"], path, content["url"])
                if settled(content, "bytes") is not None:
                    continue
                error = settled(content, "error")
                if error is None or retry_failed:
                    tasks.append(task)
                else:
                    failed.append((task, str(error)))
        return tasks, failed

    # --- fetching ------------------------------------------------------------------------------------------------

    def _fetched(self, tasks: list[_Task], control: Control) -> _Results:
        """Fetch in threads, and write; return the result of each task."""
        hosts: defaultdict[str, threading.BoundedSemaphore] = defaultdict(
            lambda: threading.BoundedSemaphore(self._policy.per_host)
        )
        results: _Results = []
        stop = threading.Event()
        executor = ThreadPoolExecutor(self._policy.at_once, thread_name_prefix="superduper-download")
        try:
            started = [executor.submit(self._fetch, same, hosts[host], stop) for host, same in _in_turn(tasks)]
            for future in as_completed(started):
                results += future.result()
                control.tell(len({id_key(task.id) for task, _ in results}))
                if control.stopped():
                    break
        finally:
            stop.set()
            executor.shutdown(wait=len(results) == len(tasks), cancel_futures=True)
        return results

    def _fetch(self, tasks: list[_Task], host: threading.BoundedSemaphore, stop: threading.Event) -> _Results:
        """Fetch one URL, and write it wherever it is wanted."""
        try:
            with host:
                data = self._tried(tasks[0].url, stop)
        except DownloadError as error:
            return [(task, self._note_failure(task, self._said(error))) for task in tasks]
        return [(task, self._write(task, data)) for task in tasks]

    def _said(self, error: DownloadError) -> str:
        full = error.kind == "size" and self._policy.max_bytes == _DOCUMENT_BYTES
        return f"{error} A document holds at most 16 MB." if full else str(error)

    def _tried(self, url: str, stop: threading.Event) -> bytes:
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(self._policy.tries),
            wait=_wait,
            sleep=sleep_using_event(stop),
            reraise=True,
        )
        data: bytes = retrying(fetch, url, policy=self._policy)
        return data

    # --- writing -------------------------------------------------------------------------------------------------

    def _write(self, task: _Task, data: bytes) -> str | None:
        """Put the bytes into the document; return the error, empty for none, None where the URL is another now."""
        at = f"{task.path}.{CONTENT}"
        change = {"$set": {f"{at}.bytes": data, f"{at}.source": task.url}, "$unset": {f"{at}.error": ""}}
        try:
            return "" if self._changed(task, change) else None
        except (DocumentTooLarge, WriteError) as error:
            if isinstance(error, WriteError) and error.code not in _TOO_LARGE:
                raise
            shown = public_url(task.url)
            return self._note_failure(
                task, f"{shown}: with its {len(data)} bytes the document is larger than the 16 MB that MongoDB allows."
            )

    def _note_failure(self, task: _Task, message: str) -> str | None:
        at = f"{task.path}.{CONTENT}"
        change = {"$set": {f"{at}.error": message, f"{at}.source": task.url}, "$unset": {f"{at}.bytes": ""}}
        return message if self._changed(task, change) else None

    def _changed(self, task: _Task, change: dict[str, Any]) -> bool:
        same = {"_id": task.id, f"{task.path}.{CONTENT}.url": task.url}
        return self._documents.update_one(same, change).matched_count == 1


_TOO_LARGE: Final = frozenset((10334, 17419, 17420))
"""BSONObjectTooLarge, and how an update says that its result would be."""


def _in_turn(tasks: Iterable[_Task]) -> Iterator[tuple[str, list[_Task]]]:
    """Yield the tasks of each URL, with its host; one host after the other, so that a slow one holds up nobody."""
    by_host: defaultdict[str, defaultdict[str, list[_Task]]] = defaultdict(lambda: defaultdict(list))
    for task in tasks:
        by_host[_host(task.url)][task.url].append(task)
    yield from interleave([[(host, same) for same in urls.values()] for host, urls in by_host.items()])


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, DownloadError) and error.transient and (error.retry_after or 0) <= _PATIENCE_S


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, DownloadError) else None
    return _WAIT(state) if asked is None else asked


def _with_content(documents: Collection[dict[str, Any]], ids: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    """Read documents, and yield those that hold content; the others are known by their bytes, and not decoded."""
    raw = documents.with_options(documents.codec_options.with_options(document_class=RawBSONDocument))
    for document in raw.find({"_id": {"$in": list(ids)}}):
        if _MARK in document.raw:
            yield bson.decode(document.raw, documents.codec_options)


def with_downloads(documents: Collection[dict[str, Any]], ids: Sequence[Any]) -> tuple[list[Any], set[str]]:
    """Return which of these documents have something to fetch, and in which places."""
    found: list[Any] = []
    places: set[str] = set()
    for document in _with_content(documents, ids):
        if paths := {path for path, _ in find_downloads(document)}:
            found.append(document["_id"])
            places |= paths
    return found, places
