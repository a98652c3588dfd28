"""The sections of the settings, one for each part of the cluster, and what their values must be like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

__all__ = [
    "ENV_PREFIX",
    "DownloadsConfig",
    "JobsConfig",
    "ModelServerConfig",
    "MongoConfig",
    "SearchConfig",
    "ServerUrl",
]

ENV_PREFIX: Final = "SUPERDUPER_"


def _plain_host(host: str) -> str:
    if not host or any(char in host for char in "/@?# "):
        raise ValueError("must be a host name or an address, without scheme, credentials or path")
    return host


def _mongodb_uri(uri: SecretStr) -> SecretStr:
    if not uri.get_secret_value().startswith(("mongodb://", "mongodb+srv://")):
        raise ValueError("must begin with mongodb:// or mongodb+srv://")
    return uri


def _server_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or "@" in parts.netloc:
        raise ValueError("must begin with http:// or https:// and a host, without user and password")
    return url


def _data_folder(path: Path) -> Path:
    path = path.expanduser() if path.parts[:1] == ("~",) else path
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("must be an absolute path (or begin with ~/) without '..'")
    if path.is_symlink():
        raise ValueError("must not be a symbolic link: name the folder itself")
    return path


def _join(host: str | None, port: int) -> str:
    host = host or "localhost"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Host = Annotated[str, AfterValidator(_plain_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
ServerUrl = Annotated[str, AfterValidator(_server_url)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Address(_Section):
    """Host and port of a notebook server with this extension."""

    host: Host | None = None
    port: Port | None = None

    @property
    def url(self) -> str | None:
        """Where it is; None where nothing is said."""
        return f"http://{_join(self.host, self.port or 8888)}/" if self.host or self.port else None


class SearchConfig(Address):
    """Linear algebra, and the memory that its indexes may take, all together: beyond, the least used one goes out."""

    memory_gb: float | None = Field(default=None, gt=0)


class ModelServerConfig(Address):
    """The model server: processes that run models, and the memory that these may hold models in, all together.

    Attributes
    ----------
    placement
        Of the processes: on this machine, or one on each worker of the Dask cluster.
    resources
        On the cluster: what each takes of its worker's resources, `{"GPU": 1}` say.
    """

    replicas: int = Field(default=1, ge=1, le=256)
    placement: Literal["here", "cluster"] = "here"
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    memory_gb: float | None = Field(default=None, gt=0)


class MongoConfig(_Section):
    """Which MongoDB: ``uri``, else ``host`` and ``port``, else an embedded one with its files in ``data``."""

    uri: Annotated[SecretStr, AfterValidator(_mongodb_uri)] | None = None
    host: Host | None = None
    port: Port | None = None
    data: Annotated[Path, AfterValidator(_data_folder)] | None = None
    cache_gb: float = Field(default=0.5, ge=0.25, le=10_000)

    def address(self) -> str | None:
        """Return the URI to connect to, with its credentials; None for the embedded one."""
        if self.uri:
            return self.uri.get_secret_value()
        return f"mongodb://{_join(self.host, self.port or 27017)}/" if self.host or self.port else None

    @property
    def where(self) -> str:
        """The address to show: without credentials and options."""
        address = self.address()
        if address is None:
            return f"embedded, data in {self.data}" if self.data else "embedded"
        return address.partition("://")[2].rpartition("@")[2].partition("/")[0].partition("?")[0]


class TlsConfig(_Section):
    """Files of certificates for a Dask scheduler, in PEM format."""

    ca_file: str
    cert: str
    key: str


class JobsConfig(_Section):
    """Which Dask: ``address`` (any scheduler address), else ``host`` and ``port``, else a cluster of our own.

    Attributes
    ----------
    tls
        Certificates for that scheduler; default: those of the Dask configuration.
    workers, max_workers, threads
        Of our own cluster: processes at first (one a core by default) and at most, while there is work for them;
        threads of each that compute.
    resources
        What each worker of our own cluster has to offer to models that ask for it: ``{"GPU": 1}``.
    in_flight
        Parts of jobs under way at one time, at least; twice as many as there are threads, where that is more.
    memory_gb
        A worker of our own cluster that has more is ended; default: the machine's, shared among them.
    batch_timeout
        Seconds that a batch may take before its worker is ended.
    """

    host: Host | None = None
    port: Port | None = None
    address: str | None = None
    tls: TlsConfig | None = None
    workers: int | None = Field(default=None, ge=1, le=4096)
    max_workers: int | None = Field(default=None, ge=1, le=4096)
    threads: int = Field(default=1, ge=1, le=1024)
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    in_flight: int = Field(default=8, ge=1, le=10_000)
    memory_gb: float | None = Field(default=None, gt=0)
    batch_timeout: float = Field(default=600, gt=0)

    @property
    def scheduler(self) -> str | None:
        """Address of the scheduler; None for a cluster of our own."""
        if self.address or not (self.host or self.port):
            return self.address
        return f"{'tls' if self.tls else 'tcp'}://{_join(self.host, self.port or 8786)}"

    @property
    def certificates(self) -> dict[str, str] | None:
        """The files by the names that Dask has for them."""
        if self.tls is None:
            return None
        return {"tls_ca_file": self.tls.ca_file, "tls_client_cert": self.tls.cert, "tls_client_key": self.tls.key}


class DownloadsConfig(_Section):
    """What content may be fetched from where: see `superduper_nb.documents.download_policy.DownloadPolicy`."""

    roots: tuple[str, ...] = ()
    trusted_hosts: frozenset[str] = frozenset()
    headers: dict[str, dict[str, SecretStr]] = Field(default_factory=dict, repr=False)
    ca_file: str | None = None
    connect_timeout: float = Field(default=5, gt=0)
    read_timeout: float = Field(default=10, gt=0)
    total_timeout: float = Field(default=60, gt=0)
    max_bytes: int = Field(default=64 * 2**20, ge=1)
    max_redirects: int = Field(default=5, ge=0)
    user_agent: str = "superduper-nb"
    at_once: int = Field(default=16, ge=1, le=256)
    per_host: int = Field(default=4, ge=1, le=256)
    tries: int = Field(default=3, ge=1, le=10)

    def values(self) -> dict[str, Any]:
        """Return all of it as plain values, the headers with their secrets."""
        headers = {
            host: {name: value.get_secret_value() for name, value in each.items()}
            for host, each in self.headers.items()
        }
        return {**self.model_dump(), "headers": headers}

    def environment(self) -> dict[str, str]:
        """Return the variables that hand it to a process of ours."""
        values = {**self.values(), "trusted_hosts": sorted(self.trusted_hosts)}
        return {} if self == DownloadsConfig() else {f"{ENV_PREFIX}DOWNLOADS": json.dumps(values)}
