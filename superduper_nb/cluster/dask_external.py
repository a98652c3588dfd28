"""A Dask cluster that somebody else started: connected to with its certificates, and only where it runs our code."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import ServiceError

if TYPE_CHECKING:
    from distributed import Client, WorkerPlugin
    from distributed.security import Security

__all__ = ["TIMEOUT_S", "Newcomers", "connect", "hand_over"]

TIMEOUT_S: Final = 20.0
_PACKAGES: Final[Sequence[str]] = ("distributed", "superduper-nb")
_HANDED: Final = "superduper-nb-environment"


def connect(address: str, tls: Mapping[str, str] | None = None) -> Client:
    """Connect to a scheduler.

    Parameters
    ----------
    address : str
        ``tls://host:port`` or ``tcp://host:port``.
    tls : mapping of str to str, optional
        Files, by `distributed.security.Security`'s names: ``tls_ca_file``, ``tls_client_cert``, ``tls_client_key``.
        Default: those of the Dask configuration.

    Raises
    ------
    ServiceError
        It does not answer, its certificates don't match ours, or it runs other versions.
    """
    from distributed import Client

    security = _security(address, tls)
    try:
        asyncio.run(_greet(address, security))
        client = Client(address, security=security, timeout=TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        reason = str(error.__cause__ or error) if "tls" in address else ""
        raise ServiceError(
            f"The Dask scheduler {address} does not answer ({type(error).__name__}{': ' if reason else ''}{reason})."
        ) from error
    try:
        _check_versions(client, address)
    except BaseException:
        client.close(timeout=2)
        raise
    return client


def hand_over(client: Client, address: str, environment: Mapping[str, str]) -> None:
    """Set environment variables in each worker, those too that join later, before they get work.

    They pass through the scheduler, which keeps them: over TLS only, where certificates say who it is and who asks.

    Raises
    ------
    ServiceError
        A worker has another value of one already: it belongs to somebody else.
    """
    if not environment or not address.startswith("tls://"):
        return
    for worker, digests in client.run(_held, list(environment)).items():
        for name, digest in digests.items():
            if digest not in (None, _digest(environment[name])):
                raise ServiceError(
                    f"Worker {worker} has another {name} than this process: that of another installation. Give both "
                    "the same (see docs/jobs.md), or restart the workers."
                )
    client.register_plugin(_handing(dict(environment)), name=_HANDED)


def _held(names: Sequence[str]) -> dict[str, str | None]:
    values = {name: os.environ.get(name) for name in names}
    return {name: None if value is None else _digest(value) for name, value in values.items()}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _handing(environment: dict[str, str]) -> WorkerPlugin:
    from distributed import WorkerPlugin

    # A class of no module is pickled whole: a worker without our code, which may be there for others, has it, too.
    class Handing(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            import os

            os.environ.update(environment)

    return Handing()


class Newcomers:
    """Whether workers run our code that joined a cluster after we did: Dask says when one comes.

    Parameters
    ----------
    client : distributed.Client
        The connection.
    address : str
        Of the scheduler, for messages.
    """

    def __init__(self, client: Client, address: str) -> None:
        self._client, self._address = client, address
        self._unchecked = threading.Event()
        self._unchecked.set()  # some may have come since we connected
        client.subscribe_topic("all", self._heard)

    def _heard(self, event: tuple[float, Any]) -> None:
        if isinstance(event[1], dict) and event[1].get("action") == "add-worker":
            self._unchecked.set()

    def check(self, *, again: bool = False) -> None:
        """Raise `ServiceError` while one that came runs other code; `again` asks all of them whoever came."""
        if again or self._unchecked.is_set():
            self._unchecked.clear()
            try:
                _check_versions(self._client, self._address)
            except BaseException:
                self._unchecked.set()
                raise


def _security(address: str, tls: Mapping[str, str] | None) -> Security:
    from distributed.security import Security

    try:
        security = Security(require_encryption=True, **tls) if tls else Security()
        arguments = security.get_connection_args("client")
    except OSError as error:
        files = ", ".join(tls.values()) if tls else "of the Dask configuration"
        raise ServiceError(f"The certificates for {address} ({files}) can't be used: {error}.") from error
    if address.startswith("tls://") and arguments.get("ssl_context") is None:
        raise ServiceError(
            f"{address} wants certificates and none are named. Set jobs.tls to {{'ca_file', 'cert', 'key'}}, or "
            "distributed.comm.tls of the Dask configuration."
        )
    return security


async def _greet(address: str, security: Security) -> None:
    """Raise `OSError` unless a Dask scheduler answers there: a client waits for ever for one that never says a word."""
    from distributed.comm.core import connect

    arguments = security.get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=TIMEOUT_S / 2, **arguments), TIMEOUT_S)
    await comm.close()


def _check_versions(client: Client, address: str) -> None:
    """Raise unless scheduler and workers can read what we pickle and run what we name."""
    found: Any = client.sync(client._get_versions, packages=_PACKAGES, callback_timeout=TIMEOUT_S)
    ours = found["client"]["packages"]
    # A scheduler passes tasks on without looking into them, so it needs none of our code.
    places = [("the scheduler", found["scheduler"], _PACKAGES[:1])]
    places += [(f"worker {name}", worker, _PACKAGES) for name, worker in found["workers"].items()]
    for place, theirs, packages in places:
        wrong = list(_differences(ours, (theirs or {}).get("packages") or {}, packages))
        if wrong:
            raise ServiceError(
                f"The Dask cluster {address} runs other code than this process: {place} has {', '.join(wrong)}. "
                "Install the same versions there."
            )


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str], packages: Sequence[str]) -> Iterator[str]:
    python = [".".join(each.get("python", "none").split(".")[:2]) for each in (theirs, ours)]
    if python[0] != python[1]:
        yield f"Python {python[0]} (here {python[1]})"
    for name in packages:
        if theirs.get(name) != ours.get(name):
            yield f"{name} {theirs.get(name) or 'missing'} (here {ours.get(name)})"
