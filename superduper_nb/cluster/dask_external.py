"""A Dask cluster that somebody else started: connected to with its certificates, and only where it runs our code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import ServiceError

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

__all__ = ["TIMEOUT_S", "connect"]

TIMEOUT_S: Final = 20.0
_PACKAGES: Final[Sequence[str]] = ("distributed", "superduper-nb")


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
