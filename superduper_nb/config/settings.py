"""All settings in one object, put together from their sources; what is wrong is said with the source it came from."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from superduper_nb.config.file import from_file
from superduper_nb.config.sections import (
    ENV_PREFIX,
    DownloadsConfig,
    JobsConfig,
    ModelServerConfig,
    MongoConfig,
    SearchConfig,
    ServerUrl,
)
from superduper_nb.errors import ConfigError, did_you_mean

__all__ = ["Config"]

log = logging.getLogger(__name__)


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

    url: ServerUrl | None = None
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
        file, name = from_file(config)
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
