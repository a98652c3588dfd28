"""How every part of the package connects to MongoDB, and what it says when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from superduper_nb.errors import MongoUnavailableError

if TYPE_CHECKING:
    from pymongo import MongoClient

_LOGIN_REFUSED = {18, 8000}  # AuthenticationFailed, Atlas' own
_UNAUTHORIZED = 13


def connect_options() -> dict[str, Any]:
    """Return the options of each ``MongoClient``: nothing acknowledged is lost, and nobody waits for ever."""
    return {
        "w": "majority",
        "journal": True,
        "wTimeoutMS": 10_000,
        "retryWrites": True,
        "retryReads": True,
        "serverSelectionTimeoutMS": 5_000,
        "connectTimeoutMS": 5_000,
        "appname": "superduper_nb",
    }


def knock(client: MongoClient[Any]) -> None:
    """Raise pymongo's error unless MongoDB answers and lets this client in: a ping is answered to anybody."""
    client.admin.command("listDatabases", nameOnly=True, authorizedDatabases=True)


@contextmanager
def wrap_uri_errors(where: str) -> Iterator[None]:
    """Turn pymongo's errors about a URI, a login or a connection into one line without secrets.

    pymongo quotes the URI it can't read, and with it parts of the password: neither its message nor the chained
    exception is passed on.

    Parameters
    ----------
    where : str
        The address to name, without credentials (``Config.mongodb.where``).
    """
    from pymongo import errors

    try:
        yield
    except errors.OperationFailure as exc:
        if exc.code == _UNAUTHORIZED:
            raise MongoUnavailableError(
                f"MongoDB at {where} wants a login: give mongodb.uri as mongodb://user:password@host:port/."
            ) from None
        if exc.code not in _LOGIN_REFUSED:
            raise
        raise MongoUnavailableError(
            f"MongoDB at {where} refused the login: check user, password and authSource in mongodb.uri."
        ) from None
    except errors.ConnectionFailure as exc:
        raise MongoUnavailableError(
            f"MongoDB at {where} does not answer ({_first_reason(exc)}): is it running, and reachable from here?"
        ) from None
    except (errors.ConfigurationError, ValueError, TypeError) as exc:
        raise MongoUnavailableError(
            f"The MongoDB URI for {where} can't be used ({type(exc).__name__}): it reads mongodb://user:password@host:port/"
            " with user and password percent-encoded (urllib.parse.quote_plus); check the names of its options too."
        ) from None


def _first_reason(exc: Exception) -> str:
    """Return the head of pymongo's message, which goes on with time limits and a picture of the whole topology."""
    return str(exc).split(" (configured", 1)[0].split(", Timeout", 1)[0][:200]
