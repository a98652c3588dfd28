"""What the keeper tells a mongod: where to listen, how to run, which replica set it is and who may log in."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superduper_nb.cluster.mongod_folder import MongodFolder

if TYPE_CHECKING:
    from pymongo import MongoClient

HOST = "127.0.0.1"
REPLICA_SET = "superduper"
USER = "superduper"
PORTS = range(27100, 32000)
"""Below the ports that systems give to outgoing connections, so that the port of a restarting mongod stays free."""

GOSSIP_ROLE = "superduper_gossip"
"""Whose holder's cluster times mongod takes unsigned. It checks signatures by keys that it reads after it has started:
until then, when it takes writes already, requests of clients that saw it before failed (KeyNotFound, 211)."""

USER_NOT_FOUND = 11
ROLE_EXISTS = 51002
NOT_YET_INITIALIZED = 94


class StartError(Exception):
    """mongod was started, and came to nothing."""


def command(binary: Path, folder: MongodFolder, port: int, cache_gb: float) -> list[str]:
    """Return the command line of mongod."""
    options = {
        "dbpath": folder.db,
        "port": port,
        "bind_ip": HOST,
        "replSet": REPLICA_SET,  # change streams and transactions need one, and it keeps acknowledged writes
        "keyFile": folder.keyfile,  # switches access control on
        "oplogMinRetentionHours": 24,
        "wiredTigerCacheSizeGB": cache_gb,
    }
    parameters = {
        "enableLocalhostAuthBypass": 0,  # else any user of this machine could create the first account
        "diagnosticDataCollectionEnabled": 0,
        # Files of dropped collections stay open for so long; by default for five minutes, and mongod ends at its limit.
        "minSnapshotHistoryWindowInSeconds": 5,
    }
    return [
        str(binary),
        *("--noscripting", "--nounixsocket", "--quiet"),
        *(text for name, value in options.items() for text in (f"--{name}", str(value))),
        *(text for name, value in parameters.items() for text in ("--setParameter", f"{name}={value}")),
    ]


def admin_client(port: int, key: str) -> MongoClient[dict[str, Any]]:
    """Log in as mongod itself: that works before there is any other account, and mends whatever is amiss."""
    from pymongo import MongoClient

    return MongoClient(
        host=HOST,
        port=port,
        connect=False,  # its first look at a port that is not open yet would cost half a second
        directConnection=True,
        username="__system",
        password=key,
        authSource="local",
        authMechanism="SCRAM-SHA-256",
        serverSelectionTimeoutMS=5_000,
        socketTimeoutMS=10_000,
    )


def configure(client: MongoClient[dict[str, Any]], port: int) -> bool:
    """Make the server a replica set of one at its present address; return whether it was ready for it."""
    from pymongo.errors import OperationFailure

    address = f"{HOST}:{port}"
    config = client.local["system.replset"].find_one()
    if config is None:
        members = [{"_id": 0, "host": address}]
        client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
    elif config["members"][0]["host"] != address:
        config["members"][0]["host"] = address
        config["version"] += 1
        try:
            client.admin.command("replSetReconfig", config, force=True)
        except OperationFailure as exc:
            if exc.code != NOT_YET_INITIALIZED:  # it still asks at its old port whether whoever listens there is itself
                raise
            return False
    return True


def set_password(client: MongoClient[dict[str, Any]], password: str) -> None:
    """Create our user, or give it the password."""
    from pymongo.errors import OperationFailure

    _ensure_gossip_role(client)
    account: dict[str, Any] = {"pwd": password, "roles": ["root", GOSSIP_ROLE]}
    try:
        client.admin.command("updateUser", USER, **account)
    except OperationFailure as exc:
        if exc.code != USER_NOT_FOUND:
            raise
        client.admin.command("createUser", USER, **account)


def _ensure_gossip_role(client: MongoClient[dict[str, Any]]) -> None:
    from pymongo.errors import OperationFailure

    privilege = {"resource": {"cluster": True}, "actions": ["advanceClusterTime"]}
    try:
        client.admin.command("createRole", GOSSIP_ROLE, privileges=[privilege], roles=[])
    except OperationFailure as exc:
        if exc.code != ROLE_EXISTS:
            raise


def accepts(port: int) -> bool:
    """Return whether somebody listens at the port."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def is_free(port: int) -> bool:
    """Return whether a server could listen at the port."""
    if port not in PORTS:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError:
            return False
    return True


def choose_port(last: int) -> int:
    """Return the last port if that is free, else another, at random so that two users of a machine seldom meet."""
    for port in (last, *random.sample(PORTS, 100)):
        if is_free(port):
            return port
    raise StartError(f"no free port between {PORTS.start} and {PORTS.stop - 1}")
