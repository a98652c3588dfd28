"""``connect``, ``connections``, ``use`` and ``status``."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from superduper_nb.errors import InvalidInputError, SuperduperError
from superduper_nb.magics.call import Call
from superduper_nb.magics.command import Command, name_argument
from superduper_nb.magics.line import Parser
from superduper_nb.magics.session import DEFAULT, Connection, Target
from superduper_nb.widgets.listing import Listing, Note
from superduper_nb.widgets.live import Live
from superduper_nb.widgets.status import Status

__all__ = ["COMMANDS", "connect", "connections", "live_option", "status", "use"]


def connect(call: Call) -> Note:
    """Connect to the cluster, or make another connection the current one."""
    connection = call.connections.open(call.args.name or call.args.on or DEFAULT, _settings(call))
    return Note(f"connected as {connection.name!r}: {_told(connection)}")


def _settings(call: Call) -> dict[str, Any]:
    """Return the arguments of :func:`superduper_nb.connect` that the line stands for."""
    settings: dict[str, Any] = {}
    if call.args.url:
        settings |= _address(call.args.url)
    if call.args.config:
        settings["config"] = call.args.config
    if call.args.local:
        settings["remote"] = False
    return settings


def _address(url: str) -> dict[str, Any]:
    """Return what a URL stands for; one that carries a secret is refused, since the notebook would keep it."""
    try:
        parts = urlsplit(url)
        secret = "@" in parts.netloc or "token" in parse_qs(parts.query)
    except ValueError:
        raise InvalidInputError("that is no URL: http://host:8888/ or mongodb://host:27017/ are.") from None
    if secret:
        raise InvalidInputError(
            "a password or token on the line stays in the notebook and its history: put it into SUPERDUPER_TOKEN, "
            "SUPERDUPER_MONGODB__URI or config.json (--config), and change the one you typed."
        )
    if parts.scheme in ("mongodb", "mongodb+srv"):
        return {"mongodb": {"uri": url}}
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidInputError(f"{url!r} is no URL of a notebook server: write http://host:8888/, or mongodb://host/.")
    return {"url": url}


def _told(connection: Connection) -> str:
    mongodb = connection.client.status().get("components", {}).get("mongodb", {})
    version, where = mongodb.get("version", ""), mongodb.get("where", "")
    return f"{connection.client.how}; MongoDB {version} at {where}".replace("  ", " ")


def connections(call: Call) -> Listing:
    """List the open connections; ``--close`` closes one."""
    if call.args.close:
        call.connections.get(call.args.close)
        call.connections.close(call.args.close)
    rows = (
        {
            "name": connection.name,
            "current": "●" if connection is call.connections.current else "",
            "in use": str(connection.target or ""),
            "variable": connection.alias,
            "cluster": connection.client.how,
        }
        for connection in call.connections
    )
    return Listing(rows, empty="no connection: %sddb connect")


def use(call: Call) -> Note:
    """Choose the database and collection that the other sub-commands mean; ``--as`` binds it to a variable."""
    target, connection = Target.parse(call.args.chosen), call.connection
    database = connection.client[target.database]
    chosen = database[target.collection] if target.collection else database
    count = database[target.collection].estimated_document_count() if target.collection else None
    if target.collection:
        _expect_searches(connection, target)
    connection.target, connection.alias = target, call.args.alias or ""
    if call.args.alias:
        call.bindings[call.args.alias] = chosen
    told = f"{call.args.alias} = {target}" if call.args.alias else f"using {target}"
    documents = "" if count is None else f": {count:,} document{'' if count == 1 else 's'}"
    return Note(told + documents)


def _expect_searches(connection: Connection, target: Target) -> None:
    """See that indexes, and the models that encode their queries, are on their way into memory."""
    client = connection.client
    with suppress(SuperduperError):  # the first search tells what is wrong with one of them
        for index in client[target.database][target.collection].semantic_indexes:
            client.services.describe_index(target.database, target.collection, index)


def status(call: Call) -> Status | Live:
    """Show each part of the cluster: where it runs, its version, its state; ``--live`` keeps it as it is now."""
    connection = call.connection

    def look() -> Status:
        return Status(connection.client.status(), connection=connection.name, how=connection.client.how)

    return Live(look, "status") if call.args.live else look()


def live_option(parser: Parser) -> None:
    """Add ``--live``."""
    parser.add_argument("--live", action="store_true", help="keep it up to date, until it is stopped")


def _connect_options(parser: Parser) -> None:
    parser.add_argument("url", nargs="?", help="a notebook server, or mongodb://…; default: this notebook's own server")
    parser.add_argument("--name", type=_connection_name, metavar="NAME", help=f"call it so; default: {DEFAULT!r}")
    parser.add_argument("--config", metavar="PATH", help="a config.json")
    parser.add_argument("--local", action="store_true", help="everything in this process, jobs in the foreground")


def _connection_name(text: str) -> str:
    if not text.replace("-", "_").isidentifier():
        raise argparse.ArgumentTypeError(f"a connection can't be named {text!r}: use letters, digits, '_' and '-'")
    return text


def _connections_options(parser: Parser) -> None:
    parser.add_argument("--close", metavar="NAME", help="close this one")


def _use_options(parser: Parser) -> None:
    parser.add_argument("chosen", metavar="DATABASE.COLLECTION", help="what to use; a database alone is allowed")
    parser.add_argument("--as", dest="alias", type=name_argument, metavar="VARIABLE", help="bind it to this variable")


_CONNECT: Final = """
  %sddb connect                                    # the server this notebook runs in, else this process
  %sddb connect --name lab --config lab.json
  %sddb connect mongodb://localhost:27017 --local""".lstrip("\n")

COMMANDS: Final = (
    Command(
        "connect",
        connect,
        "connect to the cluster",
        _connect_options,
        examples=_CONNECT,
        twins=("sd.connect()",),
    ),
    Command(
        "connections",
        connections,
        "list the open connections",
        _connections_options,
        twins=("superduper_nb.magics.session.CONNECTIONS",),
    ),
    Command(
        "use",
        use,
        "choose database and collection",
        _use_options,
        examples="  %sddb use shop.products --as docs",
        twins=('client["shop"]["products"]',),
    ),
    Command(
        "status",
        status,
        "show each part of the cluster",
        live_option,
        twins=("client.status()",),
    ),
)
