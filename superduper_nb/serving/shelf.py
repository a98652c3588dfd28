"""Models in memory: loaded on first use, the least recently used one dropped when the memory budget is exceeded."""

from __future__ import annotations

import ctypes
import gc
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, NamedTuple

import psutil

from superduper_nb.errors import ModelError, NotFoundError, SuperduperError
from superduper_nb.models import ItemError
from superduper_nb.serving.values import Current, Errors, Load, LoadedModel, Predicts

__all__ = ["Entry", "Shelf", "apply", "resident_bytes", "whole"]

log = logging.getLogger(__name__)

_ASK_AGAIN_S: Final = 5.0
_SLOW_S: Final = 0.003


class Entry(NamedTuple):
    """A loaded model and what is said about it."""

    predictor: Predicts
    about: LoadedModel


class Key(NamedTuple):
    """A model in a version."""

    database: str
    model: str
    version: int


class Shelf:
    """The loaded models of this process. Not thread-safe.

    Parameters
    ----------
    load, current : callable
        See `superduper_nb.serving.values`.
    memory : int, optional
        Resident bytes of the process above which the least recently used models are dropped. Default: none are.
    beside : bool, default False
        Where a compiled model has a new version, load that in a thread and go on with the old one until it is there:
        compiling takes up to a minute.
    """

    def __init__(self, load: Load, current: Current, *, memory: int | None = None, beside: bool = False) -> None:
        self._load, self._current, self._memory = load, current, memory
        self._entries: dict[Key, Entry] = {}  # the most recently used is last
        self._newest: dict[tuple[str, str], int] = {}
        self._coming: dict[Key, Future[Entry]] = {}  # new versions of compiled models
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="superduper-load") if beside else None
        self._slow: set[tuple[str, str]] = set()  # models whose last batch took longer than asking for their version
        self._ask_at = 0.0

    def get(self, database: str, model: str, version: int | None) -> Entry:
        """Return a model in a version (None: the newest).

        Raises
        ------
        NotFoundError
            There is no such model or version.
        ModelError
            It can't be loaded.
        """
        key = Key(database, model, self._newest_version(database, model) if version is None else version)
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._entries[key] = entry
            return entry
        coming = self._coming.pop(key, None)
        entry = self._entries[key] = coming.result() if coming and coming.done() else self._loaded(*key)
        self._shrink()
        return entry

    def may_go_ahead(self, entry: Entry) -> bool:
        """Say whether a model's next batch may run in this version while somebody asks whether that is the newest.

        It may where the model is slow: asking first costs a millisecond once it has emptied the processor's caches. Not
        while a newer version is coming: the answer is known.
        """
        about = entry.about
        name = (about.database, about.model)
        coming = any(key[:2] == name for key in self._coming)
        return name in self._slow and self._newest.get(name) == about.version and not coming

    def apply(self, entry: Entry, requests: Sequence[list[Any]]) -> list[list[Any] | ModelError]:
        """Run the inputs of several requests as one batch; see `apply`."""
        begun, name = time.monotonic(), (entry.about.database, entry.about.model)
        outputs = apply(entry.predictor, requests)
        (self._slow.add if time.monotonic() - begun > _SLOW_S else self._slow.discard)(name)
        return outputs

    def unload(self, database: str, model: str) -> None:
        """Drop every version of a model. Harmless where it is not loaded."""
        for key in [key for key in self._coming if key[:2] == (database, model)]:
            self._coming.pop(key).cancel()
        self._forget(database, model)

    def clear(self) -> None:
        """Drop every model, and look once for what they leave behind: that means a look at all objects there are."""
        for key in list(self._coming):
            self._coming.pop(key).cancel()
        self._newest.clear()
        self._slow.clear()
        self._drop(list(self._entries))

    def _forget(self, database: str, model: str) -> None:
        self._newest.pop((database, model), None)
        self._slow.discard((database, model))
        self._drop([key for key in self._entries if key[:2] == (database, model)])

    def models(self) -> list[LoadedModel]:
        """List what is loaded, the least recently used first."""
        return [entry.about for entry in self._entries.values()]

    def _newest_version(self, database: str, model: str) -> int:
        known = self._newest.get((database, model))
        if known is not None and time.monotonic() < self._ask_at:
            return known
        try:
            version = self._current(database, model)
        except NotFoundError:
            self.unload(database, model)
            raise
        except Exception as error:
            if known is None:
                raise
            self._ask_at = time.monotonic() + _ASK_AGAIN_S  # or each batch would wait for a database that is away
            log.warning("Serving %s.%s version %d: can't ask for a newer one (%s)", database, model, known, error)
            return known
        if known is not None and known != version:
            if self._is_coming(Key(database, model, known), version):
                return known
            self._forget(database, model)  # before the new one is loaded: the two may not fit together
        self._newest[database, model] = version
        return version

    def _is_coming(self, old: Key, version: int) -> bool:
        """Say whether a version is being loaded beside a compiled one."""
        entry, new = self._entries.get(old), old._replace(version=version)
        if self._thread is None or entry is None or not getattr(entry.predictor, "compiled", False):
            return False
        if new in self._entries:  # somebody asked for it by its number
            return False
        for other in [key for key in self._coming if key[:2] == old[:2] and key != new]:
            self._coming.pop(other).cancel()  # registered anew before it was ready
        if new not in self._coming:
            self._coming[new] = self._thread.submit(self._loaded, *new)
        return not self._coming[new].done()

    def _loaded(self, database: str, model: str, version: int) -> Entry:
        before = resident_bytes()
        try:
            predictor, got = self._load(database, model, version)
        except SuperduperError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"Model {model!r} version {version} can't be loaded: {ItemError.of(error)}") from error
        _give_back()  # the bytes that it was read from count, too
        return Entry(predictor, LoadedModel(database, model, got, max(0, resident_bytes() - before)))

    def _shrink(self) -> None:
        while self._memory and len(self._entries) > 1 and resident_bytes() > self._memory:
            oldest = next(iter(self._entries))
            log.info("Dropping %s.%s version %d: over the memory budget", *oldest)
            self._drop([oldest])

    def _drop(self, keys: list[Key]) -> None:
        for key in keys:
            del self._entries[key]
        if keys:
            gc.collect()
            _give_back()


