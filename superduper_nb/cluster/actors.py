"""Objects that live in Dask workers, and what becomes of calls to them when their worker is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.cluster.dask import DaskPool, WorkerLostError

if TYPE_CHECKING:
    from distributed import Actor, Client

__all__ = ["NoAnswerError", "RemoteObject"]

_START_TIMEOUT_S: Final = 60.0
_PRIORITY: Final = 100
"""Before jobs that wait."""

_numbers = itertools.count()


class NoAnswerError(WorkerLostError):
    """There is no answer in time. Dask does not say when an actor is lost: it may be that, or the work takes long."""


class RemoteObject:
    """An object in a worker.

    Parameters
    ----------
    pool : DaskPool
        Whose workers; where there is none just now, the object waits for one.
    worker : str or int
        The address of its worker; or any worker, neighbouring numbers in different ones where there are several.
    name : str
        For Dask.
    make : type
        Its class; what is behind it are the arguments.
    """

    def __init__(self, pool: DaskPool, worker: str | int, name: str, make: type, *args: Any, **options: Any) -> None:
        self._client: Client = pool.client()
        wanted = [worker] if isinstance(worker, str) else _counted(sorted(pool.workers()), worker)
        self._future = self._client.submit(
            make,
            *args,
            **options,
            actor=True,
            pure=False,
            key=f"{name}-{next(_numbers)}-{id(self):x}",
            workers=wanted or None,
            allow_other_workers=bool(wanted) and not isinstance(worker, str),
            priority=_PRIORITY,
        )
        self._actor: Actor | None = None

    def call(self, method: str, *args: Any, **options: Any) -> Callable[[float], Any]:
        """Begin a call; return what waits for its result, at most so many seconds.

        Raises
        ------
        WorkerLostError
            From either: the object is gone; a `NoAnswerError` where that is only likely.
        """
        try:
            future = getattr(self._bound(), method)(*args, **options)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise _lost(error) from None

        def result(timeout: float) -> Any:
            try:
                return future.result(timeout)
            except TimeoutError:  # which is an OSError, too
                raise NoAnswerError(f"The worker that holds it has not answered for {timeout:g} s.") from None
            except OSError as error:
                raise _lost(error) from None

        return result

    @property
    def there(self) -> bool:
        """It has been made."""
        return self._actor is not None or bool(self._future.done())

    def _bound(self) -> Actor:
        if self._actor is None:
            with self._client.as_current():  # an actor looks for its client when it is unpacked
                self._actor = self._future.result(timeout=_START_TIMEOUT_S)
        return self._actor

    def release(self) -> None:
        """Let the worker forget it."""
        self._future.release()


def _counted(workers: list[str], number: int) -> list[str]:
    return [workers[number % len(workers)]] if workers else []


def _lost(error: Exception) -> WorkerLostError:
    return WorkerLostError(f"The worker that held it is gone ({type(error).__name__}).")
