from __future__ import annotations

import socket
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure
from pymongo.write_concern import WriteConcern

from superduper_nb.cluster.mongod_client import connect_options, knock, wrap_uri_errors
from superduper_nb.errors import MongoUnavailableError


def ping(uri: str, **options: Any) -> None:
    with wrap_uri_errors("the-address"), MongoClient[dict[str, Any]](uri, **connect_options() | options) as client:
        knock(client)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_options_make_writes_durable_and_waits_finite(mongo_uri: str) -> None:
    with MongoClient[dict[str, Any]](mongo_uri, **connect_options()) as client:
        assert client.write_concern == WriteConcern(w="majority", j=True, wtimeout=10_000)
        assert client.options.retry_writes
        assert client.options.server_selection_timeout == 5
    assert connect_options() is not connect_options()


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://user:s3cr/et@host:27017/db",
        "mongodb://user:s3cr%zzet@host/",
        "mongodb://user:s3cr:et@host/",
        "mongodb://user:s3cret@host:port/",
        "mongodb://user:s3cret@host,other/?directConnection=true",
        "mongodb+srv://user:s3cr/et@host.example.org/",
        "mongodb://",
    ],
)
def test_unusable_uri_shows_no_part_of_the_password(uri: str) -> None:
    with pytest.raises(MongoUnavailableError, match=r"the-address.*percent-encoded") as info:
        ping(uri)
    assert "s3cr" not in str(info.value)
    assert "et@" not in str(info.value)
    assert info.value.__suppress_context__


def test_wrong_password_says_so(mongo_uri: str) -> None:
    host = mongo_uri.rpartition("@")[2]
    with pytest.raises(MongoUnavailableError, match="the-address refused the login") as info:
        ping(f"mongodb://superduper:s3cret@{host}")
    assert "s3cret" not in str(info.value)


def test_no_password_says_so_though_a_ping_is_answered(mongo_uri: str) -> None:
    host = mongo_uri.rpartition("@")[2]
    with pytest.raises(MongoUnavailableError, match="the-address wants a login"):
        ping(f"mongodb://{host}")


def test_a_user_of_one_database_is_let_in(mongo_uri: str, database: Database[dict[str, Any]]) -> None:
    host = mongo_uri.rpartition("@")[2].partition("/")[0]
    uri = f"mongodb://ana:small@{host}/{database.name}"
    with pytest.raises(MongoUnavailableError, match="refused the login"):
        ping(uri)
    database.command("createUser", "ana", pwd="small", roles=["readWrite"])
    try:
        ping(uri)
    finally:
        database.command("dropUser", "ana")


def test_nobody_there_says_so_in_one_short_line() -> None:
    with pytest.raises(MongoUnavailableError, match=r"does not answer \(.*refused\)") as info:
        ping(f"mongodb://user:s3cret@127.0.0.1:{closed_port()}/", serverSelectionTimeoutMS=100)
    assert "s3cret" not in str(info.value)
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 300


def test_other_errors_of_the_server_pass(database: Database[dict[str, Any]]) -> None:
    with pytest.raises(OperationFailure, match="no such command"), wrap_uri_errors("the-address"):
        database.command("noSuchCommand")
