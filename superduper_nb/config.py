"""Settings: explicit arguments > environment (``SUPERDUPER_*``) > ``config.json`` > defaults.

``config.json`` has the shape of the original cluster file: every part has a host and a port. The same keys work as
environment variables (``SUPERDUPER_MONGODB__URI``) and as arguments of :meth:`Config.load`. Anything wrong stops here,
with the file (or variable) and the key; no message and no ``repr`` holds a secret.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from superduper_nb.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)

ENV_PREFIX = "SUPERDUPER_"
ENV_FILE = "SUPERDUPER_CONFIG"
MAX_FILE_BYTES = 2**20


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


class Config(BaseSettings):
    """All settings; make one with :meth:`load`.

    Attributes
    ----------
    url, token
        A notebook server with this extension. A token inside the URL is taken out of it.
    remote
        None: the own notebook server if there is one; True: there must be one; False: everything in this process.
    mongodb, jobs, linear_algebra, model_server
        Where each part runs, and how much of the machine it may take.
    downloads
        What content may be fetched from where.
    redis
        Accepted for the sake of old files, and ignored: Dask took its place.
    valid_fraction
        Share of the inserted documents that is set apart for validation.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
    )

    url: Annotated[str, AfterValidator(_server_url)] | None = None
    token: SecretStr | None = None
    remote: bool | None = None
    mongodb: MongoConfig = MongoConfig()
    jobs: JobsConfig = JobsConfig()
    linear_algebra: SearchConfig = SearchConfig()
    model_server: ModelServerConfig = ModelServerConfig()
    downloads: DownloadsConfig = DownloadsConfig()
    redis: dict[str, Any] | None = Field(default=None, repr=False)
    valid_fraction: float = Field(default=0.05, ge=0, lt=1)

    @classmethod
    def load(cls, config: str | Path | Mapping[str, Any] | None = None, **overrides: Any) -> Config:
        """Read the settings from all sources.

        Parameters
        ----------
        config : str, Path or mapping, optional
            The file, or what it would hold. By default the file named by ``SUPERDUPER_CONFIG``, else
            ``superduper_nb/config.json`` in Jupyter's config folder where there is one.
        **overrides
            Settings that win over all others; None counts as not given.

        Raises
        ------
        ConfigError
            Names what is wrong, where, and what is allowed.
        """
        file, name = _from_file(config)
        given = {key: value for key, value in overrides.items() if value is not None}
        try:
            environment = EnvSettingsSource(cls)()
            loaded = cls(**_merge(_merge(file, environment), given))
        except SettingsError as exc:
            raise ConfigError(f"Environment: {exc}: give it as JSON, or as {ENV_PREFIX}<KEY>__<KEY>.") from None
        except ValidationError as exc:
            raise ConfigError(_explain(exc, given, name)) from None
        if loaded.redis is not None:
            log.warning("%s: 'redis' is accepted and ignored: Dask took its place.", name)
        return loaded

    @property
    def server(self) -> str | None:
        """The notebook server that is named: by ``url``, else by what an original cluster file says of its parts."""
        return self.url or self.linear_algebra.url or self.model_server.url

    @model_validator(mode="after")
    def _one_server_does_both(self) -> Config:
        search, models = self.linear_algebra.url, self.model_server.url
        if search and models and search != models:
            raise ValueError(
                f"linear_algebra ({search}) and model_server ({models}) name different servers; one notebook server "
                "does both: name the same, or one of them"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _take_token_out_of_url(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Jupyter prints its URL with the token in it, and so it is pasted here."""
        url = values.get("url")
        if not isinstance(url, str) or "token=" not in url:
            return values
        address, _, query = url.partition("?")
        options = dict(parse_qsl(query))
        token = options.pop("token", None) or values.get("token")
        rest = f"?{urlencode(options)}" if options else ""
        return {**values, "url": address + rest, "token": token}


def _from_file(config: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Return the settings of the file, and the name by which messages speak of it."""
    if isinstance(config, Mapping):
        return dict(config), "config"
    if path := config or os.environ.get(ENV_FILE):
        return _read(Path(path).expanduser()), str(path)
    from jupyter_core.paths import jupyter_config_dir

    default = Path(jupyter_config_dir(), "superduper_nb", "config.json")
    return _read(default) if default.exists() else {}, str(default)


def _read(path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: not a regular file.")
        if status.st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: {status.st_size} bytes, at most {MAX_FILE_BYTES} are allowed.")
        settings = _parse(path.read_bytes(), path)
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}.") from None
    if os.name == "posix" and status.st_mode & 0o077 and _holds_secret(settings):
        raise ConfigError(f"{path}: holds a password or token, and others may read it: run `chmod 600 {path}`.")
    return settings


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ConfigError(f"{path}: {min(twice)!r} is given twice.")
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise ConfigError(f"{path}: {name} is not JSON.")

    try:
        settings = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=no_constant)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text.") from None
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{path}: not JSON: {exc.msg}, line {exc.lineno}, column {exc.colno}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply.") from None
    if not isinstance(settings, dict):
        raise ConfigError(f'{path}: must hold an object, like {{"mongodb": {{"host": "localhost"}}}}.')
    return settings


def _holds_secret(settings: Mapping[str, Any]) -> bool:
    mongodb = settings.get("mongodb")
    uri = mongodb.get("uri") if isinstance(mongodb, Mapping) else None
    downloads = settings.get("downloads")
    headers = downloads.get("headers") if isinstance(downloads, Mapping) else None
    return bool(headers) or "token" in settings or "token=" in str(settings.get("url")) or "@" in str(uri)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(exc: ValidationError, given: Mapping[str, Any], file: str) -> str:
    """Say in one line what is wrong and where; values of text are never shown, as a password may be among them."""
    complaints = []
    for error in exc.errors(include_url=False)[:5]:
        path = [str(part) for part in error["loc"]]
        text = _unknown_key(path) if error["type"] == "extra_forbidden" else _wrong_value(error)
        complaints.append(f"{_origin(path, given, file)}: {'.'.join(path)}: {text}")
    return " ".join(complaints)


def _unknown_key(path: list[str]) -> str:
    return f"unknown key.{did_you_mean(path[-1], _known_keys(path[:-1]))}"


def _wrong_value(error: ErrorDetails) -> str:
    value = error["input"]
    given = value if isinstance(value, int | float) and error["loc"] != ("token",) else type(value).__name__
    return f"{error['msg'].removeprefix('Value error, ')} ({given} given)."


def _known_keys(path: list[str]) -> set[str]:
    model: type[BaseModel] = Config
    for part in path:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return set(model.model_fields)


def _origin(path: list[str], given: Mapping[str, Any], file: str) -> str:
    """Return the source that the value at the path came from."""
    value: Any = given
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is not None:
        return "argument"
    variables = {name.upper() for name in os.environ}
    names = [ENV_PREFIX + "__".join(path[:length]).upper() for length in range(len(path), 0, -1)]
    return next((name for name in names if name in variables), file)
