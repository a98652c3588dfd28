"""The one tree of errors.

::

    SuperduperError                 anything this package raises on purpose
    ├── ConfigError                 a setting is wrong: names file, key and what is allowed
    ├── InvalidInputError           an argument is wrong (also a ValueError)
    ├── NotFoundError               no such component, index, job, … (also a LookupError)
    ├── ConflictError               it exists with other content, or is in use
    ├── TrustError                  an artifact is unsigned, foreign or damaged: not loaded
    ├── ModelError                  a model raised, or answered something it must not
    ├── JobFailedError              a job that was waited for did not succeed
    │   └── JobCancelledError
    └── ServiceError                a part of the cluster is not there or does not answer
        ├── MongoUnavailableError
        ├── ServerUnavailableError  the notebook server
        ├── OverloadedError         a queue is full: try again after ``retry_after`` seconds
        └── DeadlineError           it took longer than allowed (also a TimeoutError)

`Interrupted` stands beside it: a ``KeyboardInterrupt`` that says what goes on and what does not.

Each message says what happened, with which value, and what is allowed or how to mend it; no message holds a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import ClassVar

__all__ = [
    "ConfigError",
    "ConflictError",
    "DeadlineError",
    "Interrupted",
    "InvalidInputError",
    "JobCancelledError",
    "JobFailedError",
    "ModelError",
    "MongoUnavailableError",
    "NotFoundError",
    "OverloadedError",
    "ServerUnavailableError",
    "ServiceError",
    "SuperduperError",
    "TrustError",
    "brief",
    "did_you_mean",
    "stoppable",
]


class SuperduperError(Exception):
    """Base class of every error that this package raises on purpose.

    Attributes
    ----------
    code : str
        Stable word for programs; the HTTP API sends it beside the message.
    """

    code: ClassVar[str] = "error"
    short: ClassVar[bool] = True
    """Notebooks show one line; ``%config SuperduperMagics.short_errors = False`` gives the traceback back."""

    def _render_traceback_(self) -> list[str] | None:
        """Tell IPython to show one line; the traceback stays on the exception for ``%debug``."""
        return _one_line(self)


class Interrupted(KeyboardInterrupt):
    """Somebody pressed stop while this package waited or worked."""

    @classmethod
    def waiting_for(cls, job: str) -> Interrupted:
        """Return what tells that only the waiting has ended."""
        return cls(f"job {job} goes on; docs.jobs[{job!r}].cancel() stops it.")

    def _render_traceback_(self) -> list[str] | None:
        """Tell IPython to show one line."""
        return _one_line(self)


@contextmanager
def stoppable(what: str) -> Iterator[None]:
    """Turn a press of the stop button into one line that says `what` was stopped, without the inside of a library."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        raise Interrupted(f"{what} was stopped.") from error


def _one_line(error: BaseException) -> list[str] | None:
    return [f"{type(error).__name__}: {error}"] if SuperduperError.short else None


class ConfigError(SuperduperError):
    """A setting is wrong."""

    code = "config"


class InvalidInputError(SuperduperError, ValueError):
    """An argument is wrong."""

    code = "invalid_input"


class NotFoundError(SuperduperError, LookupError):
    """What was named does not exist."""

    code = "not_found"


class ConflictError(SuperduperError):
    """What exists forbids the request: other content under the name, or something that uses it."""

    code = "conflict"


class TrustError(SuperduperError):
    """An artifact was not made by this installation, or was changed since."""

    code = "untrusted"


class ModelError(SuperduperError):
    """A model raised, or its output can't be used."""

    code = "model"


class JobFailedError(SuperduperError):
    """A job that was waited for did not succeed."""

    code = "job_failed"


class JobCancelledError(JobFailedError):
    """A job that was waited for was cancelled."""

    code = "job_cancelled"


class ServiceError(SuperduperError):
    """A part of the cluster is not there or does not answer."""

    code = "unavailable"


class MongoUnavailableError(ServiceError):
    """MongoDB can't be reached, started or logged into."""

    code = "mongodb_unavailable"


class ServerUnavailableError(ServiceError):
    """The notebook server can't be reached, or lacks the extension."""

    code = "server_unavailable"


class OverloadedError(ServiceError):
    """A bounded queue is full.

    Parameters
    ----------
    message : str
        What is full.
    retry_after : float
        Seconds after which a new try makes sense.
    """

    code = "overloaded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(ServiceError, TimeoutError):
    """It took longer than allowed."""

    code = "deadline"


def brief(error: BaseException) -> str:
    """Return an error's text; of pymongo's without the reply of the server that it repeats in full."""
    return str(error).partition(", full error:")[0]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` or ``Known: 'x', 'y'.`` for the end of a message (empty where nothing is known)."""
    names = sorted(known)
    if close := get_close_matches(given, names, n=1):
        return f" Did you mean {close[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(repr(name) for name in names[:8])
    return f" Known: {shown}{', …' if len(names) > 8 else ''}."
