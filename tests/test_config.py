from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from superduper_nb.config import Config
from superduper_nb.errors import ConfigError

SECRET_URI = "mongodb://user:s3cr/et@db.example.org:27018,other:1/shop?tls=true"


def written(path: Path, content: object, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_defaults_need_no_file(home: Path) -> None:
    config = Config.load()
    assert config.remote is None
    assert config.mongodb.address() is None
    assert config.mongodb.where == "embedded"
    assert config.jobs.scheduler is None
    assert config.valid_fraction == 0.05


def test_shape_of_the_original_cluster_file(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = {"host": "10.0.0.7", "port": 5001}
    parts = ["mongodb", "linear_algebra", "model_server", "jobs", "redis"]
    with caplog.at_level(logging.WARNING):
        config = Config.load(written(file, {"remote": True, **dict.fromkeys(parts, part)}))
    assert config.remote is True
    assert config.mongodb.address() == "mongodb://10.0.0.7:5001/"
    assert config.jobs.scheduler == "tcp://10.0.0.7:5001"
    assert (config.linear_algebra.host, config.model_server.port) == ("10.0.0.7", 5001)
    assert config.server == "http://10.0.0.7:5001/"
    assert [record.message for record in caplog.records] == [
        f"{file}: 'redis' is accepted and ignored: Dask took its place."
    ]


def test_arguments_win_over_environment_over_file_over_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_file = {"jobs": {"workers": 1, "threads": 1, "in_flight": 1}, "url": "http://file", "remote": False}
    monkeypatch.setenv("SUPERDUPER_JOBS__THREADS", "2")
    monkeypatch.setenv("SUPERDUPER_JOBS__IN_FLIGHT", "2")
    monkeypatch.setenv("SUPERDUPER_URL", "http://environment")
    config = Config.load(written(file, in_file), jobs={"in_flight": 3}, url=None, valid_fraction=0.1)
    assert (config.jobs.workers, config.jobs.threads, config.jobs.in_flight) == (1, 2, 3)
    assert (config.url, config.remote, config.valid_fraction) == ("http://environment", False, 0.1)
    assert Config.load(in_file, url="http://argument").url == "http://argument"


def test_file_is_the_given_one_else_that_of_the_environment_else_jupyters(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "config.json", {"url": "http://working-folder"})
    monkeypatch.chdir(tmp_path)
    assert Config.load().url is None
    (home / "config" / "superduper_nb").mkdir()
    written(home / "config" / "superduper_nb" / "config.json", {"url": "http://jupyter"})
    assert Config.load().url == "http://jupyter"
    monkeypatch.setenv("SUPERDUPER_CONFIG", str(written(tmp_path / "named.json", {"url": "http://named"})))
    assert Config.load().url == "http://named"
    assert Config.load(written(tmp_path / "given.json", {"url": "http://given"})).url == "http://given"
    assert Config.load({"url": "http://mapping"}).url == "http://mapping"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not JSON: Expecting value, line 1, column 1"),
        (b"{", "not JSON: .*, line 1, column 2"),
        (b'\xef\xbb\xbf{"remote": true}', "not JSON: Unexpected UTF-8 BOM"),
        ('{"remote": true}'.encode("utf-16"), "not UTF-8"),
        (b'{"remote": true,}', "not JSON"),
        (b'{"remote": true} // why', "not JSON: Extra data"),
        (b'{"valid_fraction": NaN}', "NaN is not JSON"),
        (b'{"valid_fraction": 1e999}', "valid_fraction: .*less than 1"),
        (b"[]", "must hold an object"),
        (b"[" * 200_000, "nested too deeply"),
        (b" " * 2_000_000, "2000000 bytes, at most"),
        (b'{"remote": true, "remote": false}', "'remote' is given twice"),
        ({"mongo_url": "x"}, "mongo_url: unknown key. Did you mean 'mongodb'"),
        ({"mongodb": {"hots": "x"}}, "mongodb.hots: unknown key. Did you mean 'host'"),
        ({"bind": "0.0.0.0"}, "bind: unknown key"),
        ({"mongodb": "db.example.org"}, r"mongodb: .* \(str given\)"),
        ({"mongodb": {"port": "x"}}, r"mongodb.port: .*valid integer.* \(str given\)"),
        ({"mongodb": {"port": 0}}, r"mongodb.port: .*greater than or equal to 1 \(0 given\)"),
        ({"jobs": {"port": 70000}}, r"jobs.port: .*less than or equal to 65535 \(70000 given\)"),
        ({"model_server": {"host": "http://h"}}, "model_server.host: must be a host name"),
        ({"mongodb": {"data": "../../../etc"}}, "mongodb.data: must be an absolute path"),
        ({"mongodb": {"data": "/tmp/../etc"}}, "mongodb.data: must be an absolute path"),
        ({"mongodb": {"data": "~root/x"}}, "mongodb.data: must be an absolute path"),
        ({"mongodb": {"data": 7}}, "mongodb.data: .*path"),
        ({"mongodb": {"data": "/dev/stdin"}}, "mongodb.data: must not be a symbolic link"),
        ({"mongodb": {"uri": "db.example.org"}}, "mongodb.uri: must begin with mongodb://"),
        ({"url": "ftp://h"}, "url: must begin with http://"),
        ({"url": "http://[h"}, "url: "),
        ({"remote": 7, "valid_fraction": 7}, "remote: .*valid_fraction: "),
    ],
)
def test_wrong_file_names_file_key_and_reason(file: Path, content: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as info:
        Config.load(written(file, content))
    assert str(info.value).startswith(f"{file}: ")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device"])
def test_what_is_no_file_is_refused_at_once(file: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    monkeypatch.setenv("SUPERDUPER_CONFIG", str(file))
    with pytest.raises(ConfigError, match="No such file" if kind == "missing" else "not a regular file"):
        Config.load()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="Permission denied"):
        Config.load(written(file, {}, mode=0))


def test_error_names_the_source_of_the_value(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(file, {"mongodb": {"port": "file"}})
    with pytest.raises(ConfigError, match=rf"{file}: mongodb\.port: "):
        Config.load(file, mongodb={"host": "h"})
    monkeypatch.setenv("SUPERDUPER_MONGODB__PORT", "environment")
    with pytest.raises(ConfigError, match=r"^SUPERDUPER_MONGODB__PORT: mongodb\.port: "):
        Config.load(file)
    with pytest.raises(ConfigError, match=r"^argument: mongodb\.port: "):
        Config.load(file, mongodb={"port": "argument"})
    with pytest.raises(ConfigError, match=r"argument: tokn: unknown key\. Did you mean 'token'"):
        Config.load({}, tokn="x")
    monkeypatch.setenv("SUPERDUPER_JOBS", "{")
    with pytest.raises(ConfigError, match=r"Environment: .*jobs"):
        Config.load(file)


@pytest.mark.parametrize(
    "secret", [{"token": "s3cret"}, {"mongodb": {"uri": SECRET_URI}}, {"url": "http://h/?token=s3cret"}]
)
def test_file_with_a_secret_must_be_private(file: Path, secret: dict[str, Any]) -> None:
    Config.load(written(file, secret))
    with pytest.raises(ConfigError, match=f"chmod 600 {file}") as info:
        Config.load(written(file, secret, mode=0o640))
    assert "s3cr" not in str(info.value)
    Config.load(written(file, {"mongodb": {"uri": "mongodb://db.example.org"}}, mode=0o644))


def test_secrets_are_in_no_repr_nor_dump() -> None:
    config = Config.load({"token": "s3cret", "redis": {"password": "s3cret"}, "mongodb": {"uri": SECRET_URI}})
    assert "s3cr" not in f"{config!r} {config} {config.mongodb!r} {config.mongodb.where}"
    assert config.mongodb.where == "db.example.org:27018,other:1"
    assert config.mongodb.address() == SECRET_URI
    assert config.token is not None
    assert config.token.get_secret_value() == "s3cret"


@pytest.mark.parametrize(
    "wrong",
    [
        {"mongodb": {"uri": "mongo://user:s3cret@h"}},
        {"mongodb": SECRET_URI},
        {"mongodb": {"host": "user:s3cret@h"}},
        {"mongodb": {"uri": {"s": "s3cret"}}},
        {"token": ["s3cret"]},
        {"url": "http://user:s3cret@h/"},
        {"url": "ftp://h/?token=s3cret"},
    ],
)
def test_errors_show_no_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as info:
        Config.load(wrong)
    assert "s3cret" not in str(info.value)
    assert info.value.__suppress_context__


def test_token_given_as_a_number_is_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"token: .* \(int given\)"):
        Config.load({"token": 31337})


def test_token_moves_out_of_a_pasted_url() -> None:
    config = Config.load({"token": "other"}, url="https://h:8888/lab/tree?x=1&token=s3cret")
    assert config.url == "https://h:8888/lab/tree?x=1"
    assert config.token is not None
    assert config.token.get_secret_value() == "s3cret"


def test_paths_and_addresses(tmp_path: Path) -> None:
    assert Config.load({"mongodb": {"data": "~/x"}}).mongodb.data == Path.home() / "x"
    assert Config.load({"mongodb": {"data": str(tmp_path)}}).mongodb.where == f"embedded, data in {tmp_path}"
    assert Config.load({"mongodb": {"host": "::1"}}).mongodb.address() == "mongodb://[::1]:27017/"
    assert Config.load({"mongodb": {"port": 1}}).mongodb.where == "localhost:1"
    assert Config.load({"jobs": {"address": "tls://h:1", "host": "x"}}).jobs.scheduler == "tls://h:1"


def test_is_a_value() -> None:
    config = Config.load({"mongodb": {"uri": SECRET_URI}})
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValidationError):
        config.remote = True  # type: ignore[misc]


def test_search_and_models_are_of_one_server() -> None:
    assert Config.load({"model_server": {"port": 9999}}).server == "http://localhost:9999/"
    assert Config.load({"linear_algebra": {"host": "far"}, "url": "http://near/"}).server == "http://near/"
    assert Config.load({"model_server": {"replicas": 2}}).server is None
    with pytest.raises(ConfigError, match="name different servers"):
        Config.load({"linear_algebra": {"host": "a"}, "model_server": {"host": "b"}})
