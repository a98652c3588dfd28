"""Find the cluster: the kernel's own notebook server, a named one, or this process."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from superduper_nb.client.client import Client
from superduper_nb.cluster.discovery import Server, find_server
from superduper_nb.cluster.mongod import Mongod, connect_options, knock, wrap_uri_errors
from superduper_nb.config import Config
from superduper_nb.errors import ServerUnavailableError
from superduper_nb.models import ItemError
from superduper_nb.remote import Carried, RemoteServices
from superduper_nb.search import SearchReply
from superduper_nb.serving import Prediction

__all__ = ["connect"]


def connect(
    url: str | None = None,
    *,
    token: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    remote: bool | None = None,
    **overrides: Any,
) -> Client[dict[str, Any]]:
    """Connect to the cluster.

    Looks, in this order, at the arguments, the environment (``SUPERDUPER_URL``, ``SUPERDUPER_TOKEN``, …),
    ``config.json``, and for the notebook server that started this kernel. Where there is none, everything runs in this
    process.

    Parameters
    ----------
    url : str, optional
        A Jupyter server with this extension.
    token : str, optional
        Its token.
    config : path or mapping, optional
        A ``config.json``, or its content.
    remote : bool, optional
        False: everything in this process, jobs in the foreground. True: a notebook server, or an error.
    **overrides
        Any other setting, as in ``config.json``.

    Returns
    -------
    Client

    Raises
    ------
    ConfigError
        A setting is wrong.
    ServerUnavailableError
        The notebook server that was asked for does not answer.
    MongoUnavailableError
        MongoDB can't be reached, started or logged into.

    Examples
    --------
    >>> import superduper_nb as sd
    >>> docs = sd.connect(remote=False)["shop"]["products"]                       # doctest: +SKIP
    """
    given = {"url": url, "token": token, "remote": remote, **overrides}
    settings = Config.load(config, **{name: value for name, value in given.items() if value is not None})
    if settings.remote is not False:
        if server := find_server(settings):
            return _through(server, settings)
        if settings.remote:
            raise ServerUnavailableError(
                "No notebook server with this extension was found. Start this notebook from `jupyter lab`, name a "
                "server (url=, token=), or let everything run in this process (remote=False)."
            )
    return _in_process(settings)


def _through(server: Server, settings: Config) -> Client[dict[str, Any]]:
    uri = server.mongodb_uri or settings.mongodb.address()
    if uri is None:
        raise ServerUnavailableError(
            f"The notebook server {server.url} runs on another machine, so this kernel can't read where its MongoDB "
            "is. Set mongodb.uri in config.json or SUPERDUPER_MONGODB__URI."
        )
    with wrap_uri_errors(settings.mongodb.where):
        client: Client[dict[str, Any]] = Client(uri, **connect_options())
    services = RemoteServices(server.url, server.token, carried=_carried(client))
    client._use(services, f"notebook server {server.url} ({server.how})", settings)
    on_cluster = settings.jobs.scheduler is not None or settings.model_server.placement == "cluster"
    client._models_here = server.mongodb_uri is not None and not on_cluster  # it is known where the server is ours
    return client


def _carried(client: Client[dict[str, Any]]) -> Carried[SearchReply, Prediction]:
    return Carried(
        reply=SearchReply,
        prediction=Prediction,
        item_error=ItemError,
        encode=lambda database, value: client._workspace(database).codec.encode(value),
        decode=lambda database, value: client._workspace(database).codec.decode(value),
    )


def _in_process(settings: Config) -> Client[dict[str, Any]]:
    from superduper_nb.services import InProcessServices

    with contextlib.ExitStack() as undo:
        uri = settings.mongodb.address()
        if uri is None:
            uri = undo.enter_context(Mongod.attach(settings.mongodb.data, cache_gb=settings.mongodb.cache_gb)).uri
        with wrap_uri_errors(settings.mongodb.where):
            client: Client[dict[str, Any]] = Client(uri, **connect_options())
            knock(client)
        client._use(
            InProcessServices(client._records, settings),
            "no notebook server: everything runs in this process",
            settings,
            undo.pop_all().close,
        )
    return client