def _give_back() -> None:
    """Give pages that are free back to the system."""
    with suppress(OSError, AttributeError):  # only glibc can
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Return the memory that this process occupies."""
    return int(psutil.Process().memory_info().rss)


def apply(predictor: Predicts, requests: Sequence[list[Any]]) -> list[list[Any] | ModelError]:
    """Run the inputs of several requests as one batch; a request that makes the model raise fails alone."""
    inputs = [x for request in requests for x in request]
    try:
        outputs = predictor.predict_many(inputs)
        if len(outputs) != len(inputs):
            raise ModelError(f"it answered {len(outputs)} outputs to {len(inputs)} inputs")
    except (Exception, SystemExit) as error:
        if len(requests) == 1:
            return [ModelError(f"The model failed: {ItemError.of(error)}")]
        return [answer for request in requests for answer in apply(predictor, [request])]
    rows = iter(outputs)
    return [[next(rows) for _ in request] for request in requests]


def whole(outputs: list[Any] | ModelError, errors: Errors) -> list[Any]:
    """Return the outputs to one request; raise `ModelError` where there are none, or where not one may be missing."""
    if isinstance(outputs, ModelError):
        raise outputs
    failed = [i for i, output in enumerate(outputs) if isinstance(output, ItemError)]
    if not failed or errors == "return":
        return outputs
    total = len(outputs)
    where = "this input" if total == 1 else f"{len(failed)} of {total} inputs, first on inputs[{failed[0]}]"
    raise ModelError(f"The model failed on {where}: {outputs[failed[0]]}")
